"""Calls for help: since when help is wanted, whatever order calls and resolves come in."""

from bisect import insort
from itertools import pairwise
from typing import Final

import msgspec

from engine.event import Order

MAX_REQUESTS: Final = 64  # kept one by one
# A client that repeats its call for help does so within 30 s, and lapses 60 s after the last (contract, Live stream).
HELP_REPEAT_MS: Final = 30_000
HELP_LAPSE_MS: Final = 60_000


class Help(msgspec.Struct, array_like=True, gc=False):
    """Calls for help: those after the latest resolve, ascending."""

    requests: list[Order] = []
    resolved: Order | None = None
    began: int | None = None  # where the run of calls began, when calls of it have left `requests`
    received_at: int = 0  # the latest receipt of a call

    def add(self, order: Order, received_at: int) -> None:
        """Fold in a call for help."""
        self.received_at = max(self.received_at, received_at)
        if self.resolved is None or order > self.resolved:
            insort(self.requests, order)
            while len(self.requests) > MAX_REQUESTS:
                oldest = self.requests.pop(0)
                if self.began is not None and oldest == order:  # late: those around it have left before
                    if self.began - oldest.time <= HELP_LAPSE_MS:
                        self.began = min(self.began, oldest.time)
                elif self.requests[0].time - oldest.time > HELP_LAPSE_MS:
                    self.began = None
                elif self.began is None:
                    self.began = oldest.time

    def resolve(self, order: Order) -> None:
        """Fold in the end of a call for help."""
        if self.resolved is None or order > self.resolved:
            self.resolved = order
            if self.requests and self.requests[0] <= order:
                self.began = None
            self.requests = [request for request in self.requests if request > order]

    @property
    def repeats(self) -> bool:
        """Whether the client repeats its call, so that silence means it has gone."""
        times = [request.time for request in self.requests]
        return any(after - time <= HELP_REPEAT_MS for time, after in pairwise(times))

    @property
    def since(self) -> int | None:
        """Event time at which the present call began; None when there is none."""
        if not self.requests:
            return None
        if not self.repeats:
            return self.requests[0].time if self.began is None else self.began
        start = self.requests[-1].time
        for request in reversed(self.requests):
            if start - request.time > HELP_LAPSE_MS:  # the earlier call lapsed; this one is new
                return start
            start = request.time
        return start if self.began is None else self.began

    def merge(self, other: "Help") -> None:
        """Join the calls that were seen elsewhere."""
        if other.resolved is not None:
            self.resolve(other.resolved)
        if other.began is not None and (self.resolved is None or other.began > self.resolved.time):
            self.began = other.began if self.began is None else min(self.began, other.began)
        self.received_at = max(self.received_at, other.received_at)
        for request in other.requests:
            self.add(request, other.received_at)
