"""A class at work, and subscribers that measure how long it takes them to hear of each event."""

import itertools
import random
import statistics
from typing import Any, Self

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.e2e.api import EVENTS, JSON
from tests.e2e.samples import run
from tests.e2e.subscriber import FRAME_BYTES, STREAM
from tests.e2e.wire import Connection

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

# One run in so many fails.
FAILS = 5


@attrs.define
class Lesson:
    """Students, each on a connection of its own, who run a cell every so often. ``run`` it in a nursery."""

    port: int
    students: int
    period_s: float
    sent: dict[str, list[float]] = attrs.field(factory=dict)  # by student: when each event was about to be sent
    failed: set[tuple[str, int]] = attrs.field(factory=set)  # (student, number of its event, from 0)

    async def run(self, seconds: float) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self.students):
                nursery.start_soon(self._work, f"s{number:04}", trio.current_time() + seconds, random.Random(number))

    async def _work(self, student: str, end: float, source: random.Random) -> None:
        times = self.sent.setdefault(student, [])
        await trio.sleep(source.uniform(0, self.period_s))
        async with await Connection.open(self.port) as connection:
            while (begin := trio.current_time()) < end:
                number = len(times)
                failed = source.randrange(FAILS) == 0
                event = run(student, cell_id=f"c{number}", cell_index=number % 30, has_error=failed)
                body = _encode(event | ({"error_message": "KeyError: 'x'"} if failed else {}))
                if failed:
                    self.failed.add((student, number))
                times.append(trio.current_time())
                answer = await connection.request("POST", EVENTS, headers=[JSON], body=body)
                assert answer.status == 202, answer
                await trio.sleep(max(0.0, begin + self.period_s * source.uniform(0.8, 1.2) - trio.current_time()))


class Listener:
    """A subscriber to the class that notes when it heard of what; in seconds since the event was about to be sent."""

    def __init__(self, lesson: Lesson, websocket: WebSocketConnection, stream: trio.SocketStream) -> None:
        self.deltas: list[float] = []
        self.alerts: list[float] = []
        self.alerted: set[tuple[str, int]] = set()
        self.heard: dict[str, int] = {}  # events by student
        self.frames = 0
        self.begun = trio.Event()
        self._lesson = lesson
        self._websocket = websocket
        self._stream = stream

    @classmethod
    async def connect(cls, nursery: trio.Nursery, lesson: Lesson) -> Self:
        stream = await trio.open_tcp_stream("127.0.0.1", lesson.port)
        host = f"127.0.0.1:{lesson.port}"
        websocket = await wrap_client_stream(nursery, stream, host, STREAM, max_message_size=FRAME_BYTES)
        self = cls(lesson, websocket, stream)
        nursery.start_soon(self._read)
        await websocket.send_message('{"type":"subscribe","topics":["class:default"]}')
        with trio.fail_after(10):
            await self.begun.wait()
        return self

    def complete(self) -> bool:
        """Whether it heard of everything that was sent."""
        runs = {student: len(times) for student, times in self._lesson.sent.items() if times}
        return runs == self.heard and self.alerted == self._lesson.failed

    async def _read(self) -> None:
        try:
            while True:
                text = await self._websocket.get_message()
                now = trio.current_time()
                self._take(_decode(text), now)
        except ConnectionClosed:
            pass
        finally:
            await trio.aclose_forcefully(self._stream)

    def _take(self, frame: dict[str, Any], now: float) -> None:
        self.frames += 1
        self.begun.set()
        if frame["type"] == "alerts":
            for alert in frame["alerts"]:
                if alert["alert"] == "error":
                    number = int(alert["cell_id"][1:])
                    self.alerts.append(now - self._lesson.sent[alert["user_id"]][number])
                    self.alerted.add((alert["user_id"], number))
            return
        users = (frame["state"] if frame["type"] == "snapshot" else frame["changes"])["users"]
        for student, view in users.items():
            if (runs := view.get("cell_executions")) is not None:
                times = self._lesson.sent.get(student, [])
                self.deltas += [now - sent for sent in itertools.islice(times, self.heard.get(student, 0), runs)]
                self.heard[student] = runs


def percentile(values: list[float], percent: int) -> float:
    """Of at least two values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
