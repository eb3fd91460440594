"""How requests reach the daemon: httpx as other programs would, or a lean client of ours for high rates.

Both keep connections open, and one line is one person: a line sends one request at a time.
"""

import select
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

import httptools
import httpx
import trio

from loadtest.errors import TransportError
from loadtest.target import Target

RECEIVE_BYTES: Final = 65536
# cell_monitor gives up on an answer after this long.
PATIENCE_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class Line(Protocol):
    """One person's way to the daemon. TransportError when there is no whole answer within `PATIENCE_S`."""

    async def post(self, path: str, body: bytes) -> Answer:
        """Send JSON."""

    async def get(self, path: str) -> Answer:
        """Ask."""

    async def aclose(self) -> None:
        """Let go of the connection."""


class Transport(Protocol):
    """Opens lines. Used as an async context manager; lines are not used after its end."""

    def line(self) -> Line:
        """A line of one's own; connects when it is first used."""

    async def __aenter__(self) -> Self:
        """Begin."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""


class HttpxTransport:
    """httpx, one client with a connection for whoever needs one: as a real program would send, at some 1 ms of CPU."""

    def __init__(self, target: Target) -> None:
        self._client = httpx.AsyncClient(
            base_url=target.url,
            headers=dict(target.headers),
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60),
            trust_env=False,  # no proxy between us and what we measure
        )

    def line(self) -> Line:
        """See `Transport`."""
        return _HttpxLine(self._client)

    async def __aenter__(self) -> Self:
        """See `Transport`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Transport`."""
        with trio.move_on_after(1, shield=True):
            await self._client.aclose()


@dataclass(frozen=True, slots=True)
class _HttpxLine:
    _client: httpx.AsyncClient

    async def post(self, path: str, body: bytes) -> Answer:
        return await self._send("POST", path, body)

    async def get(self, path: str) -> Answer:
        return await self._send("GET", path, None)

    async def aclose(self) -> None:
        """Connections are the client's."""

    async def _send(self, method: str, path: str, body: bytes | None) -> Answer:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            with trio.fail_after(PATIENCE_S):
                answer = await self._client.request(method, path, content=body, headers=headers)
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise TransportError(_short(error)) from error
        return Answer(answer.status_code, answer.content)


class LeanTransport:
    """httptools over trio streams with prepared heads: some 0.1 ms of CPU a request, one connection a line."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = ssl.create_default_context() if target.tls else None

    def line(self) -> Line:
        """See `Transport`."""
        return _LeanLine(self._target, self._tls)

    async def __aenter__(self) -> Self:
        """See `Transport`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Transport`."""


class _Reader:
    """Reads the answers of one connection, one after the other.

    It and httptools' parser hold each other: one for each answer would leave the cyclic collector so many that its
    passes of 0.1 s and more were taken for the daemon's times.
    """

    __slots__ = ("_parser", "body", "done", "keep", "status")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.expect()

    def expect(self) -> None:
        """The next answer begins."""
        self.status = 0
        self.body = b""
        self.done = False
        self.keep = False

    def feed(self, data: bytes | bytearray) -> None:
        """What came. Raises httptools.HttpParserError for what is no answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        # An interim answer (1xx) is not the answer.
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self.keep = self._parser.should_keep_alive()
            self.done = True


@dataclass(slots=True)
class _LeanLine:
    _target: Target
    _tls: ssl.SSLContext | None
    _stream: trio.abc.Stream | None = None
    _reader: _Reader = field(default_factory=_Reader)
    _heads: dict[str, bytes] = field(default_factory=dict)

    async def post(self, path: str, body: bytes) -> Answer:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head("POST", path, "Content-Type: application/json\r\nContent-Length: ")
        return await self._exchange(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    async def get(self, path: str) -> Answer:
        return await self._exchange(self._head("GET", path, "\r\n"))

    def _head(self, method: str, path: str, rest: str) -> bytes:
        given = "".join(f"{name}: {value}\r\n" for name, value in self._target.headers)
        return f"{method} {path} HTTP/1.1\r\nHost: {self._target.netloc}\r\n{given}{rest}".encode()

    async def aclose(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    async def _exchange(self, request: bytes) -> Answer:
        try:
            with trio.fail_after(PATIENCE_S):
                if self._stream is not None and _has_ended(self._stream):
                    await self.aclose()  # while it was idle: that is not the daemon's fault
                if self._stream is None:
                    self._stream, self._reader = await self._connect(), _Reader()
                answer = await self._once(self._stream, request)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, httptools.HttpParserError) as error:
            await self.aclose()
            raise TransportError(_short(error)) from error
        except BaseException:
            await self.aclose()  # half of an answer may be on its way: nobody can use this connection again
            raise
        if answer is None:
            await self.aclose()
            raise TransportError("cut off")
        return answer

    async def _connect(self) -> trio.abc.Stream:
        target = self._target
        if self._tls is not None:
            return await trio.open_ssl_over_tcp_stream(
                target.host, target.port, ssl_context=self._tls, https_compatible=True
            )
        return await trio.open_tcp_stream(target.host, target.port)

    async def _once(self, stream: trio.abc.Stream, request: bytes) -> Answer | None:
        """None when the peer closed without a byte."""
        reader = self._reader
        reader.expect()
        await stream.send_all(request)
        began = False
        while not reader.done:
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                if began:
                    raise trio.BrokenResourceError("cut within the answer")
                return None
            began = True
            reader.feed(data)
        if not reader.keep:
            await self.aclose()
        return Answer(reader.status, reader.body)


def _has_ended(stream: trio.abc.Stream) -> bool:
    """Whether the peer of an idle connection has closed it: there is nothing else that it could have said."""
    socket = stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket  # type: ignore[attr-defined]
    look = select.poll()
    look.register(socket.fileno(), select.POLLIN)
    return bool(look.poll(0))


def _short(error: BaseException) -> str:
    """A kind to count by: without addresses or ports."""
    if isinstance(error, trio.TooSlowError | httpx.TimeoutException):
        return "no answer in time"
    return "no connection" if isinstance(error, httpx.ConnectError | OSError) else "cut off"


TRANSPORTS: Final[dict[str, Callable[[Target], Transport]]] = {"httpx": HttpxTransport, "lean": LeanTransport}
