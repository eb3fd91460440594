"""Waiting for many sockets with one task.

A task that waits for its own socket costs a system call to say so and a task switch to hear of it, for every request:
a third of the edge's time when requests are small (docs/performance.md). So idle connections are watched here, level
triggered and armed once, and what can be done without waiting is done in passing, a batch of sockets at a time.
"""

import os
import select
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
    """Calls back when a watched socket is readable; its epoll nests in trio's own."""

    def __init__(self) -> None:
        # Not by `selectors`: what it makes of each ready socket costs more than the look itself.
        self._epoll = select.epoll()
        self._watched: dict[int, Ready] = {}
        # One for all: what is read is parsed, and so copied, before the next is read.
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)

    def watch(self, fd: int, ready: Ready) -> None:
        """Begin to watch; ``ready`` is called again and again for as long as there is something to read."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = ready

    def read(self, fd: int) -> memoryview:
        """What the socket has, as far as there is room; empty at its end. Valid until the next call. Raises OSError."""
        return self._view[: os.readv(fd, (self._buffer,))]

    def forget(self, fd: int) -> None:
        """Watch no longer. Must come before the descriptor is closed."""
        del self._watched[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        """For good. Must come after every `forget`: a connection that ends looks here once more."""
        self._epoll.close()

    async def run(self) -> None:
        """Serve until cancelled."""
        epoll, watched = self._epoll, self._watched
        while True:
            await trio.lowlevel.wait_readable(epoll.fileno())
            turn = _TURN
            for fd, _ in epoll.poll(0):
                ready = watched.get(fd)
                if ready is None:
                    continue  # forgotten since the look
                ready()
                turn -= 1
                if not turn:
                    await trio.lowlevel.checkpoint()
                    turn = _TURN
