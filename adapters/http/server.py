"""The HTTP server: listeners, routing between the hot path and the rest, and an orderly end."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio

from engine.errors import StartError

from .asgi import AsgiBridge
from .connection import Connection, Refusal
from .ingest import Ingest
from .messages import Request, internal
from .poller import Poller

STREAM_PATH: Final = b"/api/v1/stream"
# Connections that may wait to be accepted. 5,000 students' clients reconnecting after a restart fit.
_BACKLOG: Final = 4096
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
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes
        self.refuse_forwarded = refuse_forwarded
        self.ingest = ingest_handler.take
        self._bridge = bridge
        self._websocket = websocket
        self._host = host
        self._port = port
        self._inherited = inherited
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
        async with trio.open_nursery() as polling:
            polling.start_soon(self._poller.run)
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

    def allow_hosts(self, names: Collection[str]) -> None:
        """Answer to these names from now on; where there are none, to loopback's and the address listened on."""
        addresses = [each.getsockname()[0] for each in self._inherited] or [self._host]
        self._allowed = {name.lower().encode() for name in names} or _LOOPBACK | set(map(_host_of, addresses))
        self._approved: set[bytes] = set()

    def allows_host(self, host: bytes) -> bool:
        """See `adapters.http.connection.Limits`. Ports are ignored."""
        if host in self._approved:
            return True
        name = host.lower()
        if not name.endswith(b"]"):
            head, colon, port = name.rpartition(b":")
            name = head if colon and port.isdigit() else name
        if name not in self._allowed:
            return False
        if len(self._approved) < len(self._allowed) * 4:
            self._approved.add(host)
        return True

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection ends only itself, whatever goes wrong in it."""
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

    # --- adapters.http.connection.Handlers

    async def other(self, request: Request) -> bytes:
        """The Starlette application's routes."""
        try:
            return await self._bridge(request, ("", 0), self._server)
        except Exception:
            log.exception(
                "request failed", method=request.method.decode("latin-1"), path=request.path.decode("latin-1")
            )
            return internal(request)

    async def upgrade(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """Hand a connection over to the WebSocket; only a body-less GET on the stream's path may."""
        wanted = (request.header(b"upgrade") or b"").lower()
        if request.method != b"GET" or request.path != STREAM_PATH or wanted != b"websocket" or request.body:
            raise Refusal(400, "bad_upgrade", f"only {STREAM_PATH.decode()} upgrades, by GET, and only to websocket")
        await self._websocket(request, rest, stream)


async def _linger_close(stream: trio.SocketStream) -> None:
    """Close so that the peer can still read the answer: unread input would turn the close into a reset."""
    with trio.move_on_after(1, shield=True):
        await stream.send_eof()
        discard = partial(stream.receive_some, 65_536)
        for _ in range(64):
            if not await discard():
                break
    await trio.aclose_forcefully(stream)


def _host_of(host: str) -> bytes:
    """A host as it stands in a URL and in the ``Host`` header."""
    try:
        return f"[{host}]".encode() if ipaddress.ip_address(host).version == 6 else host.encode()
    except ValueError:
        return host.lower().encode()
