"""Waiting for many sockets with one task.

A task that waits for its own socket costs a system call to say so and a task switch to hear of it, for every request:
a third of the edge's time when requests are small (docs/performance.md). So idle connections are watched here, level
triggered and armed once, and what can be done without waiting is done in passing, a batch of sockets at a time.
"""

import os
import selectors
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

# Sockets served between two looks at other tasks: about 2 ms of work.
_TURN: Final = 64

# Bytes read at once: room for most requests; a batch of 1000 events takes some tens of these.
_RECEIVE_BYTES: Final = 16_384

# Called when the socket can be read. Must not wait, and must not raise.
Ready: TypeAlias = Callable[[], None]


class Poller:
    """Calls back when a watched socket is readable; its descriptor nests in trio's own epoll or kqueue."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # One for all: what is read is parsed, and so copied, before the next is read.
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)

    def watch(self, fd: int, ready: Ready) -> None:
        """Begin to watch; ``ready`` is called again and again for as long as there is something to read."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def read(self, fd: int) -> memoryview:
        """What the socket has, as far as there is room; empty at its end. Valid until the next call. Raises OSError."""
        return self._view[: os.readv(fd, (self._buffer,))]

    def forget(self, fd: int) -> None:
        """Watch no longer. Must come before the descriptor is closed."""
        self._selector.unregister(fd)

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._selector as selector:
            while True:
                await trio.lowlevel.wait_readable(selector.fileno())
                turn = _TURN
                for key, _ in selector.select(0):
                    key.data()
                    turn -= 1
                    if not turn:
                        await trio.lowlevel.checkpoint()
                        turn = _TURN
