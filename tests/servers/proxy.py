"""A TCP proxy before a server: it resets connections in the middle of what they carry, or lets them stall."""

import socket
import struct
from contextlib import suppress
from typing import Literal

import trio

CHUNK = 4096  # bytes read in one go: small, so that a fault falls within a request or an answer
Direction = Literal["up", "down"]
# close() sends a reset in place of an end: no lingering, so nothing that is buffered arrives.
ABORT = struct.pack("ii", 1, 0)


class Proxy:
    """Start `run` in a nursery; clients connect to `port`. One fault at a time is armed, by `reset` or `stall`."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._open: set[trio.SocketStream] = set()
        self._flows = trio.Event()
        self._flows.set()
        self._fault: Literal["reset", "stall"] | None = None
        self._direction: Direction = "up"
        self._left = 0
        self._struck = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._serve, listeners, task_status=task_status)

    async def reset(self, direction: Direction, after: int) -> None:
        """Reset every connection once ``after`` more bytes went ``up`` to the server or ``down`` from it."""
        await self._arm("reset", direction, after)

    async def stall(self, direction: Direction, after: int) -> None:
        """Carry nothing any more once so many bytes went; connections stay open, and new ones are taken."""
        await self._arm("stall", direction, after)

    def resume(self) -> None:
        """End a stall: what was sent meanwhile arrives."""
        self._flows.set()

    def reset_now(self) -> None:
        """Reset every connection; ends a stall too, whose bytes are lost."""
        for stream in self._open:
            with suppress(OSError):
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            stream.socket.close()
        self._open.clear()
        self._flows.set()

    async def _arm(self, fault: Literal["reset", "stall"], direction: Direction, after: int) -> None:
        self._fault, self._direction, self._left, self._struck = fault, direction, after, trio.Event()
        await self._struck.wait()

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        ends = {client, server}
        self._open |= ends
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, client, server, "up", nursery.cancel_scope)
                nursery.start_soon(self._carry, server, client, "down", nursery.cancel_scope)
        finally:
            self._open -= ends
            for stream in ends:
                await trio.aclose_forcefully(stream)

    async def _carry(
        self, source: trio.SocketStream, target: trio.SocketStream, direction: Direction, scope: trio.CancelScope
    ) -> None:
        """Until either end closes: then both are closed."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(CHUNK):
                self._strike(direction, len(data))
                await self._flows.wait()
                await target.send_all(data)
        scope.cancel()

    def _strike(self, direction: Direction, size: int) -> None:
        if self._fault is None or direction != self._direction:
            return
        self._left -= size
        if self._left >= 0:
            return
        if self._fault == "reset":
            self.reset_now()
        else:
            self._flows = trio.Event()
        self._fault = None
        self._struck.set()
