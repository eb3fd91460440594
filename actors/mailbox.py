"""A mailbox with one slot a key: a newer message replaces the older, so it is never larger than what it is about."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)
Message = TypeVar("Message")


class ConflatingMailbox(Generic[Key, Message]):
    """Unlike a memory channel it can never be full: only the latest message of each key waits."""

    def __init__(self) -> None:
        self._slots: dict[Key, Message] = {}
        self._filled = trio.Event()

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, key: Key, message: Message) -> None:
        """Leave a message; replaces one of the same key that was not taken yet."""
        if not self._slots:
            self._filled.set()
        self._slots[key] = message

    def take_all(self) -> dict[Key, Message]:
        """Everything that waits, oldest key first."""
        taken, self._slots = self._slots, {}
        self._filled = trio.Event()
        return taken

    async def wait_filled(self) -> None:
        """Wait until something is in it."""
        await self._filled.wait()
