"""A topic of the live stream: its latest view, its sequence, its alerts, and who subscribes to it.

Every frame takes the next ``seq``, whether anybody gets it or not. A client that had frame ``s`` of this epoch is up to
date after the parts of the view that changed in frames after ``s``, and the alerts of frames after ``s``.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from itertools import count, islice
from typing import Any, Final

import msgspec

from engine.alerts import FRAME_ALERTS, KEPT_ALERTS, Alert
from engine.delta import View
from engine.errors import OverloadedError

from .subscriber import Frame, Subscriber

_encode: Final = msgspec.json.Encoder().encode


class Topic(ABC):
    """What every kind of topic does; each kind knows how to look again at what it shows."""

    def __init__(self, name: str, epoch: str, first: int, view: View) -> None:
        """``first``: a seq no frame of an earlier topic of this name had, so that no client resumes with one of it."""
        self.name = name
        self.seq = first
        self.subscribers: set[Subscriber] = set()
        self._epoch = epoch
        self._first = first
        self._shown = view
        self._alerts: deque[tuple[int, Alert]] = deque()  # with the seq of their frame
        self._alerts_lost = 0  # the seq of the last one that is no longer kept
        self._snapshot: str | None = None

    @abstractmethod
    def refresh(self) -> None:
        """Look again at what changed."""

    def publish(self) -> None:
        """Make one frame of what changed since the last, encoded once, and offer it to every subscriber."""
        self.refresh()
        if self._shown.dirty:
            self.seq += 1
            self._snapshot = None  # one made before has the seq before
            changes = self._shown.take_changes(self.seq)
            if self.subscribers:
                self._offer(self._delta(self.seq, changes)._replace(received_at=self._news_of()))

    def _news_of(self) -> int:
        """When the oldest of what changed since it was asked last was received, in ms; 0: nobody knows."""
        return 0

    def tell(self, alerts: Collection[Alert]) -> None:
        """Make frames of these alerts."""
        self._snapshot = None
        waiting = iter(alerts)
        while share := list(islice(waiting, FRAME_ALERTS)):
            self.seq += 1
            self._alerts.extend((self.seq, alert) for alert in share)
            while len(self._alerts) > KEPT_ALERTS:
                self._alerts_lost = self._alerts.popleft()[0]
            if self.subscribers:
                self._offer(self._told(self.seq, share))

    def snapshot(self) -> Frame:
        """A snapshot frame, as fresh as can be; encoded once however many ask."""
        self.refresh()
        if self._snapshot is None:
            self._snapshot = self._frame("snapshot", self.seq, "state", self._shown.snapshot())
        return Frame(self.seq, self._snapshot)

    def resume(self, epoch: str, seq: int) -> list[Frame]:
        """What came after frame ``seq``: a merged delta and the alerts; or a snapshot, when that cannot be told.

        A client that is cut between the two must not miss the second when it resumes with the first's seq. So the
        first is numbered just before the oldest frame that the second stands for.
        """
        serves = self._first <= seq <= self.seq and seq >= max(self._shown.floor, self._alerts_lost)
        if epoch != self._epoch or not serves:
            return [self.snapshot()]
        if seq == self.seq:
            return [self._delta(seq, {})]
        missed = self._missed(seq)
        numbers = {number for number, _ in missed}
        first_delta = next(number for number in count(seq + 1) if number not in numbers)
        alerts = [alert for _, alert in missed]
        if not alerts:
            return [self._delta(self.seq, self._shown.since(seq))]
        if first_delta > self.seq:
            return [self._told(self.seq, alerts)]
        changes = self._shown.since(seq)
        if missed[0][0] > first_delta:
            return [self._delta(missed[0][0] - 1, changes), self._told(self.seq, alerts)]
        return [self._told(first_delta - 1, alerts), self._delta(self.seq, changes)]

    def catch_up(self, seq: int) -> list[Frame]:
        """For a reader that fell behind after frame ``seq``: a snapshot, and the alerts that it missed.

        Raises OverloadedError when not all of these are kept.
        """
        if seq < self._alerts_lost:
            raise OverloadedError(f"over {KEPT_ALERTS} alerts of {self.name} wait")
        missed = self._missed(seq)
        if not missed:
            return [self.snapshot()]
        self.refresh()
        before = missed[0][0] - 1
        snapshot = self._frame("snapshot", before, "state", self._shown.snapshot())
        return [Frame(before, snapshot), self._told(self.seq, [alert for _, alert in missed])]

    def _missed(self, seq: int) -> list[tuple[int, Alert]]:
        return [kept for kept in self._alerts if kept[0] > seq]

    def _offer(self, frame: Frame) -> None:
        for subscriber in self.subscribers:
            subscriber.offer(self.name, frame)

    def _delta(self, seq: int, changes: dict[str, Any]) -> Frame:
        return Frame(seq, self._frame("delta", seq, "changes", changes))

    def _told(self, seq: int, alerts: Collection[Alert]) -> Frame:
        text = self._frame("alerts", seq, "alerts", [alert.view() for alert in alerts])
        return Frame(seq, text, min(alert.received_at for alert in alerts))

    def _frame(self, kind: str, seq: int, field: str, content: Any) -> str:
        return _encode({"type": kind, "topic": self.name, "epoch": self._epoch, "seq": seq, field: content}).decode()
