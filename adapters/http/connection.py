"""One connection of the edge: requests in, answers out, in order.

A connection has a task, which owns the stream. What needs no waiting is done for it by the poller: read, parse, take
events, and later write the receipt from where the commit ends. The task wakes for what may take time: queries, a peer
that reads slowly, the hand-over to a WebSocket, the end. It notes no times: the server's sweeper looks at all of them.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from .ingest import Reply
from .messages import Headers, Request, kept
from .poller import Poller
from .reader import Limits, Reader, Refusal

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# Bytes that a peer must take within the idle timeout, to be no peer that has stopped reading.
_PIECE: Final = 65_536

# What a connection waits for.
_IDLE, _HEAD, _BODY, _US = range(4)

log = structlog.get_logger("http")


class Handlers(Protocol):
    """Who answers."""

    unsent_bytes: int  # of answers that peers have not read yet, over all connections

    @property
    def ingest(self) -> Callable[[Request, Reply], bool]:
        """Take a request of the hot path; False: it is not one. The reply is called once, now or later."""

    async def other(self, request: Request) -> bytes:
        """The answer to any other request. Raises Refusal."""

    async def upgrade(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """Take the connection over. Raises Refusal."""


class Timeouts(Limits, Protocol):
    """The limits, and how long a peer may take; all in seconds."""

    idle_timeout_s: float
    header_timeout_s: float
    body_timeout_s: float


class Connection(Reader):
    """Takes requests off a stream, in order; each has its answer before the next is begun."""

    __slots__ = (
        "_closing", "_fd", "_gone", "_handlers", "_ingest", "_last", "_owed", "_poller", "_refusal", "_seen_headers",
        "_seen_since", "_seen_state", "_stream", "_timeouts", "_unsent", "_wake", "_watched",
    )  # fmt: skip

    def __init__(self, stream: trio.SocketStream, poller: Poller, limits: Timeouts, handlers: Handlers) -> None:
        super().__init__(limits)
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._poller = poller
        self._watched = False
        self._timeouts = limits
        self._handlers = handlers
        self._ingest = handlers.ingest
        self._owed = False  # a request was begun whose answer is not written yet
        self._unsent = b""  # what is left of an answer that the socket did not take
        self._refusal: Refusal | None = None  # said when everything before it is answered
        self._wake = trio.Event()
        self._closing = False  # the server stops: end when nothing is in hand
        self._last = False  # nothing more is taken: the peer is done, or a request was its last
        self._gone = False  # nothing can be read or written any more
        # What the sweeper saw last, and since when: another list of headers is another request.
        self._seen_state = _US
        self._seen_headers: Headers = self._headers
        self._seen_since = 0.0

    def peer(self) -> str:
        """See `adapters.http.reader.Reader`."""
        address = self._stream.socket.getpeername()
        return str(address[0]) if isinstance(address, tuple) else ""

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
                await self._send(self._refusal.answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone; what it was owed it will ask for again
        finally:
            self._gone = True  # before all else: its descriptor is soon another's, and a commit may yet answer
            self._unwatch()
            del self._parser  # it and this object hold each other

    @property
    def _readable(self) -> bool:
        """Whether more may be read: not past the end, and no more than one request ahead of an answer that is owed."""
        if self._gone or self._last or self._expects or self._refusal is not None:
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
        # A callback that knows the request would hold its body until the commit.
        kept_alive = self._old and request.version == "1.0" and request.keep_alive
        if not self._ingest(request, self._reply_kept if kept_alive else self._reply):
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
        if self._ready or self._last or self._closing or self._expects or self._refusal is not None:
            self._wake.set()

    def _reply_kept(self, data: bytes) -> None:
        self._reply(kept(data))

    # --- in the connection's own task

    async def _catch_up(self) -> None:
        """Do what could not be done in passing: the rest of an answer, and requests that are not of the hot path."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._send(unsent)
            self._owed = False
        while self._ready and not self._owed and not self._gone:
            request = self._ready[0]
            if self._begin(request):
                self._ready.popleft()
                continue
            try:
                if self._rest is not None and len(self._ready) == 1:
                    await self._handlers.upgrade(request, self._rest, self._stream)
                    self._gone = True
                else:
                    data = await self._handlers.other(request)
                    await self._send(kept(data) if request.version == "1.0" and request.keep_alive else data)
                    self._last = self._last or not request.keep_alive
            except Refusal as refusal:
                self._refusal = refusal
                self._ready.clear()
                return
            self._ready.popleft()
        if self._expects and self._refusal is None and not (self._owed or self._gone):
            self._expects = False
            await self._send(_CONTINUE)

    async def _send(self, data: bytes) -> None:
        """Write as fast as the peer reads; one that has stopped reading ends here, as if it were gone."""
        left = len(data)
        self._handlers.unsent_bytes += left
        try:
            with memoryview(data) as view:
                for at in range(0, len(data), _PIECE):
                    with trio.move_on_after(self._timeouts.idle_timeout_s) as patience:
                        await self._stream.send_all(view[at : at + _PIECE])
                    if patience.cancelled_caught:
                        raise trio.BrokenResourceError("the peer does not read")
                    taken = min(left, _PIECE)
                    left -= taken
                    self._handlers.unsent_bytes -= taken
        finally:
            self._handlers.unsent_bytes -= left

    # --- in the sweeper's task

    def sweep(self, now: float) -> int:
        """End what has waited too long for its peer; returns the bytes of body that an incomplete request holds.

        ``now`` is trio's clock. A wait is timed from the first sweep that sees it.
        """
        if self._gone or self._refusal is not None:
            return 0
        state = _BODY if self._head_complete else _HEAD if self._begun else _IDLE
        if self._owed or self._ready:
            state = _US
        if self._seen_state != state or self._seen_headers is not self._headers:
            self._seen_state, self._seen_headers, self._seen_since = state, self._headers, now
            return self._size
        waited = now - self._seen_since
        if state == _IDLE and waited >= self._timeouts.idle_timeout_s:
            self._gone = True
            self._wake.set()
        elif state == _HEAD and waited >= self._timeouts.header_timeout_s:
            self.refuse(Refusal(408, "timeout", "the headers took longer than http.header_timeout_s"))
        elif state == _BODY and waited >= self._timeouts.body_timeout_s:
            self.refuse(Refusal(408, "timeout", "the body took longer than http.body_timeout_s"))
        return self._size

    def refuse(self, refusal: Refusal) -> None:
        """End with this answer in the place of the one to the request that is not complete."""
        self._refusal = refusal
        self._wake.set()
