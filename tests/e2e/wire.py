"""HTTP/1.1 by hand over one connection: what a test writes is what is sent, to the byte."""

import json
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

import attrs
import trio

Headers = Iterable[tuple[str, str]]

# Longer than the daemon's own limit for a slow store, shorter than a test run's patience.
ANSWER_WITHIN_S = 20


class Disconnected(Exception):  # noqa: N818 - it is what happened, and not always an error
    """The daemon closed the connection, or was not there."""


@attrs.frozen
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One keep-alive connection. Use as ``async with await Connection.open(port) as connection``."""

    def __init__(self, stream: trio.SocketStream, port: int) -> None:
        self.stream = stream
        self.port = port
        self._received = bytearray()

    @classmethod
    async def open(cls, port: int) -> Self:
        try:
            return cls(await trio.open_tcp_stream("127.0.0.1", port), port)
        except OSError as error:
            raise Disconnected(str(error)) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def request(
        self, method: str, path: str, *, headers: Headers = (), body: bytes | None = None, host: str | None = None
    ) -> Answer:
        """Send a request and wait for its answer."""
        await self.send(request_bytes(method, path, host=host or f"127.0.0.1:{self.port}", headers=headers, body=body))
        return await self.answer()

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:  # the latter: it was cut
            raise Disconnected("the daemon closed while we sent") from error

    async def answer(self) -> Answer:
        """The next answer; of several pipelined requests, the first one's."""
        with trio.fail_after(ANSWER_WITHIN_S):
            head = await self._until(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")
            status = int(status_line.split(" ")[1])
            pairs = (line.partition(":") for line in lines)
            headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
            return Answer(status, headers, await self._body(status, dict(headers)))

    async def closed(self) -> bool:
        """Wait until the daemon closes this connection; false when it sends something instead."""
        with trio.fail_after(ANSWER_WITHIN_S):
            try:
                return not self._received and not await self.stream.receive_some()
            except trio.BrokenResourceError:
                return True

    def cut(self) -> None:
        """End both directions under whoever is sending or waiting."""
        with suppress(OSError):  # it may be over already
            self.stream.socket.shutdown(socket.SHUT_RDWR)

    async def reset(self) -> None:
        """Drop the connection with a TCP reset, whatever is on its way."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)

    async def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in {204, 304} or status < 200:
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
                body += (await self._exactly(size + 2))[:-2]
            await self._until(b"\r\n")
            return body
        return await self._exactly(int(headers["content-length"]))

    async def _until(self, end: bytes) -> bytes:
        while (at := self._received.find(end)) < 0:
            await self._receive()
        found = bytes(self._received[:at])
        del self._received[: at + len(end)]
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._receive()
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError as error:
            raise Disconnected("the daemon reset the connection") from error
        if not data:
            raise Disconnected("the daemon closed the connection")
        self._received += data


def request_bytes(method: str, path: str, *, host: str, headers: Headers = (), body: bytes | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def send_raw(port: int, data: bytes) -> Answer:
    """Send bytes on a connection of their own and get the first answer."""
    connection = await Connection.open(port)
    async with connection:
        await connection.send(data)
        return await connection.answer()
