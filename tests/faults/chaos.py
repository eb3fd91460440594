"""Random faults on a daemon under load: what is done, when, and how often. One seed gives one sequence."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import Database, PostgresServer
from tests.e2e.waiting import eventually
from tests.e2e.wire import Disconnected

from .poisoned import CELL

# Seconds between two faults, and that a PostgreSQL outage lasts.
BREATH_S = (0.2, 1.5)
OUTAGE_S = (0.3, 4.0)
# How long the daemon lives when it is killed while it starts.
STARTING_S = (0.0, 1.0)
# While PostgreSQL is away, this often something happens to the daemon too.
DOUBLE = 0.4

Fault = Callable[[], Awaitable[None]]


class Chaos:
    """`run` it inside a `Load`; `done` tells what happened. The daemon and PostgreSQL run when it returns."""

    def __init__(self, seed: int, daemon: Daemon, database: Database, load: Load) -> None:
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._daemon = daemon
        self._database = database
        self._server: PostgresServer = database.server
        self._load = load
        self._hosts = itertools.cycle(load.names)
        self._numbers = itertools.count(1)
        self.poison: dict[str, dict[str, Any]] = {}  # acknowledged events that nobody can apply, by id
        self._on_daemon: tuple[Fault, ...] = (self.kill_daemon, self.kill_starting_daemon, self.stop_daemon)
        self._on_clients: tuple[Fault, ...] = (self.cut_clients, self.poison_a_student, self.park_a_student)
        self._on_postgres: tuple[Fault, ...] = (
            self.kill_postgres, self.pause_postgres, self.end_sessions, self.fill_journal,
        )  # fmt: skip

    async def run(self, seconds: float) -> None:
        """One fault after the other, each followed by a moment in which the daemon must get on with its work."""
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await self._strike(self._on_daemon + self._on_clients + self._on_postgres)
            await trio.sleep(self._random.uniform(*BREATH_S))
            await self._load.progress(1, within=60)

    async def _strike(self, faults: tuple[Fault, ...]) -> None:
        fault = self._random.choice(faults)
        await fault()
        self.done[fault.__name__] += 1

    async def kill_daemon(self) -> None:
        """As the kernel does when memory runs out."""
        await in_thread(self._daemon.kill)
        await in_thread(self._daemon.start)

    async def kill_starting_daemon(self) -> None:
        """Killed in the middle of its recovery."""
        await in_thread(self._daemon.kill)
        await in_thread(self._daemon.launch)
        await trio.sleep(self._random.uniform(*STARTING_S))
        await in_thread(self._daemon.kill)
        await in_thread(self._daemon.start)

    async def stop_daemon(self) -> None:
        """As a process manager does for an upgrade."""
        code = await in_thread(self._daemon.stop)
        assert code == 0, self._daemon.stderr[-4000:]
        await in_thread(self._daemon.start)

    async def cut_clients(self) -> None:
        """As a Wi-Fi does: whatever is on its way, in either direction, does not arrive."""
        self._load.cut(self._random)

    async def poison_a_student(self) -> None:
        """One event that cannot be applied, amid a student's others."""
        await self._poison(next(self._hosts))

    async def park_a_student(self) -> None:
        """Three of them from one student, who has no others."""
        name = f"poisoner{next(self._numbers)}"
        for _ in range(3):
            await self._poison(name)

    async def _poison(self, user: str) -> None:
        event = {
            "event_id": str(UUID(int=self._random.getrandbits(128), version=4)),
            "event_type": "cell_executed",
            "user_id": user,
            "notebook_path": "poison.ipynb",
            "cell_id": CELL,
            "cell_index": 1,
        }

        async def taken() -> bool:
            try:
                answer = await Api(self._daemon).post(event)
            except Disconnected:
                return False
            assert answer.status in (202, 503), answer
            return answer.status == 202

        await eventually(taken, within=60, what=f"{json.dumps(event)} is acknowledged")
        self.poison[str(event["event_id"])] = event

    async def kill_postgres(self) -> None:
        """Its processes are gone, and come back."""
        await in_thread(self._server.kill)
        await self._outage()
        await in_thread(self._server.start)

    async def pause_postgres(self) -> None:
        """Connections stay open and nothing answers."""
        await in_thread(self._server.pause)
        await self._outage()
        await in_thread(self._server.resume)

    async def end_sessions(self) -> None:
        """As a proxy or an administrator does."""
        sql = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{self._database.name}'"
        await in_thread(self._server.execute, sql)

    async def fill_journal(self) -> None:
        """PostgreSQL stays away until the journal's budget is used up, and clients are told to wait."""
        before = len(self._load.refusals)

        async def full() -> bool:
            return len(self._load.refusals) > before

        await in_thread(self._server.kill)
        await eventually(full, within=60, what="the journal's budget is used up")
        await in_thread(self._server.start)

    async def _outage(self) -> None:
        if self._random.random() < DOUBLE:
            # Not poison: with a full journal it is refused until PostgreSQL is back, and that is not before this ends.
            await self._strike((*self._on_daemon, self.cut_clients))
        await trio.sleep(self._random.uniform(*OUTAGE_S))
