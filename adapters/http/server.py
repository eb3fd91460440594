"""The HTTP server: listeners, routing between the hot path and the rest, and an orderly end."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Final

import structlog
import trio

from engine.errors import StartError

from .asgi import AsgiBridge
from .connection import Connection
from .forwarded import Proxies
from .ingest import Ingest
from .messages import Request, answer, error, internal
from .poller import Poller
from .reader import Refusal

STREAM_PATH: Final = b"/api/v1/stream"
# Connections that may wait to be accepted. 5,000 students' clients reconnecting after a restart fit.
_BACKLOG: Final = 4096
# Bytes over all connections, past which what waits for its peer is refused instead: answers that are not read, and
# bodies that are not complete. Both are far above what a school's clients need at once.
_MAX_UNSENT: Final = 64 * 2**20
_MAX_INCOMPLETE: Final = 256 * 2**20
# A sweep is spread over its period: in parts of fewer than so many connections, until there are so many parts. Those
# whose time is over at once (they come again at once) would stall all others for tens of milliseconds.
_SWEEP_PARTS: Final = 32
_SWEPT_AT_ONCE: Final = 32
# Connections past http.max_connections that are told so at once; further ones are closed without a word.
_MAX_TURNED_AWAY: Final = 256
_LOOPBACK: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
# A connection younger than this at the stop, in seconds, gets so long for its first request: a client may send again
# what it sent on an idle connection that was closed, but takes it for a failure on a new one.
_FRESH_S: Final = 0.5

log = structlog.get_logger("http")

WebSocketHandler = Callable[[Request, bytes, trio.SocketStream], Awaitable[None]]


class HttpServer:
    """Construct, `bind`, `run`, `stop`."""

    def __init__(
        self,
        ingest_handler: Ingest,
        bridge: AsgiBridge,
        websocket: WebSocketHandler,
        *,
        host: str,
        port: int,
        allowed_hosts: tuple[str, ...],
        refuse_forwarded: bool,
        max_header_bytes: int,
        max_body_bytes: int,
        max_connections: int,
        idle_timeout_s: float,
        header_timeout_s: float,
        body_timeout_s: float,
        trusted_proxies: tuple[str, ...] = (),
        public_url: str = "",
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes
        self.refuse_forwarded = refuse_forwarded
        self.idle_timeout_s = idle_timeout_s
        self.header_timeout_s = header_timeout_s
        self.body_timeout_s = body_timeout_s
        self.proxies = Proxies(trusted_proxies)
        self.unsent_bytes = 0
        self._max_connections = max_connections
        self._turned_away = 0
        self._ingest_handler = ingest_handler
        self.ingest = ingest_handler.take
        self._bridge = bridge
        self._websocket = websocket
        self._host = host
        self._port = port
        self._inherited = inherited
        self._public_host = {_without_port(public_url.lower().encode().partition(b"://")[2].rstrip(b"/"))} - {b""}
        self.allow_hosts(allowed_hosts)
        self._poller = Poller()
        self._listeners: list[trio.SocketListener] = []
        self._accepting = trio.CancelScope()
        self._connections: dict[Connection, float] = {}  # and since when, on trio's clock
        self._server = (host, port)

    async def bind(self) -> str:
        """Listen, or take over the sockets that a process manager listens on; returns the base URL.

        Raises StartError when the address cannot be had.
        """
        if self._inherited:
            self._listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in self._inherited]
            self._server = self._inherited[0].getsockname()[:2]
            return f"http://{_host_of(self._server[0]).decode()}:{self._server[1]}"
        try:
            self._listeners = await trio.open_tcp_listeners(self._port, host=self._host, backlog=_BACKLOG)
        except OSError as fault:
            raise StartError(
                f"http.port: cannot listen on {self._host}:{self._port}: {fault.strerror or fault}"
            ) from None
        address = self._listeners[0].socket.getsockname()
        self._server = (self._host, address[1])
        return f"http://{_host_of(self._host).decode()}:{address[1]}"

    async def run(self) -> None:
        """Accept until `stop`, then until the connections in hand are done. Cancel it to cut them."""
        with closing(self._poller):
            async with trio.open_nursery() as polling:
                polling.start_soon(self._poller.run)
                polling.start_soon(self._sweep)
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        await trio.serve_listeners(self._serve, self._listeners, handler_nursery=connections)
                    await trio.lowlevel.checkpoint()  # so that those accepted last are among them
                    if self._connections:
                        await trio.sleep_until(max(self._connections.values()) + _FRESH_S)
                    for connection in list(self._connections):
                        connection.close_when_idle()
                polling.cancel_scope.cancel()

    def stop(self) -> None:
        """No new connections; each one ends after the request in hand.

        A listening socket that was inherited stays open with who handed it over: whoever connects waits in its backlog.
        """
        self._accepting.cancel()
        for listener in self._listeners:
            listener.socket.close()
        fresh = trio.current_time() - _FRESH_S
        for connection, since in list(self._connections.items()):
            if connection.busy or since < fresh:
                connection.close_when_idle()

    def limit_bodies(self, size: int) -> None:
        """Take bodies of so many bytes at most from now on, as they are sent and inflated."""
        self.max_body_bytes = self._ingest_handler.max_body_bytes = size

    def allow_hosts(self, names: Collection[str]) -> None:
        """Answer to these names from now on; where there are none, to loopback's and the address listened on."""
        addresses = [each.getsockname()[0] for each in self._inherited] or [self._host]
        own = _LOOPBACK | set(map(_host_of, addresses))
        self._allowed = ({name.lower().encode() for name in names} or own) | self._public_host
        self._approved: set[bytes] = set()

    def allows_host(self, host: bytes) -> bool:
        """See `adapters.http.connection.Limits`. Ports are ignored."""
        if host in self._approved:
            return True
        if _without_port(host.lower()) not in self._allowed:
            return False
        if len(self._approved) < len(self._allowed) * 4:
            self._approved.add(host)
        return True

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection ends only itself, whatever goes wrong in it."""
        if len(self._connections) >= self._max_connections:
            await self._turn_away(stream)
            return
        connection = Connection(stream, self._poller, self, self)
        self._connections[connection] = trio.current_time()
        try:
            await connection.run()
        except Exception:
            log.exception("connection failed")
        finally:
            self._connections.pop(connection, None)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                await _linger_close(stream)

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        if self._turned_away >= _MAX_TURNED_AWAY:
            await trio.aclose_forcefully(stream)
            return
        self._turned_away += 1
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                await stream.send_all(_full("http.max_connections are open").answer)
                await _linger_close(stream)
        finally:
            self._turned_away -= 1

    async def _sweep(self) -> None:
        """Look at every connection, a few times within the shortest timeout: no connection has a timer of its own."""
        period = min(1.0, self.idle_timeout_s / 4, self.header_timeout_s / 4, self.body_timeout_s / 4)
        while True:
            everybody = tuple(self._connections)
            parts = min(_SWEEP_PARTS, 1 + len(everybody) // _SWEPT_AT_ONCE)
            held: dict[Connection, int] = {}
            for part in range(parts):
                await trio.sleep(period / parts)
                now = trio.current_time()
                # Every so many, not so many in a row: those in a row came at the same time.
                for connection in everybody[part::parts]:
                    if size := connection.sweep(now):
                        held[connection] = size
            incomplete = sum(held.values())
            for connection in sorted(held, key=held.__getitem__, reverse=True):
                if incomplete <= _MAX_INCOMPLETE:
                    break
                connection.refuse(_full("too many bodies are on their way"))
                incomplete -= held[connection]

    # --- adapters.http.connection.Handlers

    async def other(self, request: Request) -> bytes:
        """The Starlette application's routes."""
        if self.unsent_bytes > _MAX_UNSENT:
            raise _full("too many answers wait to be read")
        if request.target == b"*":
            return answer(204, headers=b"allow: GET, HEAD, POST, OPTIONS\r\n", keep_alive=request.keep_alive)
        if request.path == STREAM_PATH:
            headers = b"upgrade: websocket\r\nconnection: upgrade\r\n"
            return error(
                426, "upgrade_required", "this is a WebSocket", headers=headers, keep_alive=request.keep_alive,
                with_body=request.method != b"HEAD",
            )  # fmt: skip
        try:
            return await self._bridge(request, (request.client, 0), self._server)
        except Exception:
            log.exception(
                "request failed", method=request.method.decode("latin-1"), path=request.path.decode("latin-1")
            )
            return internal(request)

    async def upgrade(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """Hand a connection over to the WebSocket; only a body-less GET on the stream's path may."""
        wanted = (request.header(b"upgrade") or b"").lower()
        if request.method != b"GET" or request.path != STREAM_PATH or wanted != b"websocket" or _has_body(request):
            raise Refusal(400, "bad_upgrade", f"only {STREAM_PATH.decode()} upgrades, by GET, and only to websocket")
        await self._websocket(request, rest, stream)


def _has_body(request: Request) -> bool:
    """Whether a request that upgrades announces a body: the parser leaves it among what follows the head."""
    length = request.header(b"content-length")
    return request.header(b"transfer-encoding") is not None or (length is not None and int(length) > 0)


def _full(message: str) -> Refusal:
    return Refusal(503, "overloaded", message, b"retry-after: 1\r\n")


async def _linger_close(stream: trio.SocketStream) -> None:
    """Close so that the peer can still read the answer: unread input would turn the close into a reset."""
    with trio.move_on_after(1, shield=True):
        await stream.send_eof()
        discard = partial(stream.receive_some, 65_536)
        for _ in range(64):
            if not await discard():
                break
    await trio.aclose_forcefully(stream)


def _without_port(host: bytes) -> bytes:
    """A port may be empty (RFC 3986 section 3.2.3)."""
    name, colon, port = host.rpartition(b":")
    return name if colon and (port.isdigit() or not port) else host


def _host_of(host: str) -> bytes:
    """A host as it stands in a URL and in the ``Host`` header."""
    try:
        return f"[{host}]".encode() if ipaddress.ip_address(host).version == 6 else host.encode()
    except ValueError:
        return host.lower().encode()
