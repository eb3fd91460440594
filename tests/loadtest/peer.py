"""HTTP servers that do as a test says: one that is scripted, some that stand before a daemon and change what passes."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

RECEIPT = b'{"status":"received","accepted":1,"duplicates":0,"rejected":[]}'


def answer(status=202, body=RECEIPT, *headers):
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Peer:
    """Answers each request with what ``script(number, head, body)`` gives; None closes without an answer."""

    def __init__(self, script: Callable[..., Awaitable[bytes | None]]) -> None:
        self.script = script
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some()
                    if not more:
                        return
                    data += more
                head, _, rest = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                wanted = int(length[1]) if length else 0
                while len(rest) < wanted:
                    rest += await stream.receive_some()
                body, data = rest[:wanted], rest[wanted:]
                self.requests.append((head, body))
                said = await self.script(len(self.requests), head, body)
                if said is None:
                    return
                await stream.send_all(said)
                if b"Connection: close" in said or b"\r\n\r\n" not in said or not said.startswith(b"HTTP/"):
                    return  # as announced, or in the middle of an answer
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def serving(script: Callable[..., Awaitable[bytes | None]]) -> AsyncIterator[Peer]:
    peer = Peer(script)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1"))
        peer.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield peer
        nursery.cancel_scope.cancel()


class Proxy:
    """Passes all on to a daemon and back."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self._port = port

    def own_answer(self, data: bytes) -> bytes | None:
        """What the client is answered in the daemon's place, which then hears nothing of it."""
        return None

    def told(self, data: bytes, request: bytes) -> bytes | None:
        """What of the daemon's words reaches the client; `request` is what the connection began with. None: cut it."""
        return data

    async def serve(self, stream: trio.SocketStream) -> None:
        daemon = await trio.open_tcp_stream("127.0.0.1", self._port)
        try:
            async with trio.open_nursery() as nursery:
                request = await stream.receive_some()
                nursery.start_soon(self._back, daemon, stream, request, nursery.cancel_scope)
                data = request
                while data:
                    own = self.own_answer(data)
                    await (daemon.send_all(data) if own is None else stream.send_all(own))
                    data = await stream.receive_some()
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(daemon)

    async def _back(
        self, daemon: trio.SocketStream, stream: trio.SocketStream, request: bytes, scope: trio.CancelScope
    ) -> None:
        while data := await daemon.receive_some():
            told = self.told(bytes(data), request)
            if told is None:
                break
            await stream.send_all(told)
        scope.cancel()


class Forgetful(Proxy):
    """Answers 202 itself to the first POST that holds a failed run, after so many others: that event is lost."""

    def __init__(self, port: int, after: int) -> None:
        super().__init__(port)
        self.lost: str | None = None
        self._posts = 0
        self._after = after

    def own_answer(self, data: bytes) -> bytes | None:
        # The lean transport sends a request whole, and loopback takes it whole.
        if not data.startswith(b"POST ") or self.lost is not None:
            return None
        self._posts += 1
        if self._posts <= self._after or b'"hasError":true' not in data:
            return None
        found = re.search(rb'"eventId":"([^"]+)"', data)
        assert found is not None
        self.lost = found[1].decode()
        return answer()


class Forging(Proxy):
    """Tells subscribers, and nobody else, something else of the same length in place of a text."""

    def __init__(self, port: int, text: bytes, other: bytes) -> None:
        assert len(text) == len(other)
        super().__init__(port)
        self.forged = 0
        self._text, self._other = text, other

    def told(self, data: bytes, request: bytes) -> bytes | None:
        if b"Upgrade: websocket" not in request:
            return data
        self.forged += data.count(self._text)
        return data.replace(self._text, self._other)


class Cutting(Proxy):
    """Cuts a subscriber's connection in place of telling it an alert."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.cuts = 0

    def told(self, data: bytes, request: bytes) -> bytes | None:
        if b"Upgrade: websocket" not in request or b'"type":"alerts"' not in data:
            return data
        self.cuts += 1
        return None


P = TypeVar("P", bound=Proxy)


@asynccontextmanager
async def standing_before(proxy: P) -> AsyncIterator[P]:
    """Serves it."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        proxy.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()
