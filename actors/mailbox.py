"""Mailboxes of actors: one that keeps its order and is bounded, and two that keep only the latest of each key."""

import math
from collections import deque
from collections.abc import Awaitable, Hashable
from itertools import islice
from typing import Any, Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)
Message = TypeVar("Message")


class Mailbox(Generic[Message]):
    """A bounded queue with one reader, who takes everything at once. Putting never waits.

    What a memory channel does, for half its price: a student's actor wakes for nearly every event, so the wake is a
    good part of what an event costs (docs/performance.md).
    """

    __slots__ = ("_messages", "_reader", "capacity", "closed")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._messages: list[Message] = []
        self._reader: trio.lowlevel.Task | None = None  # who waits, if anybody does
        self.closed = False

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> int:
        """Leave a message; returns how many waited before it. Raises trio.WouldBlock when it is full."""
        messages = self._messages
        waiting = len(messages)
        if waiting >= self.capacity:
            raise trio.WouldBlock
        messages.append(message)
        reader = self._reader
        if reader is not None:
            self._reader = None
            trio.lowlevel.reschedule(reader)
        return waiting

    def close(self) -> None:
        """No more messages will come."""
        self.closed = True
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.reschedule(reader)

    def take_all(self) -> list[Message]:
        """Everything that waits, oldest first."""
        taken, self._messages = self._messages, []
        return taken

    def wait_filled(self) -> Awaitable[Any]:
        """Wait until something is put or the mailbox is closed; not at all when something waits. Only while open."""
        if self._messages:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105 - the caller awaits it
        # Not a coroutine of its own: each frame between a task and its sleep is paid for at every wake.
        self._reader = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105 - the caller awaits it

    def _abort(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED


class ConflatingMailbox(Generic[Key, Message]):
    """It can never be full: a newer message replaces the older of its key. Past ``capacity`` keys the oldest goes."""

    def __init__(self, capacity: float = math.inf) -> None:
        self._slots: dict[Key, Message] = {}
        self._filled = trio.Event()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, key: Key, message: Message) -> None:
        """Leave a message; replaces one of the same key that was not taken yet."""
        if not self._slots:
            self._filled.set()
        self._slots[key] = message
        if len(self._slots) > self._capacity:
            del self._slots[next(iter(self._slots))]

    def put_back(self, messages: dict[Key, Message]) -> None:
        """Messages that were taken wait again, where no newer one of their key came."""
        for key, message in messages.items():
            if key not in self._slots:
                self.put(key, message)

    def take(self, limit: int) -> dict[Key, Message]:
        """Up to ``limit`` of what waits, oldest key first."""
        if len(self._slots) <= limit:
            return self.take_all()
        keys = list(islice(self._slots, limit))
        return {key: self._slots.pop(key) for key in keys}

    def take_all(self) -> dict[Key, Message]:
        """Everything that waits, oldest key first."""
        taken, self._slots = self._slots, {}
        if taken:  # else somebody may wait for the event that there is
            self._filled = trio.Event()
        return taken

    async def wait_filled(self) -> None:
        """Wait until something is in it."""
        await self._filled.wait()


class RecentMailbox(Generic[Key, Message]):
    """It can never be full: of each key it keeps the newest ``capacity`` messages, in order."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._recent: dict[Key, deque[Message]] = {}
        self._filled = trio.Event()

    def put(self, key: Key, message: Message) -> None:
        """Leave a message; past the capacity the oldest of its key goes."""
        recent = self._recent.get(key)
        if recent is None:
            recent = self._recent[key] = deque(maxlen=self._capacity)
            self._filled.set()
        recent.append(message)

    def take_all(self) -> dict[Key, deque[Message]]:
        """Everything that waits, each key's oldest first."""
        taken, self._recent = self._recent, {}
        if taken:
            self._filled = trio.Event()
        return taken

    async def wait_filled(self) -> None:
        """Wait until something is in it."""
        await self._filled.wait()
