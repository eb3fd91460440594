"""The live stream over WebSocket, on trio-websocket."""

import os
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_server_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage
from wsproto.frame_protocol import CloseReason

from adapters.http.messages import Request
from adapters.http.reader import Refusal
from engine.clock import WallClock, rfc3339, wall_clock
from engine.errors import OverloadedError, UnknownTopicError
from engine.keys import connection_key
from engine.measures import Histogram
from engine.ports import Cache, LiveFeed, Outbox

SUBPROTOCOL: Final = "classpulse.v1"
MAX_FRAME_BYTES: Final = 64 * 1024  # of a client's message; past it the connection closes with 1009
# Bytes that may come before a client's message is whole: one of 64 KiB in fragments of one byte is seven times as much,
# and fragments that hold nothing never count in its size. At a heartbeat outside a message they are forgiven.
MAX_INCOMPLETE_BYTES: Final = 8 * MAX_FRAME_BYTES
MAX_TOPICS: Final = 50  # a subscriber
# Seconds between pings, and how long the answer may take: a peer that is gone or never reads is let go after both.
HEARTBEAT_S: Final = 20.0
# Seconds for the closing handshake at shutdown.
_CLOSE_S: Final = 1.0
_HANDSHAKE_S: Final = 10.0
_VERSION: Final = b"13"
_OF_HANDSHAKE: Final = (b"upgrade", b"connection", b"sec-websocket-")
_VERSION_ASKED: Final = b"sec-websocket-version"
_KEY: Final = b"sec-websocket-key"
_PROTOCOLS: Final = b"sec-websocket-protocol"
_HEAD: Final = (
    b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
)

_encode: Final = msgspec.json.Encoder().encode
_convert: Final = msgspec.convert
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
# A server's frames are not masked and without extensions have no state: they are the same on every connection.
_framing: Final = Connection(ConnectionType.SERVER)
log = structlog.get_logger("stream")


class _Position(msgspec.Struct):
    """The last frame of a topic that a client had."""

    epoch: str
    seq: int


class StreamEndpoint:
    """Serves subscribers; one that fails ends only itself."""

    def __init__(
        self,
        feed: LiveFeed,
        *,
        clock: WallClock = wall_clock,
        origins: Collection[str] = (),
        heartbeat_s: float = HEARTBEAT_S,
        register: Cache | None = None,
    ) -> None:
        """``register`` is told who is connected, for other programs; None: nobody asks."""
        self._feed = feed
        self._clock = clock
        self.notify_times = Histogram()  # from the receipt of news until the frame that tells it is at the socket
        self._origins = origins
        self._heartbeat_s = heartbeat_s
        self._register = register
        self._open: dict[WebSocketConnection, Outbox] = {}
        self._text, self._frame = "", b""  # the last one that was written at once: all who listen get the same
        self._conflated = 0  # by subscribers that are gone
        self._closing = False

    @property
    def subscribers(self) -> int:
        """How many are connected."""
        return len(self._open)

    @property
    def conflated(self) -> int:
        """Frames that were dropped because readers were slow, since the start."""
        return self._conflated + sum(outbox.conflated for outbox in self._open.values())

    async def serve(self, request: Request, rest: bytes, stream: trio.SocketStream) -> None:
        """One subscriber, from the parsed upgrade request on; ``rest`` came in the same segment.

        Raises Refusal for a page of another origin: browsers let any page open a WebSocket anywhere; and for what is
        no handshake of RFC 6455.
        """
        if not self._allows_origin(request):
            raise Refusal(403, "foreign_origin", "pages of this origin may not listen; see http.cors_origins")
        replay = _ReplayStream(stream, _handshake(request), rest)
        try:
            async with trio.open_nursery() as nursery:
                await self._serve(nursery, replay)
                nursery.cancel_scope.cancel()
        except* (
            ConnectionClosed,
            HandshakeError,
            trio.TooSlowError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ):
            pass  # the peer is gone

    def _allows_origin(self, request: Request) -> bool:
        origin = request.header(b"origin")
        if origin is None:  # not a browser
            return True
        own = b"//" + (request.header(b"host") or b"")
        return origin.lower().endswith(own.lower()) or not {origin.decode("latin-1"), "*"}.isdisjoint(self._origins)

    async def close(self) -> None:
        """Tell every subscriber that the server restarts (1012)."""
        self._closing = True
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + _CLOSE_S
            for socket in list(self._open):
                nursery.start_soon(_close, socket, CloseReason.SERVICE_RESTART, "restarting")

    async def _serve(self, nursery: trio.Nursery, replay: "_ReplayStream") -> None:
        with trio.fail_after(_HANDSHAKE_S):
            upgrade = await wrap_server_stream(nursery, replay, max_message_size=MAX_FRAME_BYTES, message_queue_size=4)
            offered = SUBPROTOCOL in upgrade.proposed_subprotocols
            socket = await upgrade.accept(subprotocol=SUBPROTOCOL if offered else None)
        replay.release()
        if self._closing:
            await _close(socket, CloseReason.SERVICE_RESTART, "restarting")
            return
        outbox = self._feed.connect()
        self._open[socket] = outbox
        key = connection_key(uuid4().hex)
        self._enter(key)
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._heartbeat, socket, replay, key, tasks.cancel_scope)
                tasks.start_soon(self._send_frames, socket, replay, outbox, tasks)
                tasks.start_soon(_refuse_endless, socket, replay, tasks.cancel_scope)
                await _receive(socket, replay, outbox)
                tasks.cancel_scope.cancel()
        finally:
            del self._open[socket]
            if self._register is not None:
                self._register.discard(key)
            outbox.close()
            self._conflated += outbox.conflated

    async def _send_frames(
        self, socket: WebSocketConnection, replay: "_ReplayStream", outbox: Outbox, tasks: trio.Nursery
    ) -> None:
        def write(text: str, received_at: int) -> bool:
            if socket.closed is not None or not replay.write(self._framed(text)):
                return False
            if replay.rest:
                tasks.start_soon(self._send_rest, replay, received_at)
            else:
                self._observe(received_at)
            return True

        outbox.write_through(write)
        with suppress(ConnectionClosed):
            try:
                while True:
                    frame = await outbox.next_frame()
                    received_at = outbox.received_at
                    await socket.send_message(frame)
                    self._observe(received_at)
            except OverloadedError as fault:
                log.info("subscriber is too slow; closing", reason=str(fault))
                await _close(socket, CloseReason.TRY_AGAIN_LATER, "too slow: alerts were lost; connect again")

    async def _send_rest(self, replay: "_ReplayStream", received_at: int) -> None:
        await replay.send_rest()
        self._observe(received_at)

    def _framed(self, text: str) -> bytes:
        if text is not self._text:
            self._text, self._frame = text, _framing.send(TextMessage(text))
        return self._frame

    def _observe(self, received_at: int) -> None:
        if received_at:
            self.notify_times.observe(max(0, self._clock() - received_at) / 1000)

    def _enter(self, key: str) -> None:
        """Say that a subscriber is there now; without another word it counts as gone after three heartbeats."""
        if self._register is not None:
            # In mode "open" nobody says who they are.
            fields = {"user_id": "", "last_activity": rfc3339(self._clock())}
            self._register.put_fields(key, fields, 3 * self._heartbeat_s)

    async def _heartbeat(
        self, socket: WebSocketConnection, replay: "_ReplayStream", key: str, scope: trio.CancelScope
    ) -> None:
        while True:
            await trio.sleep(self._heartbeat_s)
            if not socket._message_parts:  # noqa: SLF001 - it tells nobody else whether a message has begun
                replay.incomplete = 0  # pings, and answers to ours
            with trio.move_on_after(self._heartbeat_s) as patience:
                await socket.ping()
            if patience.cancelled_caught:
                log.info("subscriber does not answer; closing")
                scope.cancel()
                return
            self._enter(key)


async def _refuse_endless(socket: WebSocketConnection, replay: "_ReplayStream", scope: trio.CancelScope) -> None:
    """Let go of a client whose message has no end."""
    await replay.endless.wait()
    log.info("subscriber's message has no end; closing")
    with trio.move_on_after(_CLOSE_S):  # nothing more is read of it, not even its goodbye
        await _close(socket, CloseReason.MESSAGE_TOO_BIG, "a message has no end")
    scope.cancel()


async def _receive(socket: WebSocketConnection, replay: "_ReplayStream", outbox: Outbox) -> None:
    """Answer what the subscriber asks until it goes."""
    topics: set[str] = set()
    with suppress(ConnectionClosed):
        while True:
            text = await socket.get_message()
            replay.incomplete = 0
            answer = _answer(text, outbox, topics)
            if answer is not None:
                await socket.send_message(_encode(answer).decode())


def _answer(text: str | bytes, outbox: Outbox, topics: set[str]) -> dict[str, Any] | None:
    """Do what one message asks; returns what to say to it, if anything."""
    try:
        message = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _error("malformed", "a message is a JSON object")
    kind = message.get("type")
    if kind == "ping":
        return {"type": "pong"}
    if kind not in ("subscribe", "unsubscribe"):
        return _error("unknown_type", "type must be subscribe, unsubscribe or ping")
    names = message.get("topics")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return _error("bad_topics", "topics must be a list of at least one topic")
    if kind == "unsubscribe":
        for name in names:
            outbox.unsubscribe(name)
        topics.difference_update(names)
        return None
    if len(topics.union(names)) > MAX_TOPICS:
        return _error("too_many_topics", f"at most {MAX_TOPICS} topics a subscriber")
    try:
        resume = _convert({} if message.get("resume") is None else message["resume"], dict[str, _Position])
    except msgspec.ValidationError:
        return _error("bad_resume", 'resume must be an object of {"epoch": "…", "seq": n} by topic')
    faults = []
    for name in names:
        position = resume.get(name)
        try:
            outbox.subscribe(name, None if position is None else (position.epoch, position.seq))
            topics.add(name)
        except UnknownTopicError as fault:
            faults.append(str(fault))
    return _error("unknown_topic", "; ".join(faults)) if faults else None


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message}


async def _close(socket: WebSocketConnection, reason: CloseReason, text: str) -> None:
    with suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        await socket.aclose(code=reason.value, reason=text)


def _handshake(request: Request) -> bytes:
    """The head of an opening handshake (RFC 6455 section 4.1) for wsproto, with what this one asks for and no more.

    Host, path, method and upgrade were looked at before it came here, by our rules; wsproto has others, and leaves who
    breaks them without a word or raises what it does not declare. Raises Refusal.
    """
    headers = [header for header in request.headers if header[0].startswith(_OF_HANDSHAKE)]
    if request.version != "1.1":
        raise Refusal(400, "bad_upgrade", "a WebSocket begins with HTTP/1.1 (RFC 6455)")
    if not all(value.isascii() for _, value in headers):
        raise Refusal(400, "bad_upgrade", "a header of the handshake holds bytes that are not ASCII")
    if [value for name, value in headers if name == _VERSION_ASKED] != [_VERSION]:
        ours = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: %b\r\n" % _VERSION
        raise Refusal(426, "upgrade_required", "Sec-WebSocket-Version must be 13 (RFC 6455)", ours)
    keys = [value for name, value in headers if name == _KEY]
    if len(keys) != 1 or not keys[0]:
        raise Refusal(400, "bad_upgrade", "Sec-WebSocket-Key must be there once (RFC 6455)")
    asked = [header for header in headers if header[0] in (_KEY, _PROTOCOLS)]
    return _HEAD + b"".join(b"%b: %b\r\n" % header for header in asked) + b"\r\n"


class _ReplayStream(trio.abc.Stream):
    """A stream whose first bytes were read already, and that takes whole frames beside trio-websocket.

    The head goes first, alone: a frame that came in the head's segment is lost when trio-websocket reads it with the
    head (lost 40 of 40), so everything after it is withheld until `release`.
    """

    def __init__(self, stream: trio.SocketStream, head: bytes, rest: bytes) -> None:
        self._stream = stream
        self._head = head
        self._rest = rest
        self._released = trio.Event()
        self.incomplete = 0  # bytes since the last whole message
        self.endless = trio.Event()  # they are too many
        self.rest = memoryview(b"")  # of a frame that was written in part
        self._sending = trio.Lock()
        self.socket = stream.socket  # trio-websocket asks it for the addresses

    def release(self) -> None:
        """The handshake is done: what comes now is frames."""
        self._released.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        if self._head:
            head, self._head = self._head, b""
            return head
        await self._released.wait()
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        if self.incomplete > MAX_INCOMPLETE_BYTES:
            self.endless.set()
            await trio.sleep_forever()
        data = await self._stream.receive_some(max_bytes)
        self.incomplete += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        async with self._sending:
            await self._send_rest()
            await self._stream.send_all(data)

    def write(self, frame: bytes) -> bool:
        """Write a frame now, its `rest` is to be sent. False where it would have to wait, or nobody is there."""
        if self.rest or self._sending.locked():
            return False
        try:
            written = os.write(self.socket.fileno(), frame)
        except OSError:  # no room, or whoever sends next learns what it is
            return False
        if written < len(frame):
            self.rest = memoryview(frame)[written:]
        return True

    async def send_rest(self) -> None:
        """Send what `write` has left."""
        async with self._sending:
            await self._send_rest()

    async def _send_rest(self) -> None:
        try:
            while self.rest:  # not `send_all`: cancelled, it does not say how much is sent
                self.rest = self.rest[await self.socket.send(self.rest) :]
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()
