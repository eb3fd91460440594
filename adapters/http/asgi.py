"""A small ASGI bridge: the routes off the hot path are a Starlette application in the same server.

ASGI 3.0, HTTP only (https://asgi.readthedocs.io/en/latest/specs/www.html). The answer is collected and sent whole.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from .messages import Request, date_line

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_NO_BODY: Final = frozenset({204, 304})


class AsgiBridge:
    """Calls an ASGI application with a parsed request."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, request: Request, client: tuple[str, int], server: tuple[str, int]) -> bytes:
        """The whole answer, as bytes. What the application raises after an answer was begun comes out here."""
        path, _, query = request.target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.version,
            "method": request.method.decode("ascii"),
            "scheme": request.scheme,
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": client,
            "server": server,
        }
        status = 500
        headers: list[tuple[bytes, bytes]] = []
        chunks: list[bytes] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self._application(scope, receive, send)
        body = b"".join(chunks)
        lines = [b"HTTP/1.1 %d \r\n" % status, date_line()]
        lines += [b"%b: %b\r\n" % header for header in headers if header[0].lower() != b"content-length"]
        if status not in _NO_BODY:
            lines.append(b"content-length: %d\r\n" % len(body))
        if not request.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        if request.method != b"HEAD":
            lines.append(body)
        return b"".join(lines)
