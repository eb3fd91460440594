"""The publisher: tells the bus of every event that was committed, and the mirror of whom it was about."""

from collections import deque
from typing import Final

import trio

from engine.announcement import channel_of, message_of
from engine.event import Commit
from engine.ports import Bus, CommitSink

from .mirror import Mirror

# Commits that wait for it; when full, the oldest is not told. It never waits for anything, so it is behind only while
# the loop is busy.
_MAX_COMMITS: Final = 64
# Events that are given to the bus at once: many, as each call has its cost, and still little of what may wait there.
_PIECE: Final = 200


class Publisher:
    """Mailbox: the newest `_MAX_COMMITS` commits. It only encodes; what is slow or away is behind the bus."""

    def __init__(self, bus: Bus, mirror: Mirror) -> None:
        self._bus = bus
        self._mirror = mirror
        self._commits: deque[Commit] = deque()
        self._filled = trio.Event()
        self.dropped = 0  # events that were not told

    def beside(self, sink: CommitSink) -> CommitSink:
        """A sink that tells the publisher too: one call a commit is all that the way of an event pays."""

        async def both(commit: Commit) -> None:
            self.offer(commit)
            await sink(commit)

        return both

    def offer(self, commit: Commit) -> None:
        """Leave a commit. Never waits."""
        if len(self._commits) == _MAX_COMMITS:
            self.dropped += len(self._commits.popleft().events)
        self._commits.append(commit)
        self._filled.set()

    async def run(self) -> None:
        """Tell, for ever."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._commits:
                self.tell(self._commits.popleft())
                await trio.lowlevel.checkpoint()

    def tell(self, commit: Commit) -> None:
        """Publish a commit's events, and note whom they are about."""
        events = commit.events
        for begin in range(0, len(events), _PIECE):
            self._bus.publish([(channel_of(event), message_of(event)) for event in events[begin : begin + _PIECE]])
        self._mirror.note({(event.class_id, event.user_id): seq for seq, event in enumerate(events, commit.first_seq)})
