"""Students at work: each on a connection of their own, sending again what was not acknowledged."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import attrs
import trio

from tests.e2e.api import EVENTS, JSON, HasPort
from tests.e2e.recording import written
from tests.e2e.waiting import eventually
from tests.e2e.wire import Answer, Connection, Disconnected

# The real client gives up on an answer after this long.
PATIENCE_S: Final = 8
RETRY_AFTER_S: Final = 0.05
CROWD_BATCH: Final = 300  # events, at most
NOTEBOOKS: Final = ("one.ipynb", "zwei.ipynb")
TYPES: Final = (
    *["cell_executed"] * 8,
    "execution_error",
    "notebook_opened",
    "help_requested",
    "help_resolved",
    "cell_execution",
    "note_taken",
)


@attrs.frozen
class Refusal:
    """An answer that is not 202."""

    at: float  # trio's clock
    status: int
    body: bytes
    retry_after: str | None = None  # the header, in seconds


class Load:
    """``async with Load(daemon, seed=1) as load:`` runs students until ``finish`` or the end of the block.

    A ``crowd`` of more students posts through one connection, as behind a hub that gathers their events: so many that
    not all of them can be stored in one flush.

    ``finish`` lets each one get its last batch acknowledged; the end of the block just stops them. A daemon that is
    away is waited for, however long that takes.
    """

    def __init__(
        self,
        daemon: HasPort,
        *,
        seed: int,
        users: int = 20,
        crowd: int = 0,
        pause_s: float = 0.05,
        leaving: float = 0.0,
    ) -> None:
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.refusals: list[Refusal] = []
        self.faults: list[str] = []
        self.failures: list[str] = []  # what a client sees that sends again only what it sent on a kept connection
        self._daemon = daemon
        self.names = [f"student{number:02}@example.com" for number in range(users)]
        self._students = [
            Student([name], random.Random(f"{seed}/{number}"), named_sessions=number > 0)
            for number, name in enumerate(self.names)
        ]
        if crowd:
            names = [f"crowd{number:04}" for number in range(crowd)]
            self._students.append(Student(names, random.Random(f"{seed}/crowd"), most=CROWD_BATCH))
        self._connections: set[Connection] = set()
        self._pause_s = pause_s
        self._leaving = leaving  # how often a student closes the connection after an answer
        self._finishing = False
        self._nursery_manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._running = 0
        self._idle = trio.Event()

    @property
    def sent(self) -> set[str]:
        """Ids of all that was sent, acknowledged or not."""
        return {event_id for student in self._students for event_id in student.sent}

    async def __aenter__(self) -> Self:
        self._nursery = await self._nursery_manager.__aenter__()
        self._running = len(self._students)
        for student in self._students:
            self._nursery.start_soon(self._work, student)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, failure, trace)

    async def progress(self, events: int, within: float = 30) -> None:
        """Wait until so many more events are acknowledged than now."""
        wanted = len(self.acknowledged) + events

        async def reached() -> bool:
            return len(self.acknowledged) >= wanted

        await eventually(reached, within=within, what=f"{events} more events acknowledged")

    def cut(self, source: random.Random) -> None:
        """Cut some of the connections, in whatever they are doing."""
        for connection in self._connections:
            if source.random() < 0.5:
                connection.cut()

    async def finish(self, within: float = 60) -> None:
        """Let every student get an acknowledgement for all it has sent, then stop."""
        self._finishing = True
        with trio.fail_after(within):
            await self._idle.wait()

    async def _work(self, student: "Student") -> None:
        connection: Connection | None = None
        answers = 0  # on this connection
        try:
            while not self._finishing:
                batch = student.batch()
                fresh = {event["event_id"] for event in batch} - student.sent
                student.sent |= fresh
                attempts = 0
                while True:
                    attempts += 1
                    try:
                        if connection is None:
                            connection = await Connection.open(self._daemon.port)
                            self._connections.add(connection)
                            answers = 0
                        answer = await self._post(connection, batch)
                        answers += 1
                    except (Disconnected, trio.TooSlowError) as failure:
                        answer = None
                        if not answers or isinstance(failure, trio.TooSlowError):
                            self.failures.append(f"{failure!r} after {answers} answers")
                        if connection is not None:
                            self._connections.discard(connection)
                            await connection.reset()
                            connection = None
                    if answer is not None and answer.status == 202:
                        self._check(answer, batch, fresh, attempts)
                        break
                    await trio.sleep(RETRY_AFTER_S)
                self.acknowledged |= {event["event_id"]: event for event in batch}
                if connection is not None and student.random.random() < self._leaving:
                    self._connections.discard(connection)
                    await trio.aclose_forcefully(connection.stream)
                    connection = None
                await trio.sleep(student.random.expovariate(1 / self._pause_s))
        finally:
            if connection is not None:
                await connection.reset()
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _post(self, connection: Connection, batch: list[dict[str, Any]]) -> Answer:
        self.requests += 1
        body = json.dumps(batch if len(batch) > 1 else batch[0]).encode()
        with trio.fail_after(PATIENCE_S):
            answer = await connection.request("POST", EVENTS, headers=[JSON], body=body)
        if answer.status != 202:
            self.refusals.append(Refusal(trio.current_time(), answer.status, answer.body, answer.header("retry-after")))
        return answer

    def _check(self, answer: Answer, batch: list[dict[str, Any]], fresh: set[str], attempts: int) -> None:
        body = answer.json()
        counted = (body["accepted"], body["duplicates"])
        wrong = body.get("rejected") or sum(counted) != len(batch)
        if attempts == 1:  # nothing of it can have been stored before, apart from what is repeated on purpose
            wrong = wrong or counted[0] != len(fresh)
        if wrong:
            self.faults.append(f"attempt {attempts}, {len(batch)} events of which {len(fresh)} new: {body}")


class Student:
    """Makes batches of events: out of order in time, over two notebooks and sessions, some of them repeated."""

    def __init__(
        self, names: Sequence[str], source: random.Random, *, named_sessions: bool = True, most: int = 5
    ) -> None:
        self.random = source
        self.sent: set[str] = set()
        self._names = names
        self._named_sessions = named_sessions
        self._most = most
        self._made: list[dict[str, Any]] = []

    def batch(self) -> list[dict[str, Any]]:
        return [self._event() for _ in range(self.random.randint(1, self._most))]

    def _event(self) -> dict[str, Any]:
        if self._made and self.random.random() < 0.05:
            return self.random.choice(self._made[-50:])
        time = datetime.now(UTC) - timedelta(seconds=self.random.uniform(0, 60))
        event: dict[str, Any] = {
            "event_id": str(UUID(int=self.random.getrandbits(128), version=4)),
            "event_type": self.random.choice(TYPES),
            "timestamp": written(time),
            "user_id": self.random.choice(self._names),
            "notebook_path": self.random.choice(NOTEBOOKS),
        }
        if self._named_sessions:
            event["session_id"] = f"tab{self.random.randint(1, 2)}"
        if event["event_type"].startswith(("cell", "execution")):
            event |= {"cell_index": self.random.randint(0, 11), "has_error": self.random.random() < 0.3}
        self._made.append(event)
        return event
