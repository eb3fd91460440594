"""Malformed requests by the thousand against the daemon as a process.

``CLASSPULSE_MALFORMED`` says how many (the full form is 100000), ``CLASSPULSE_SEED`` repeats a run.
"""

import json
import os
import random
import re

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.faults.malformed import CORPUS, cases, segments

COUNT = int(os.environ.get("CLASSPULSE_MALFORMED", "3000"))
CLIENTS = 16
# Cases that may be under way when a good request must be answered.
EVERY = 100
# What any part of a run may add to the daemon's memory once its first part is over: accepted events are students and
# sessions too, and the allocator keeps some of what it had.
GROWTH_BYTES = 48 * 2**20
ANSWERED = {100, 101, 200, 202, 204, 400, 403, 404, 405, 408, 413, 415, 417, 421, 422, 426, 431, 503}
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def answers_to(port, data, chance):
    """Every status that one connection answers; the peer has nothing more to say after ``data``."""
    received = bytearray()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:

        async def send():
            try:
                for piece in segments(data, chance):
                    await stream.send_all(piece)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass  # refused before it was all said

        async with trio.open_nursery() as sending:
            sending.start_soon(send)
            try:
                while part := await stream.receive_some():
                    received += part
            except trio.BrokenResourceError:
                pass  # a reset: it had more to say than the daemon would read
            sending.cancel_scope.cancel()
    return [int(status) for status in _STATUS.findall(received)]


@pytest.mark.slow
async def test_malformed_requests_harm_nobody(database, data_dir):
    seed = int(os.environ.get("CLASSPULSE_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CLASSPULSE_SEED={seed} CLASSPULSE_MALFORMED={COUNT}")  # noqa: T201 - pytest shows it when the test fails
    statuses = dict.fromkeys(sorted(ANSWERED), 0)
    resident = []
    waiting = enumerate(cases(seed, COUNT))
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)

        async def client():
            for number, (name, data) in waiting:
                with trio.fail_after(60):
                    answered = await answers_to(daemon.port, data, random.Random(number))
                for status in answered:
                    assert status in ANSWERED, (name, status, data[:500])
                    statuses[status] += 1
                if number % EVERY == EVERY - 1:
                    good = {
                        "event_id": f"good-{number}",
                        "event_type": "cell_executed",
                        "user_id": "good",
                        "cell_index": 0,
                    }
                    assert (await api.accept(good | {"notebook_path": "n"}))["accepted"] == 1
                if number % max(COUNT // 10, 1) == 0:
                    resident.append(daemon.rss_bytes())

        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)
        assert (await api.user("good"))["cell_executions"] == COUNT // EVERY
        resident.append(daemon.rss_bytes())
        log = daemon.stderr
    sizes = [round(size / 2**20) for size in resident]
    print(f"answers by status: {statuses}, MiB resident: {sizes}")  # noqa: T201 - the run's figures
    assert "Traceback" not in log
    assert [line for line in log.splitlines() if json.loads(line)["level"] in {"error", "critical"}] == []
    assert resident[-1] - resident[len(resident) // 2] < GROWTH_BYTES, sizes
    # Each kind of answer that the edge has for such requests was given, so the cases reach what they are for.
    if len(CORPUS) * 10 < COUNT:
        assert [status for status in ANSWERED - {408, 503} if not statuses[status]] == []
