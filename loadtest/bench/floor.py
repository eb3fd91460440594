"""The floor: what the daemon's ingest would cost if it did nothing but read, decode and answer.

`httptools` over trio streams, as the daemon's edge, with keep-alive and pipelining; the body is decoded with
`msgspec.json` into the fields an event has, and the answer has the shape and the headers of an accepted POST.
No limits, no timeouts, no journal, no state. Written to be fast: every figure of the daemon is given as a share of
this one.

`python -m loadtest.bench.floor` prints `floor ready http://127.0.0.1:PORT` and serves until it is ended.
"""

import argparse
import contextlib
from functools import lru_cache, partial

import httptools
import msgspec
import trio

# One TCP read; the largest bodies here (50 events, 28 kB) fit, so a request is rarely split.
RECEIVE_BYTES = 65536

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n"
)


class Event(msgspec.Struct, rename="camel"):
    """A cell_monitor event; decoding into a Struct is faster than into a dict."""

    event_id: str
    event_type: str
    event_time: str
    email_address: str
    team_name: str | None = None
    user_name: str | None = None
    session_id: str | None = None
    notebook_path: str | None = None
    cell_id: str | None = None
    cell_index: int | None = None
    cell_type: str | None = None
    code: str | None = None
    execution_count: int | None = None
    has_error: bool = False
    error_message: str | None = None
    result: str | None = None
    execution_duration_ms: float | None = None


decode = msgspec.json.Decoder(list[Event]).decode


@lru_cache(maxsize=1024)
def answer(accepted: int) -> bytes:
    """The whole 202 answer for that many events."""
    body = b'{"status":"received","accepted":%d,"duplicates":0,"rejected":[]}' % accepted
    head = (
        b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Access-Control-Allow-Origin: *\r\n\r\n"
    )
    return head % len(body) + body


class Exchange:
    """httptools' callbacks for one connection: bodies in, answers out."""

    __slots__ = ("answers", "body", "keep_alive", "parser")

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.answers: list[bytes] = []
        self.keep_alive = True

    def on_body(self, body: bytes) -> None:
        """A piece of a body; nearly always all of it."""
        self.body += body

    def on_message_complete(self) -> None:
        """A whole request: decode it and queue its answer."""
        body, self.body = self.body, b""
        self.keep_alive = self.parser.should_keep_alive()
        try:
            self.answers.append(answer(len(decode(body))))
        except msgspec.DecodeError:
            self.answers.append(BAD_REQUEST)
            self.keep_alive = False


async def serve_connection(stream: trio.SocketStream) -> None:
    """Answer requests until the client closes."""
    exchange = Exchange()
    feed = exchange.parser.feed_data
    with contextlib.suppress(trio.BrokenResourceError, httptools.HttpParserError):
        while exchange.keep_alive and (data := await stream.receive_some(RECEIVE_BYTES)):
            feed(data)
            if exchange.answers:
                out, exchange.answers = exchange.answers, []
                await stream.send_all(out[0] if len(out) == 1 else b"".join(out))


async def serve(port: int) -> None:
    """Listen on loopback and print the address once connections are accepted."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve_connection, port, host="127.0.0.1"))
        print(f"floor ready http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.floor", description="the bench's floor")
    parser.add_argument("--port", type=int, default=0, help="0 picks one (default)")
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(serve, parser.parse_args().port)


if __name__ == "__main__":
    main()
