"""A subscriber's outbox: bounded, and conflated when its reader is slow."""

from collections import deque
from collections.abc import Callable

import trio


class Subscriber:
    """`engine.ports.Outbox`. The broadcaster offers and never waits; the reader takes at its own pace.

    Full policy: at ``capacity`` deltas the topic's frames are dropped and the reader gets a fresh snapshot when it next
    takes one; values are absolute, so nothing is lost but the steps between.
    """

    def __init__(
        self,
        capacity: int,
        join: "Callable[[Subscriber, str], None]",
        leave: "Callable[[Subscriber, str], None]",
        fresh: Callable[[str], str],
    ) -> None:
        self._capacity = capacity
        self._join = join
        self._leave = leave
        self._fresh = fresh
        self._frames: deque[tuple[str, str]] = deque()
        self._lagging: dict[str, None] = {}  # topics that are due a snapshot, in order
        self._topics: set[str] = set()
        self._filled = trio.Event()
        self.conflated = 0

    def subscribe(self, topic: str) -> None:
        """See `engine.ports.Outbox`."""
        self._join(self, topic)
        self._topics.add(topic)
        self._drop(topic)
        self._filled.set()

    def unsubscribe(self, topic: str) -> None:
        """See `engine.ports.Outbox`."""
        if topic in self._topics:
            self._topics.discard(topic)
            self._leave(self, topic)
            self._drop(topic)
            self._lagging.pop(topic, None)

    def offer(self, topic: str, frame: str) -> None:
        """Queue one delta, or fall back to a snapshot. Never waits."""
        if topic in self._lagging:
            return
        if len(self._frames) >= self._capacity:
            self._drop(topic)
            return
        self._frames.append((topic, frame))
        self._filled.set()

    async def next_frame(self) -> str:
        """See `engine.ports.Outbox`."""
        while not self._frames and not self._lagging:
            self._filled = trio.Event()
            await self._filled.wait()
        if self._frames:
            return self._frames.popleft()[1]
        topic = next(iter(self._lagging))
        del self._lagging[topic]
        return self._fresh(topic)

    def close(self) -> None:
        """See `engine.ports.Outbox`."""
        for topic in list(self._topics):
            self.unsubscribe(topic)

    def _drop(self, topic: str) -> None:
        """Forget the queued deltas of a topic; its next frame is a snapshot."""
        kept = [item for item in self._frames if item[0] != topic]
        self.conflated += len(self._frames) - len(kept)
        self._frames = deque(kept)
        self._lagging[topic] = None
