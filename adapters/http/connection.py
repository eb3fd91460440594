"""One connection of the edge: the parser is httptools, the loop around it is here.

What httptools leaves to us: the size of the head, missing or double ``Host``, and upgrades, on which it always raises.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import httptools
import structlog
import trio

from .messages import CORS, Headers, Request, error

# Bytes asked of the socket at once: a batch of 1000 events is 10 to 20 of these.
_RECEIVE_BYTES: Final = 65_536

log = structlog.get_logger("http")


class Limits(Protocol):
    """What a request may be."""

    max_header_bytes: int
    max_body_bytes: int

    def allows_host(self, host: bytes) -> bool:
        """Whether the ``Host`` header names us."""


Handler = Callable[[Request, "Connection"], Awaitable[bytes]]
Upgrade = Callable[[Request, bytes, trio.SocketStream], Awaitable[None]]


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The connection ends with this answer: what follows on it cannot be trusted."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = error(status, code, message, headers=CORS, keep_alive=False)


class Connection:
    """Reads requests off a stream, in order, and sends each its answer before the next is begun."""

    def __init__(self, stream: trio.SocketStream, limits: Limits, handler: Handler, upgrade: Upgrade) -> None:
        self._stream = stream
        self._limits = limits
        self._handler = handler
        self._upgrade = upgrade
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._begun = False  # bytes of a request that is not complete yet have come
        self._closing = False
        self._scope = trio.CancelScope()
        self._reset()

    def close_when_idle(self) -> None:
        """End after the request in hand; at once when there is none."""
        self._closing = True
        if self.idle:
            self._scope.cancel()

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._waiting and not self._begun

    async def run(self) -> None:
        """Serve until the peer closes, something is refused, or `close_when_idle`."""
        with self._scope:
            try:
                while await self._serve_next():
                    pass
            except Refusal as refusal:
                await self._stream.send_all(refusal.answer)
            except trio.BrokenResourceError:
                pass  # the peer is gone; what it was owed it will ask for again

    async def _serve_next(self) -> bool:
        """Read once and answer what is complete; tells whether to go on."""
        self._waiting = True
        data = await self._stream.receive_some(_RECEIVE_BYTES)
        self._waiting = False
        if not data:
            return False
        rest = self._feed(data)
        while self._ready:
            request = self._ready.popleft()
            if rest is not None and not self._ready:
                await self._upgrade(request, rest, self._stream)
                return False
            if self._closing:
                request.keep_alive = False
            await self._stream.send_all(await self._handler(request, self))
            if not request.keep_alive:
                return False
        return not (self._closing and not self._begun)

    def _feed(self, data: bytes) -> bytes | None:
        """Parse; returns None, or what came after the head of a request that wants to upgrade."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as wrapped:
            if isinstance(wrapped.__context__, Refusal):
                raise wrapped.__context__ from None
            raise
        except httptools.HttpParserError as fault:
            raise Refusal(400, "malformed", f"not HTTP/1.1: {fault}") from None
        if self._begun and not self._head_complete:
            self._size += len(data)
            self._check_head()
        return None

    # --- httptools callbacks

    def _reset(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._chunks: list[bytes] = []
        self._size = 0  # of the head, then of the body
        self._head_complete = False
        self._begun = False
        self._waiting = False

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Everything but the body is there: refuse what must not go on."""
        self._head_complete = True
        self._size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        self._check_head()
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) != 1 and not (not hosts and self._parser.get_http_version() == "1.0"):
            raise Refusal(400, "malformed", "exactly one Host header is needed")
        if hosts and not self._limits.allows_host(hosts[0]):
            raise Refusal(421, "misdirected", "this host name is not served here; see http.allowed_hosts")
        self._size = 0

    def on_body(self, body: bytes) -> None:
        """A piece of the body, after chunked coding is undone."""
        self._size += len(body)
        if self._size > self._limits.max_body_bytes:
            limit = self._limits.max_body_bytes
            raise Refusal(413, "body_too_large", f"the body is larger than http.max_body_bytes ({limit})")
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._ready.append(
            Request(
                method=self._parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks),
                version=self._parser.get_http_version(),
                keep_alive=self._parser.should_keep_alive(),
            )
        )
        self._reset()

    def _check_head(self) -> None:
        if self._size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise Refusal(431, "headers_too_large", f"the headers are larger than http.max_header_bytes ({limit})")
