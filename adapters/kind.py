"""What kind of server listens at an address: a wrong port is the commonest mistake, and its errors say little."""

from typing import Final, TypeAlias
from urllib.parse import urlsplit

import trio

HTTP: Final = "an HTTP server"
REDIS: Final = "Redis"
POSTGRESQL: Final = "PostgreSQL"
TLS: Final = "a server that speaks TLS only"

# Seconds for the connection and for each answer: whoever answers does so at once.
_PATIENCE_S: Final = 0.5

# A host and port, or the path of a Unix socket.
Address: TypeAlias = tuple[str, int] | str

# HTTP answers it as such; Redis takes it for a command and answers an error; TLS answers an alert (RFC 8446, 6).
_REQUEST: Final = b"GET / HTTP/1.0\r\n\r\n"
_BEGINNINGS: Final = ((b"HTTP/", HTTP), (b"-", REDIS), (b"+", REDIS), (b"\x15\x03", TLS))
# PostgreSQL answers it with one letter (its documentation, "Message Formats", SSLRequest).
_SSL_REQUEST: Final = bytes.fromhex("00 00 00 08 04 d2 16 2f")


async def kind_of(address: Address) -> str | None:
    """One of the constants above; None: it answers nothing that is known here, or nobody listens."""
    answer = await _ask(address, _REQUEST)
    for beginning, kind in _BEGINNINGS:
        if answer.startswith(beginning):
            return kind
    return POSTGRESQL if await _ask(address, _SSL_REQUEST) in (b"S", b"N") else None


def address_of(url: str, default_port: int) -> Address | None:
    """Where a URL leads; None when it names no host, or several."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        return None if "," in parts.netloc or not parts.hostname else (parts.hostname, parts.port or default_port)
    except ValueError:
        return None


async def _ask(address: Address, question: bytes) -> bytes:
    """The first bytes of an answer; empty when there is none."""
    with trio.move_on_after(_PATIENCE_S):
        try:
            if isinstance(address, str):
                stream = await trio.open_unix_socket(address)
            else:
                stream = await trio.open_tcp_stream(*address)
        except OSError:
            return b""
        async with stream:
            try:
                await stream.send_all(question)
                return bytes(await stream.receive_some(16))
            except trio.BrokenResourceError:
                return b""
    return b""
