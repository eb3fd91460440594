"""A subscriber's outbox: bounded, and conflated when its reader is slow."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import trio

from engine.faults import reach


class Frame(NamedTuple):
    """One frame of a topic."""

    seq: int
    text: str
    received_at: int = 0  # ms, when the oldest news in it was received; 0: it tells no news


class Feed(Protocol):
    """Where frames come from: the broadcaster."""

    def join(self, subscriber: "Subscriber", topic: str) -> None:
        """Offer it the topic's frames from now on. Raises UnknownTopicError."""

    def leave(self, subscriber: "Subscriber", topic: str) -> None:
        """No more of them."""

    def begin(self, topic: str, resume: tuple[str, int] | None) -> list[Frame]:
        """What a subscription begins with."""

    def catch_up(self, topic: str, seq: int) -> list[Frame]:
        """What a reader needs that had frame ``seq`` and not the rest. Raises OverloadedError."""


class Subscriber:
    """`engine.ports.Outbox`. The broadcaster offers and never waits; the reader takes at its own pace.

    Full policy: at ``capacity`` frames those of the topic are dropped. When the reader next takes one it gets a fresh
    snapshot, because values are absolute, and then the alerts that it missed, which the topic keeps for all.
    """

    def __init__(self, capacity: int, feed: Feed) -> None:
        self._capacity = capacity
        self._feed = feed
        self._frames: deque[tuple[str, Frame]] = deque()
        self._due: dict[str, Callable[[], list[Frame]]] = {}  # topics whose next frames are made when they are taken
        self._taken: dict[str, int] = {}  # by topic: seq of the last frame that the reader took
        self._topics: set[str] = set()
        self._filled = trio.Event()
        self._write: Callable[[str, int], bool] | None = None
        self._waits = False  # the reader, for a frame: none is queued, and none is in its hands
        self.conflated = 0
        self.received_at = 0

    def subscribe(self, topic: str, resume: tuple[str, int] | None = None) -> None:
        """See `engine.ports.Outbox`."""
        self._feed.join(self, topic)
        self._topics.add(topic)
        self._taken.pop(topic, None)
        self._drop(topic)
        self._due[topic] = lambda: self._feed.begin(topic, resume)
        self._wake()

    def unsubscribe(self, topic: str) -> None:
        """See `engine.ports.Outbox`."""
        if topic in self._topics:
            self._topics.discard(topic)
            self._feed.leave(self, topic)
            self._drop(topic)
            self._due.pop(topic, None)
            self._taken.pop(topic, None)

    def offer(self, topic: str, frame: Frame) -> None:
        """Have one frame written at once, or queue it, or fall behind. Never waits."""
        if topic in self._due:
            return
        # Waking a reader for each of a hundred costs twice as much as writing to its socket does.
        if self._waits and self._write is not None and self._write(frame.text, frame.received_at):
            self._taken[topic] = frame.seq
            return
        if len(self._frames) >= self._capacity:
            self._drop(topic)
            taken = self._taken[topic]
            self._due[topic] = lambda: self._feed.catch_up(topic, taken)
            return
        self._frames.append((topic, frame))
        self._wake()

    def write_through(self, write: Callable[[str, int], bool]) -> None:
        """See `engine.ports.Outbox`."""
        self._write = write

    def _wake(self) -> None:
        self._waits = False
        self._filled.set()

    async def next_frame(self) -> str:
        """See `engine.ports.Outbox`."""
        while not self._frames and not self._due:
            self._filled = trio.Event()
            self._waits = True
            try:
                await self._filled.wait()
            finally:
                self._waits = False
        reach("subscriber.frame")
        if not self._frames:
            topic = next(iter(self._due))
            make = self._due.pop(topic)
            self._frames.extend((topic, frame) for frame in make())
        topic, frame = self._frames.popleft()
        self._taken[topic] = frame.seq
        self.received_at = frame.received_at
        return frame.text

    def close(self) -> None:
        """See `engine.ports.Outbox`."""
        for topic in list(self._topics):
            self.unsubscribe(topic)

    def _drop(self, topic: str) -> None:
        """Forget the queued frames of a topic."""
        kept = [item for item in self._frames if item[0] != topic]
        self.conflated += len(self._frames) - len(kept)
        self._frames = deque(kept)
