"""HTTP/1.1 messages of the edge: requests as parsed, answers as bytes."""

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import msgspec

Headers = list[tuple[bytes, bytes]]

# Ingest endpoints answer everybody, without credentials; errors too, or browsers deliver each event four times.
CORS: Final = b"access-control-allow-origin: *\r\n"
PREFLIGHT: Final = (
    CORS + b"access-control-allow-methods: POST, OPTIONS\r\n"
    b"access-control-allow-headers: *, Authorization, Content-Type, Content-Encoding\r\n"
    b"access-control-max-age: 600\r\n"
)
_encode: Final = msgspec.json.Encoder().encode
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Request(msgspec.Struct, gc=False):
    """A request with its whole body. Header names are lower case."""

    method: bytes
    target: bytes  # path and query, as sent
    headers: Headers
    body: bytes
    keep_alive: bool
    version: str = "1.1"  # or "1.0"
    content_type: bytes | None = None
    content_encoding: bytes | None = None
    scheme: str = "http"  # or "https", where a trusted proxy says so
    client: str = ""  # address, where a trusted proxy tells it

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0] if b"?" in self.target else self.target

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class _Date:
    """The ``Date`` header, made once a second."""

    second = -1
    line = b""


def date_line() -> bytes:
    """``date: …`` with its line end (RFC 9110 section 6.6.1)."""
    now = int(time.time())
    if now != _Date.second:
        _Date.second = now
        _Date.line = f"date: {formatdate(now, usegmt=True)}\r\n".encode()
    return _Date.line


def answer(
    status: int, body: bytes = b"", *, headers: bytes = b"", keep_alive: bool = True, with_body: bool = True
) -> bytes:
    """A JSON answer (or an empty one). ``headers`` are lines with their line ends; a HEAD has ``with_body=False``."""
    typed = b"content-type: application/json\r\n" if body else b""
    length = b"" if status == HTTPStatus.NO_CONTENT else b"content-length: %d\r\n" % len(body)
    close = b"" if keep_alive else b"connection: close\r\n"
    head = b"%b%b%b%b%b%b\r\n" % (_STATUS_LINES[status], date_line(), typed, length, headers, close)
    return head + body if with_body else head


def kept(data: bytes) -> bytes:
    """An answer that says to an HTTP/1.0 client that the connection is kept, as it asked for."""
    return data.replace(b"\r\n", b"\r\nconnection: keep-alive\r\n", 1)


def internal(request: Request, headers: bytes = b"") -> bytes:
    """The answer where our own code failed."""
    message = "a fault of ours; it is in the log"
    return error(
        500, "internal", message, headers=headers, keep_alive=request.keep_alive, with_body=request.method != b"HEAD"
    )


def error(
    status: int, code: str, message: str, *, headers: bytes = b"", keep_alive: bool = True, with_body: bool = True
) -> bytes:
    """An error in the contract's shape."""
    body = _encode({"error": {"code": code, "message": message}})
    return answer(status, body, headers=headers, keep_alive=keep_alive, with_body=with_body)
