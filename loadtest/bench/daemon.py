"""The daemon under test, seen through its contract: environment, ready line, health, and its process."""

import contextlib
import http.client
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from loadtest.bench.generator import PATH, Generator, Load
from loadtest.bench.servers import Influx
from loadtest.daemons import environment
from loadtest.database import Database
from loadtest.errors import LoadTestError
from loadtest.processes import Server, python_server

DRAIN_TIMEOUT_S = 120.0
POLL_S = 0.05
LAG_EVERY_S = 0.5
# wrk makes ids in order and has one request a connection in flight: one this many rounds old has had its answer.
SURELY_ANSWERED_ROUNDS = 10


@dataclass(frozen=True)
class Drained:
    """One load on the daemon until everything of it was stored."""

    load: Load
    lag_at_end: int  # events accepted and not yet stored everywhere when wrk stopped
    drain_s: float
    cpu_s: float  # the daemon's, load and drain
    stored: int  # events of this load that are stored
    lags: list[int]  # every `LAG_EVERY_S` under load

    @property
    def sustained_per_s(self) -> float:
        """Events stored over load and drain: what it could take for ever."""
        return self.stored / (self.load.seconds + self.drain_s)

    @property
    def cpu_us_per_event(self) -> float:
        """The daemon's CPU time for one event."""
        return self.cpu_s * 1e6 / max(1, self.stored)


@dataclass
class Daemon:
    """`classpulse serve` on a database of its own."""

    server: Server
    database: Database
    name: str
    problems: list[str] = field(default_factory=list)
    influx: Influx | None = None  # where it writes its cell events, in place of PostgreSQL

    def memory(self) -> dict[str, int]:
        """RSS, PSS and USS in bytes."""
        full = psutil.Process(self.server.pid).memory_full_info()
        return {"rss": full.rss, "pss": full.pss, "uss": full.uss}

    def lag(self) -> int | None:
        """Events not yet stored everywhere, from health; None where it does not say of each store."""
        checks = self.checks()
        stores = ["postgresql"] if self.influx is None else ["postgresql", "influxdb"]
        lags: list[int | None] = [checks[store].get("lag_events") for store in stores]
        known = [lag for lag in lags if lag is not None]
        return max(known) if len(known) == len(lags) else None

    def checks(self) -> dict[str, dict[str, Any]]:
        """What health says of each store."""
        found: dict[str, dict[str, Any]] = self.get("/api/v1/health")["checks"]
        return found

    def get(self, path: str) -> dict[str, Any]:
        """What is answered there."""
        netloc = urlsplit(self.server.address).netloc
        with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
            connection.request("GET", path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    def wait_until_stored(self) -> tuple[int, float]:
        """Lag now, and the seconds until it is 0 (and still is, a poll later)."""
        started = time.monotonic()
        first: int | None = None
        zero_since: float | None = None
        while (now := time.monotonic()) - started < DRAIN_TIMEOUT_S:
            lag = self.lag()
            first = lag if first is None else first
            if lag == 0:
                if zero_since is not None:
                    return first or 0, zero_since - started
                zero_since = now
            else:
                zero_since = None
            time.sleep(POLL_S)
        raise LoadTestError(f"{self.name}: lag was still {lag} after {DRAIN_TIMEOUT_S:.0f} s")

    def cell_rows(self) -> int:
        """Rows or points in `cell_executions`, where every event goes that wrk sends."""
        if self.influx is not None:
            return self.influx.cell_points()
        return int(self.database.ask(self.name, "SELECT count(*) FROM cell_executions"))

    def activity_rows(self) -> int:
        """Rows in `activity_events`, where all other events go."""
        return int(self.database.ask(self.name, "SELECT count(*) FROM activity_events"))

    def refuse_double_rows(self) -> None:
        """Note it when an event has two rows; sorts the table, so once a database."""
        distinct = "SELECT count(*) FROM (SELECT DISTINCT class_id, user_id, event_id FROM cell_executions) AS events"
        doubles = self.cell_rows() - int(self.database.ask(self.name, distinct))
        if doubles:
            self.problems.append(f"{doubles} rows repeat an event")

    def missing(self, load: Load) -> int:
        """Events of a load that must be stored and are not: those made long before its end, so answered by then.

        The first batch is wrk's trial request, which it never sends. Points have no ids: none is missed there.
        """
        if self.influx is not None:
            return 0
        last = (load.sent + 1 - SURELY_ANSWERED_ROUNDS * load.connections) * load.batch
        if last <= load.batch:
            return 0
        between = f"event_id >= '{load.run}{load.batch:012x}' AND event_id < '{load.run}{last:012x}'"
        sql = f"SELECT count(DISTINCT event_id) FROM cell_executions WHERE {between}"  # noqa: S608 - our own hex
        return last - load.batch - int(self.database.ask(self.name, sql))

    def measure(
        self,
        generator: Generator,
        *,
        users: int,
        batch: int,
        connections: int,
        seconds: float,
        events_per_s: float = math.inf,
    ) -> Drained:
        """Load it, wait until all of it is stored, and check that what was answered is there.

        wrk does not say which of the requests in flight at its end were accepted, so the rows must be at least
        those answered 202 and at most those sent, and none of those answered before the end may be missing.
        `problems` gets what is wrong.
        """
        rows = self.cell_rows()
        cpu = self.server.cpu_s()
        with self._watched() as lags:
            load = generator.run(
                self.server,
                users=users,
                batch=batch,
                connections=connections,
                seconds=seconds,
                events_per_s=events_per_s,
            )
        lag, drain_s = self.wait_until_stored()
        cpu = self.server.cpu_s() - cpu
        stored = self.cell_rows() - rows
        least, most = (load.answered - load.non_2xx) * batch, load.sent * batch
        if not least <= stored <= most:
            self.problems.append(f"{stored} events stored, but {least} acknowledged and {most} sent")
        if missing := self.missing(load):
            self.problems.append(f"{missing} acknowledged events are not in PostgreSQL")
        if not load.clean:
            self.problems.append(f"{load.non_2xx} answers were not 2xx, {load.broken} requests broke")
        return Drained(load, lag, drain_s, cpu, stored, lags)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[int]]:
        """Lags of the time that the block takes, of each `LAG_EVERY_S`."""
        lags: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LAG_EVERY_S):
                lags.append(self.lag() or 0)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield lags
        finally:
            over.set()
            thread.join()

    def post_all(self, events: Iterable[str], batch: int) -> None:
        """Send events one request after the other; any answer but 202 for all of them is an error."""
        netloc = urlsplit(self.server.address).netloc
        with contextlib.closing(http.client.HTTPConnection(netloc, timeout=30)) as connection:
            for group in _grouped(events, batch):
                body = f"[{','.join(group)}]".encode()
                connection.request("POST", PATH, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 202 or json.loads(text)["accepted"] != len(group):
                    raise LoadTestError(f"{self.name}: {answer.status} {text[:300]!r} to a batch of {len(group)}")


def _grouped(events: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for event in events:
        group.append(event)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def data_dir(directory: Path, name: str) -> Path:
    """Where the daemon of this name has its journal."""
    return directory / f"daemon-{name}"


@contextlib.contextmanager
def running(
    database: Database,
    name: str,
    directory: Path,
    core: int,
    *,
    dsn: str | None = None,
    influx: Influx | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """The daemon on its data directory and a fresh database, or on ``dsn``; all else at its defaults.

    ``more``: variables of its environment.
    """
    data = data_dir(directory, name)
    data.mkdir(exist_ok=True)
    env = environment(data, database.create(name) if dsn is None else dsn)
    env |= {} if influx is None else influx.environment
    env |= more or {}
    log = directory / f"daemon-{name}.log"
    with python_server(core, "engine", "serve", env=env, log=log) as server:
        yield Daemon(server, database, name, influx=influx)
