"""Plays a recording against a daemon: the recorded requests, order and connections, without the pauses."""

from collections.abc import Awaitable, Callable, Iterator

import attrs
import trio

from tests.e2e.recording import Recording, Request
from tests.e2e.wire import Answer, Connection, request_bytes

# Requests on different connections that were recorded this near to each other were on their way together.
TOGETHER_MS = 5

Watcher = Callable[[Request], Awaitable[None]]


@attrs.define
class Played:
    """What happened to one recorded request; no answer where the connection was reset."""

    request: Request
    answer: Answer | None


class Player:
    """``await Player(port).play(recording)``.

    ``answer_first`` says when a recorded reset happens: after the daemon answered (nobody reads it), so that it was
    stored for sure, or right after the request was sent, so that nobody knows.
    """

    def __init__(self, port: int, *, answer_first: bool = True, after: Watcher | None = None) -> None:
        self._port = port
        self._answer_first = answer_first
        self._after = after
        self._connections: dict[str, Connection] = {}

    async def play(self, recording: Recording) -> list[Played]:
        played = [Played(request, None) for request in recording.requests]
        try:
            for group in together(played):
                async with trio.open_nursery() as nursery:
                    for each in group:
                        nursery.start_soon(self._send, each)
                for each in group:
                    if self._after is not None:
                        await self._after(each.request)
        finally:
            for connection in self._connections.values():
                await connection.reset()
        return played

    async def _send(self, played: Played) -> None:
        request = played.request
        connection = self._connections.get(request.conn)
        if connection is None:
            connection = self._connections[request.conn] = await Connection.open(self._port)
        body = None if request.body is None else request.body.encode()
        if request.answered == "reset":
            await self._send_and_reset(connection, request, body)
            return
        played.answer = await connection.request(request.method, request.path, headers=request.headers, body=body)
        check(request, played.answer)

    async def _send_and_reset(self, connection: Connection, request: Request, body: bytes | None) -> None:
        host = f"127.0.0.1:{self._port}"
        data = request_bytes(request.method, request.path, host=host, headers=request.headers, body=body)
        await connection.send(data)
        if self._answer_first:
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(connection.stream.socket)
        await connection.reset()
        del self._connections[request.conn]


def together(played: list[Played]) -> Iterator[list[Played]]:
    """Groups of requests that may overlap: near in time, each on its own connection, none reset."""
    group: list[Played] = []
    for each in played:
        request = each.request
        alone = request.answered == "reset" or any(
            before.request.answered == "reset"
            or before.request.conn == request.conn
            or request.t_ms - before.request.t_ms > TOGETHER_MS
            for before in group
        )
        if group and alone:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def check(request: Request, answer: Answer) -> None:
    """What a browser needs in order to go on."""
    assert answer.header("access-control-allow-origin") == "*", answer
    assert answer.header("access-control-allow-credentials") is None, answer
    if request.method == "OPTIONS":
        assert answer.status == 204, answer
        assert answer.header("access-control-max-age") == "600", answer
        assert "POST" in (answer.header("access-control-allow-methods") or ""), answer
        assert "content-type" in (answer.header("access-control-allow-headers") or "").lower(), answer
        return
    assert answer.status == 202, answer
    body = answer.json()
    assert body["status"] == "received", body
    assert body["accepted"] + body["duplicates"] == len(request.events), body
    assert body.get("rejected", []) == [], body
