"""A client's end of a WebSocket (RFC 6455), as lean as a reader of thousands of frames a second needs it.

A hundred subscribers read 5,000 frames a second: with trio-websocket that takes most of a core, and what is then
measured is the reader. Frames of servers are not masked and nothing is compressed, so a frame is a head and its text.
"""

import base64
import secrets
import ssl
from collections.abc import Iterator
from typing import Final

import trio

from loadtest.errors import TransportError
from loadtest.target import STREAM, Target

RECEIVE_BYTES: Final = 65536
# Of one message: a snapshot of 20,000 students is some 8 MB.
MOST_BYTES: Final = 2**26
MOST_HEAD_BYTES: Final = 65536
HANDSHAKE_S: Final = 10.0

_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_FINAL: Final = 0x80


class ClientStream:
    """One connection. TransportError says in a few words why it ended."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes) -> None:
        self._stream = stream
        self._bytes = bytearray(rest)
        self._parts = b""  # of a message in several frames
        self._closed: str | None = None  # why, once the server said so

    async def send(self, text: bytes) -> None:
        """One message."""
        await self._send(_TEXT, text)

    async def receive(self) -> list[bytes]:
        """The messages that have come, at least one. Pings are answered; a close is told by the call after its news."""
        while True:
            messages = []
            for opcode, payload in list(self._frames()):
                if opcode == _PING:
                    await self._send(_PONG, payload)
                elif opcode == _CLOSE:
                    code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
                    self._closed = f"closed with {code}"
                    break  # nothing that counts comes after it
                elif opcode == _TEXT:
                    messages.append(payload)
            if messages:
                return messages
            if self._closed is not None:
                raise TransportError(self._closed)
            if len(self._bytes) > MOST_BYTES:
                raise TransportError("a message is too long")
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise TransportError("closed with 1006")
            self._bytes += data

    async def aclose(self) -> None:
        """Let go of it; the server sees the connection end."""
        await trio.aclose_forcefully(self._stream)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """What is there whole: opcode and payload, messages in one piece."""
        held, at = self._bytes, 0
        while len(held) - at >= 2:
            first, length, body = held[at], held[at + 1] & 0x7F, at + 2
            if length >= 126:
                wide = 2 if length == 126 else 8
                if len(held) < body + wide:
                    break
                length, body = int.from_bytes(held[body : body + wide], "big"), body + wide
            if len(held) < body + length:
                break
            payload, at = bytes(held[body : body + length]), body + length
            opcode = first & 0x0F
            if opcode >= _CLOSE:  # may come between the parts of a message
                yield opcode, payload
            elif first & _FINAL:
                yield _TEXT, self._parts + payload
                self._parts = b""
            else:
                self._parts += payload
        del held[:at]

    async def _send(self, opcode: int, payload: bytes) -> None:
        """Clients mask: by zeros, which is a mask as good as any where no cache is in between."""
        length = len(payload)
        assert length < 2**16
        head = bytes((_FINAL | opcode, 0x80 | length)) if length < 126 else bytes((_FINAL | opcode, 0xFE))
        wide = b"" if length < 126 else length.to_bytes(2, "big")
        await self._stream.send_all(head + wide + bytes(4) + payload)


async def connect(target: Target) -> ClientStream:
    """To the daemon's live stream. TransportError: `refused` when it answers otherwise, `no connection` when not."""
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(HANDSHAKE_S):
            if target.tls:
                context = ssl.create_default_context()
                stream = await trio.open_ssl_over_tcp_stream(
                    target.host, target.port, ssl_context=context, https_compatible=True
                )
            else:
                stream = await trio.open_tcp_stream(target.host, target.port)
            return await _upgraded(stream, target)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        raise TransportError("no connection") from error
    except BaseException:
        if stream is not None:
            with trio.CancelScope(shield=True):  # at once: it says no good-bye
                await trio.aclose_forcefully(stream)
        raise


async def _upgraded(stream: trio.abc.Stream, target: Target) -> ClientStream:
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    lines = [f"GET {STREAM} HTTP/1.1", f"Host: {target.netloc}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in target.headers]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data or len(head) > MOST_HEAD_BYTES:
            raise TransportError("refused")
        head += data
    if not head.startswith(b"HTTP/1.1 101 "):
        raise TransportError("refused")
    return ClientStream(stream, head.partition(b"\r\n\r\n")[2])
