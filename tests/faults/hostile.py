"""Clients that mean harm, in a process of their own: ``python -m tests.faults.hostile PORT CONNECTIONS``.

They go on until stdin ends, then print what they met as one JSON object: how often by kind of client and answer.
Those that cost the daemon work for each request keep a rate, so that what is measured beside them is the edge and not
two processes that share a core.
"""

import gzip
import json
import os
import re
import resource
import sys
from collections import Counter
from contextlib import suppress

import trio

from tests.faults.malformed import EVENTS, HEADERS, NEST, UPGRADE, post

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
# Connections that drip, of the slow kinds; and seconds between two drops.
DRIPPING, DROP_S = 100, 0.5
# Seconds between the starts of two that drip: in step they would come again all at once after each timeout.
STAGGER_S = 0.02
# Connections that ask and never read.
DEAF = 20
# Seconds between two requests of a kind that costs work.
PACE_S = 0.1

_HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % EVENTS
_UPGRADE = b"\r\n".join((b"GET /api/v1/stream HTTP/1.1", b"Host: localhost", *UPGRADE, b"", b""))


class Crowd:
    """Everybody; `run` until cancelled."""

    def __init__(self, port: int, connections: int) -> None:
        self.met: Counter[str] = Counter()
        self._port = port
        self._connections = connections

    async def run(self) -> None:
        bombs = {
            "gzip bomb": post(gzip.compress(bytes(50_000_000)), b"Content-Encoding: gzip"),
            "nesting bomb": post(b"[" * NEST + b"]" * NEST),
            "header flood": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000,
            "large header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + HEADERS[0] + b"x" * 100_000,
        }
        async with trio.open_nursery() as nursery:
            for name, data in bombs.items():
                nursery.start_soon(self._again, name, self._say, data, PACE_S)
            for opcode, payload in ((1, b"x" * 1000), (1, b"")):
                name = "fragments" if payload else "empty fragments"
                nursery.start_soon(self._again, name, self._fragments, opcode, payload)
            for _ in range(DRIPPING):
                await trio.sleep(STAGGER_S)
                nursery.start_soon(self._again, "slow head", self._drip, _HEAD + b"x: ")
                nursery.start_soon(self._again, "slow body", self._drip, _HEAD + b"Content-Length: 9999\r\n\r\n")
            for _ in range(DEAF):
                nursery.start_soon(self._again, "deaf", self._deaf)
            for _ in range(self._connections):
                nursery.start_soon(self._again, "idle", self._idle)
                await trio.lowlevel.checkpoint()

    async def _again(self, name, client, *arguments):
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
                    self.met[name] += 1
                    received = await client(stream, *arguments)
                    for status in _STATUS.findall(received):
                        self.met[f"{name} {status.decode()}"] += 1
            await trio.sleep(PACE_S)

    async def _say(self, stream, data, pace):
        await trio.sleep(pace)
        with suppress(trio.BrokenResourceError):  # refused before it was all said
            await stream.send_all(data)
        return await stream.receive_some()

    async def _drip(self, stream, start):
        received = b""
        async with trio.open_nursery() as nursery:

            async def send():
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(start)
                    while True:
                        await trio.sleep(DROP_S)
                        await stream.send_all(b"x")

            nursery.start_soon(send)
            received = await stream.receive_some()
            nursery.cancel_scope.cancel()
        return received

    async def _deaf(self, stream):
        await stream.send_all(b"GET /api/v1/classes/default/overview HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        await trio.sleep_forever()

    async def _idle(self, stream):
        return await stream.receive_some()

    async def _fragments(self, stream, opcode, payload):
        """One message that never ends (RFC 6455 section 5.4), masked with zeros."""
        await stream.send_all(_UPGRADE)
        received = await stream.receive_some()
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
        async with trio.open_nursery() as nursery:

            async def send():
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(bytes([opcode]) + length + bytes(4) + payload)
                    while True:
                        await stream.send_all((bytes([0]) + length + bytes(4) + payload) * 20)
                        await trio.sleep(PACE_S)

            nursery.start_soon(send)
            while part := await stream.receive_some():
                received += part
                if part[:1] == b"\x88":
                    self.met[f"fragments {int.from_bytes(part[2:4], 'big')}"] += 1
                    break
            nursery.cancel_scope.cancel()
        return received


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(int(sys.argv[1]), int(sys.argv[2]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.run)
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        assert os.read(sys.stdin.fileno(), 1) == b""
        nursery.cancel_scope.cancel()
    print(json.dumps(crowd.met))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    trio.run(main)
