"""One connection of the edge: the parser is httptools, the loop around it is here.

What httptools leaves to us: the size of the head, missing or double ``Host``, and upgrades, on which it always raises.

A connection has a task, which owns the stream. What needs no waiting is done for it by the poller: read, parse, take
events, and later write the receipt from where the commit ends. The task wakes for what may take time: queries, a peer
that reads slowly, the hand-over to a WebSocket, the end.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import httptools
import structlog
import trio

from .ingest import Reply
from .messages import CORS, Headers, Request, error
from .poller import Poller

# Headers that need a closer look.
_RARE: Final = frozenset(
    {
        b"content-encoding",
        b"transfer-encoding",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)
# Bytes of chunked coding that may come with a byte of body: a chunk of one byte is "1", two line ends, and the byte.
_CODING: Final = 8

log = structlog.get_logger("http")


class Limits(Protocol):
    """What a request may be."""

    max_header_bytes: int
    max_body_bytes: int
    refuse_forwarded: bool

    def allows_host(self, host: bytes) -> bool:
        """Whether the ``Host`` header names us."""


class Handlers(Protocol):
    """Who answers."""

    @property
    def ingest(self) -> Callable[[Request, Reply], bool]:
        """Take a request of the hot path; False: it is not one. The reply is called once, now or later."""

    async def other(self, request: Request) -> bytes:
        """The answer to any other request."""

    async def upgrade(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """Take the connection over. Raises Refusal."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The connection ends with this answer: what follows on it cannot be trusted."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = error(status, code, message, headers=CORS, keep_alive=False)


class Connection:
    """Takes requests off a stream, in order; each has its answer before the next is begun."""

    def __init__(self, stream: trio.SocketStream, poller: Poller, limits: Limits, handlers: Handlers) -> None:
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._poller = poller
        self._watched = False
        self._limits = limits
        self._handlers = handlers
        self._ingest = handlers.ingest
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._owed = False  # a request was begun whose answer is not written yet
        self._unsent = b""  # what is left of an answer that the socket did not take
        self._rest: bytes | None = None  # what came after the head of a request that wants to upgrade
        self._refusal: Refusal | None = None  # said when everything before it is answered
        self._wake = trio.Event()
        self._closing = False  # the server stops: end when nothing is in hand
        self._last = False  # nothing more is taken: the peer is done, or a request was its last
        self._gone = False  # nothing can be read or written any more
        self._began = False  # a request began in what was read last
        self._reset()

    def close_when_idle(self) -> None:
        """End after the request in hand; at once when there is none."""
        self._closing = True
        self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether a request has begun that is not answered yet."""
        return self._begun or self._owed or bool(self._ready)

    async def run(self) -> None:
        """Serve until the peer closes, something is refused, or `close_when_idle`."""
        try:
            while not self._finished:
                self._watch()
                await self._wake.wait()
                self._wake = trio.Event()
                self._unwatch()
                await self._catch_up()
            if self._refusal is not None and not self._gone and not self._last:
                await self._stream.send_all(self._refusal.answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone; what it was owed it will ask for again
        finally:
            self._unwatch()
            self._gone = True
            del self._parser  # it and this object hold each other

    @property
    def _readable(self) -> bool:
        """Whether more may be read: not past the end, and no more than one request ahead of an answer that is owed."""
        if self._gone or self._last or self._refusal is not None:
            return False
        # What follows a request to upgrade belongs to whom it is handed over.
        return self._rest is None and not (self._owed and self._ready)

    @property
    def _finished(self) -> bool:
        if self._gone or self._owed or self._ready:
            return self._gone
        return self._last or self._refusal is not None or (self._closing and not self._begun)

    def _watch(self) -> None:
        if not self._watched and self._readable:
            self._poller.watch(self._fd, self._on_readable)
            self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            self._poller.forget(self._fd)
            self._watched = False

    # --- without waiting, in the poller's task or the commit loop's

    def _on_readable(self) -> None:
        """Read once and take what is complete, as far as that needs no waiting."""
        if not self._watched:
            return  # forgotten while the poller had it in hand: the descriptor may be another's by now
        try:
            data = self._poller.read(self._fd)
            if data:
                self._feed(data)
            else:
                self._last = True  # a peer that has shut down its side may still want its answer
            self._take()
        except BlockingIOError:
            return
        except OSError:
            self._gone = True
        except Refusal as refusal:
            self._refusal = refusal
        except Exception:
            log.exception("connection failed")
            self._gone = True
        if not self._readable:
            self._unwatch()
            self._wake.set()

    def _take(self) -> None:
        """Begin requests of the hot path; wake the task for the first that is another."""
        while self._ready and not self._owed:
            if not self._begin(self._ready[0]):
                self._wake.set()
                return
            self._ready.popleft()

    def _begin(self, request: Request) -> bool:
        """Hand a request of the hot path over; False: it is not one."""
        alone = len(self._ready) == 1
        if alone and (self._closing or self._last):
            request.keep_alive = False
        if not request.keep_alive and not alone:
            self._ready = deque([request])  # what was pipelined behind the last request is not answered
            self._rest = None
        if self._rest is not None and alone:
            return False
        self._owed = True
        if not self._ingest(request, self._reply):
            self._owed = False
            return False
        self._last = self._last or not request.keep_alive
        return True

    def _reply(self, data: bytes) -> None:
        """Write the owed answer: at once where the socket takes it, which it nearly always does."""
        if self._gone:
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._gone = True
            self._wake.set()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._wake.set()
            return
        self._owed = False
        if self._ready or self._last or self._closing or self._refusal is not None:
            self._wake.set()

    # --- in the connection's own task

    async def _catch_up(self) -> None:
        """Do what could not be done in passing: the rest of an answer, and requests that are not of the hot path."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._stream.send_all(unsent)
            self._owed = False
        while self._ready and not self._owed and not self._gone:
            request = self._ready[0]
            if self._begin(request):
                self._ready.popleft()
                continue
            if self._rest is not None and len(self._ready) == 1:
                try:
                    await self._handlers.upgrade(request, self._rest, self._stream)
                except Refusal as refusal:
                    self._refusal = refusal
                else:
                    self._gone = True
            else:
                await self._stream.send_all(await self._handlers.other(request))
                self._last = self._last or not request.keep_alive
            self._ready.popleft()

    def _feed(self, data: memoryview) -> None:
        """Parse what was read into `_ready`, or raise Refusal."""
        self._began = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = bytes(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as wrapped:
            if isinstance(wrapped.__context__, Refusal):
                raise wrapped.__context__ from None
            raise
        except httptools.HttpParserError as fault:
            raise Refusal(400, "malformed", f"not HTTP/1.1: {fault}") from None
        if self._begun and not self._began:
            self._fed += len(data)  # what it began with is not counted: other requests may have come before it
            self._check_coding()

    # --- httptools callbacks

    def _reset(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._version = "1.1"
        self._content_type: bytes | None = None
        self._content_encoding: bytes | None = None
        self._body = b""
        self._more: list[bytes] = []  # pieces of the body after the first
        self._size = 0  # of the body
        self._fed = 0  # bytes after those that it began with
        self._head_complete = False
        self._begun = False  # bytes of a request that is not complete yet have come

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun = self._began = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers of a chunked body come here too; nothing needs them."""
        if self._head_complete:
            return
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
            elif name == b"content-type":
                self._content_type = value
            elif name in _RARE:
                self._note_rare(name, value)
        self._check_head(size)
        version = self._version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refusal(400, "malformed", f"HTTP/{version} is not spoken here")
        if hosts != 1 and (hosts or version != "1.0"):
            raise Refusal(400, "malformed", "exactly one Host header is needed")
        if host is not None and not self._limits.allows_host(host):
            raise Refusal(421, "misdirected", "this host name is not served here; see http.allowed_hosts")

    def _note_rare(self, name: bytes, value: bytes) -> None:
        if name == b"content-encoding":
            self._content_encoding = value
        elif name == b"transfer-encoding":
            if self._parser.get_http_version() == "1.0":  # a proxy between may frame it by Content-Length instead
                raise Refusal(400, "malformed", "HTTP/1.0 has no Transfer-Encoding")
        elif self._limits.refuse_forwarded:
            raise Refusal(403, "forwarded", "forwarded requests need auth.allow_open_network while auth.mode is open")

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
                self._parser.should_keep_alive(),
                self._version,
                self._content_type,
                self._content_encoding,
            )
        )
        self._reset()

    def _check_coding(self) -> None:
        """What came of a request that is not body: its head, the framing of its chunks, its trailers."""
        body = self._size if self._head_complete else 0
        self._check_head(self._fed - body - _CODING * body)

    def _check_head(self, size: int) -> None:
        if size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise Refusal(431, "headers_too_large", f"the headers are larger than http.max_header_bytes ({limit})")
