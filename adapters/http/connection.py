"""One connection of the edge: the parser is httptools, the loop around it is here.

What httptools leaves to us: the size of the head, missing or double ``Host``, and upgrades, on which it always raises.

The loop reads and writes the socket itself where the stream's ways would cost a second system call or task switch a
request (docs/performance.md): it waits until the socket is readable and then reads, and an answer is written at once
by whoever has it. The stream does what is rare: a peer that does not read, and the hand-over to a WebSocket.
"""

import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import httptools
import structlog
import trio

from .ingest import Reply
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


class Handlers(Protocol):
    """Who answers."""

    def ingest(self, request: Request, reply: Reply) -> bool:
        """Take a request of the hot path; False: it is not one. ``reply`` is called once, now or later."""

    async def other(self, request: Request) -> bytes:
        """The answer to any other request."""

    async def upgrade(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """Take the connection over. Raises Refusal."""


# Runs a rare, slow send beside the connection's own task.
StartSoon: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The connection ends with this answer: what follows on it cannot be trusted."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = error(status, code, message, headers=CORS, keep_alive=False)


class Connection:
    """Reads requests off a stream, in order; each has its answer before the next is begun."""

    def __init__(self, stream: trio.SocketStream, limits: Limits, handlers: Handlers, start_soon: StartSoon) -> None:
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._limits = limits
        self._handlers = handlers
        self._start_soon = start_soon
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._owed = 0  # requests whose answer is not written yet: 0 or 1
        self._paid = trio.Event()
        self._open = True
        self._closing = False
        self._scope = trio.CancelScope()
        self._reset()

    def close_when_idle(self) -> None:
        """End after the request in hand; at once when there is none."""
        self._closing = True
        if self._idle:
            self._scope.cancel()

    @property
    def _idle(self) -> bool:
        """Nothing of a request has come, and no answer is owed."""
        return not self._begun and not self._ready and not self._owed

    async def run(self) -> None:
        """Serve until the peer closes, something is refused, or `close_when_idle`."""
        with self._scope:
            try:
                while await self._serve_next():
                    pass
            except Refusal as refusal:
                await self._settled()
                await self._stream.send_all(refusal.answer)
            except (trio.BrokenResourceError, ConnectionError):
                pass  # the peer is gone; what it was owed it will ask for again
        self._open = False

    async def _serve_next(self) -> bool:
        """Read once and answer what is complete; tells whether to go on."""
        await trio.lowlevel.wait_readable(self._fd)
        try:
            data = os.read(self._fd, _RECEIVE_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        rest = self._feed(data)
        while self._ready:
            if self._owed:  # a pipelined request waits for the answer before its own
                await self._settled()
            request = self._ready.popleft()
            if rest is not None and not self._ready:
                await self._handlers.upgrade(request, rest, self._stream)
                return False
            if self._closing:
                request.keep_alive = False
            self._owed = 1
            if not self._handlers.ingest(request, self._reply):
                self._reply(await self._handlers.other(request))
            if not request.keep_alive:
                await self._settled()
                return False
        return not (self._closing and self._idle)

    def _reply(self, data: bytes) -> None:
        """Write the owed answer: at once where the socket takes it, which it nearly always does."""
        if not self._open:
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer is gone; the reading side will see it too
            self._scope.cancel()
            return
        if sent == len(data):
            self._settle()
        else:
            self._start_soon(lambda: self._send_rest(data[sent:]))

    async def _send_rest(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
        self._settle()

    def _settle(self) -> None:
        self._owed = 0
        self._paid.set()
        if self._closing and self._idle:
            self._scope.cancel()

    async def _settled(self) -> None:
        """Wait until no answer is owed."""
        while self._owed:
            self._paid = trio.Event()
            await self._paid.wait()

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
        self._body = b""
        self._more: list[bytes] = []  # pieces of the body after the first
        self._size = 0  # of the head, then of the body
        self._head_complete = False
        self._begun = False  # bytes of a request that is not complete yet have come

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
        size = len(self._target)
        host = None
        hosts = 0
        for name, value in self._headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
                host = value
        self._size = size
        self._check_head()
        if hosts != 1 and (hosts or self._parser.get_http_version() != "1.0"):
            raise Refusal(400, "malformed", "exactly one Host header is needed")
        if host is not None and not self._limits.allows_host(host):
            raise Refusal(421, "misdirected", "this host name is not served here; see http.allowed_hosts")
        self._size = 0

    def on_body(self, body: bytes) -> None:
        """A piece of the body, after chunked coding is undone."""
        self._size += len(body)
        if self._size > self._limits.max_body_bytes:
            limit = self._limits.max_body_bytes
            raise Refusal(413, "body_too_large", f"the body is larger than http.max_body_bytes ({limit})")
        if self._body:
            self._more.append(body)
        else:
            self._body = body

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._ready.append(
            Request(
                self._parser.get_method(),
                self._target,
                self._headers,
                b"".join((self._body, *self._more)) if self._more else self._body,
                self._parser.get_http_version(),
                self._parser.should_keep_alive(),
            )
        )
        self._reset()

    def _check_head(self) -> None:
        if self._size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise Refusal(431, "headers_too_large", f"the headers are larger than http.max_header_bytes ({limit})")
