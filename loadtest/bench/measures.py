"""The rows of the bench: what is loaded, in which order, and what must hold."""

import contextlib
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtest.bench import daemon as daemons
from loadtest.bench.daemon import Daemon, Drained
from loadtest.bench.generator import Generator, Load
from loadtest.bench.report import Row
from loadtest.bench.traffic import arrivals
from loadtest.database import Database
from loadtest.processes import Cores, Server, python_server

# What is promised.
FLOOR_SHARE = 0.5
P99_MS = 100.0
BATCH_EVENTS_PER_S = 50_000
BATCH_OVER_SINGLE = 6.0  # where the machine is too slow for that
KB_PER_USER = 20.0
CPU_GROWTH = 1.2

FEW_USERS, MANY_USERS = 200, 20_000
SINGLE_CONNECTIONS = 200
BATCH, BATCH_CONNECTIONS = 50, 32
CELL_RUNS_ON_ARRIVAL = 3
WARM_UP_S = 1.0
# Few and many users are compared at the same rate, in pairs of loads; the order turns each time, so drift hits both.
# How much longer these are than the others: every user's last state is written once, however long the load was.
CPU_ROUNDS, CPU_LENGTH = 3, 2
# A cell a second from each of the many, or this part of all that the daemon takes from few, where that is less.
BUSY_EVENTS_PER_S, BUSY_SHARE = 1.0 * MANY_USERS, 0.7
# What so many students send who work as those of `campus-5000` do. One pair, longer, as it is slower.
CLASS_EVENTS_PER_S, CLASS_LENGTH = 6000.0, 3
RATE_REACHED = 0.95
# wrk above this share of its core may be what is measured.
GENERATOR_BUSY = 0.9
SERVER_IDLE = 0.85
# Floors of one run that differ by more say that the machine had other work.
FLOOR_SPREAD = 0.15


@dataclass(frozen=True)
class Bench:
    """What every row needs."""

    cores: Cores
    database: Database
    directory: Path
    seconds: float
    rounds: int

    @property
    def generator(self) -> Generator:
        """The load, on the core that PostgreSQL has too."""
        return Generator(self.cores.load, self.directory)

    def say(self, text: str) -> None:
        """Progress, on stderr: the table alone is on stdout."""
        print(text, file=sys.stderr, flush=True)

    def floor_load(self, floor: Server, *, batch: int, connections: int) -> Load:
        """One figure of the floor."""
        load = self.generator.run(floor, users=FEW_USERS, batch=batch, connections=connections, seconds=self.seconds)
        self.say(
            f"  floor   {load.requests_per_s:9,.0f} requests/s  p99 {load.p99_ms:.1f} ms"
            f"  {load.cpu_us_per_request:.1f} µs CPU a request"
        )
        return load

    def daemon_load(
        self,
        daemon: Daemon,
        *,
        users: int,
        batch: int,
        connections: int,
        seconds: float,
        events_per_s: float = math.inf,
    ) -> Drained:
        """One figure of the daemon."""
        found = daemon.measure(
            self.generator,
            users=users,
            batch=batch,
            connections=connections,
            seconds=seconds,
            events_per_s=events_per_s,
        )
        self.say(
            f"  daemon  {found.load.requests_per_s:9,.0f} requests/s  p99 {found.load.p99_ms:.1f} ms"
            f"  {found.cpu_us_per_event:.1f} µs CPU an event  ({users} users; drained in {found.drain_s:.1f} s)"
        )
        return found


def _against_floor(
    bench: Bench, row: Row, *, name: str, batch: int, connections: int
) -> tuple[list[Load], list[Drained]]:
    """Floor, daemon, floor, … in turn, each with the core to itself: the daemon has drained before the floor runs."""
    floors: list[Load] = []
    found: list[Drained] = []
    environment, log = dict(os.environ), bench.directory / f"floor-{name}.log"
    with (
        python_server(bench.cores.server, "loadtest.bench.floor", env=environment, log=log) as floor,
        daemons.running(bench.database, name, bench.directory, bench.cores.server) as daemon,
    ):
        bench.generator.run(floor, users=FEW_USERS, batch=batch, connections=connections, seconds=WARM_UP_S)
        bench.daemon_load(daemon, users=FEW_USERS, batch=batch, connections=connections, seconds=WARM_UP_S)
        floors.append(bench.floor_load(floor, batch=batch, connections=connections))
        for _ in range(bench.rounds):
            found.append(
                bench.daemon_load(daemon, users=FEW_USERS, batch=batch, connections=connections, seconds=bench.seconds)
            )
            floors.append(bench.floor_load(floor, batch=batch, connections=connections))
        daemon.refuse_double_rows()
        row.problems += daemon.problems
    row.problems += [f"floor: {load.non_2xx} not 2xx, {load.broken} broken" for load in floors if not load.clean]
    _note_generator(row, [*floors, *(each.load for each in found)])
    slowest, fastest = (choose(load.requests_per_s for load in floors) for choose in (min, max))
    if slowest < (1 - FLOOR_SPREAD) * fastest:
        row.notes.append(f"the floor went from {slowest:,.0f} to {fastest:,.0f} requests/s: the machine was not quiet")
    return floors, found


def _note_generator(row: Row, loads: list[Load]) -> None:
    busiest = max(load.generator_busy for load in loads)
    if busiest > GENERATOR_BUSY:
        row.notes.append(f"wrk used {busiest:.0%} of its core: the rates may be wrk's")


def _cpu_figures(row: Row, floors: list[Load], found: list[Drained]) -> None:
    """The share of the floor once more, by CPU time: what other work on the machine moves least."""
    floor_us = median(load.cpu_us_per_request for load in floors)
    daemon_us = median(each.load.cpu_us_per_request for each in found)
    row.add("floor's CPU a request", floor_us, "µs")
    row.add("daemon's CPU a request under load", daemon_us, "µs")
    row.add("share of the floor by CPU time", floor_us / daemon_us)


def _drained_figures(row: Row, found: list[Drained]) -> None:
    row.add("stored over load and drain", median(each.sustained_per_s for each in found), "events/s")
    row.add("lag when the load ended", median(each.lag_at_end for each in found), "events")
    row.add("time until lag 0", median(each.drain_s for each in found), "s")
    row.add("CPU an event, drain included", median(each.cpu_us_per_event for each in found), "µs")
    busy = median(each.load.server_busy for each in found)
    row.add("daemon's share of its core under load", busy)
    if busy < SERVER_IDLE:
        row.notes.append("the daemon did not fill its core: disk, PostgreSQL, wrk or other work held it back")
    row.add("answers that were not 2xx", sum(each.load.non_2xx for each in found))
    row.add("events verified in PostgreSQL", sum(each.stored for each in found))


def single(bench: Bench) -> tuple[Row, float]:
    """One event a POST; the events/s are the batch row's yardstick."""
    row = Row(f"one event a POST, {SINGLE_CONNECTIONS} connections, {FEW_USERS} users")
    bench.say(row.title)
    floors, found = _against_floor(bench, row, name="single", batch=1, connections=SINGLE_CONNECTIONS)
    floor_rate, rate = (
        median(load.requests_per_s for load in floors),
        median(each.load.requests_per_s for each in found),
    )
    floor_p99, p99 = median(load.p99_ms for load in floors), median(each.load.p99_ms for each in found)
    row.add("floor", floor_rate, "req/s")
    row.judge_ratio("daemon", rate, "req/s", floor_rate, FLOOR_SHARE, least=True)
    row.add("floor p99", floor_p99, "ms")
    row.judge("daemon p99", p99, "ms", max(floor_p99, P99_MS), floor=floor_p99)
    _cpu_figures(row, floors, found)
    _drained_figures(row, found)
    return row, rate


def batch(bench: Bench, single_rate: float | None) -> Row:
    """Fifty events a POST, of fifty users."""
    row = Row(f"{BATCH} events a POST, {BATCH_CONNECTIONS} connections, {FEW_USERS} users")
    bench.say(row.title)
    floors, found = _against_floor(bench, row, name="batch", batch=BATCH, connections=BATCH_CONNECTIONS)
    rate = median(each.load.events_per_s for each in found)
    floor_rate = median(load.events_per_s for load in floors)
    least: float = BATCH_EVENTS_PER_S
    if single_rate is not None:
        row.add(f"{BATCH_OVER_SINGLE:.0f} x single", BATCH_OVER_SINGLE * single_rate, "events/s")
        least = min(least, BATCH_OVER_SINGLE * single_rate)
    row.add("floor", floor_rate, "events/s")
    row.judge("daemon", rate, "events/s", least, least=True, floor=floor_rate)
    row.add("daemon p99", median(each.load.p99_ms for each in found), "ms")
    _cpu_figures(row, floors, found)
    _drained_figures(row, found)
    return row


def users(bench: Bench) -> Row:
    """What a live user costs in memory, and whether many make each event dearer.

    Two daemons, so that the one with few users really holds only those; one works at a time.
    """
    row = Row(f"{MANY_USERS:,} live users")
    bench.say(row.title)
    with contextlib.ExitStack() as stack:
        few, many = (
            stack.enter_context(daemons.running(bench.database, f"users-{size}", bench.directory, bench.cores.server))
            for size in (FEW_USERS, MANY_USERS)
        )
        empty, full = _arrive(many, MANY_USERS)
        _arrive(few, FEW_USERS)
        per_user = {kind: (full[kind] - empty[kind]) / MANY_USERS for kind in full}
        bench.say(f"  {per_user['uss']:,.0f} bytes a user")
        sizes = {FEW_USERS: few, MANY_USERS: many}
        throttle = _in_turns(bench, sizes, 1, 1)
        busy = min(BUSY_EVENTS_PER_S, BUSY_SHARE * throttle[FEW_USERS][0].load.events_per_s)
        steady = {
            busy: _in_turns(bench, sizes, CPU_ROUNDS, CPU_LENGTH, busy),
            CLASS_EVENTS_PER_S: _in_turns(bench, sizes, 1, CLASS_LENGTH, CLASS_EVENTS_PER_S),
        }
        for daemon in (few, many):
            daemon.refuse_double_rows()
            row.problems += [f"{daemon.name}: {problem}" for problem in daemon.problems]
    row.add("empty daemon (USS)", empty["uss"] / 1e6, "MB")
    row.add(f"with {MANY_USERS:,} users (USS)", full["uss"] / 1e6, "MB")
    row.judge("memory a user (USS)", per_user["uss"] / 1000, "kB", KB_PER_USER)
    row.add("memory a user (PSS)", per_user["pss"] / 1000, "kB")
    row.add("memory a user (RSS)", per_user["rss"] / 1000, "kB")
    for rate, loads in steady.items():
        few_cost, many_cost = (median(each.cpu_us_per_event for each in loads[size]) for size in sizes)
        row.add(f"CPU an event at {rate:,.0f}/s, {FEW_USERS} users", few_cost, "µs")
        row.judge_ratio(f"CPU an event at {rate:,.0f}/s, {MANY_USERS:,} users", many_cost, "µs", few_cost, CPU_GROWTH)
        row.notes += [
            f"{each.load.events_per_s:,.0f} events/s came, not {rate:,.0f}, from {size} users"
            for size, found in loads.items()
            for each in found
            if each.load.events_per_s < RATE_REACHED * rate
        ]
    for size, found in throttle.items():
        row.add(f"CPU an event at full throttle, {size:,} users", found[0].cpu_us_per_event, "µs")
    _note_generator(row, [found[0].load for found in throttle.values()])
    return row


def _in_turns(
    bench: Bench, sizes: dict[int, Daemon], rounds: int, length: float, events_per_s: float = math.inf
) -> dict[int, list[Drained]]:
    """Loads for each daemon in turn, by its number of users. Without a rate the cheaper one gets more to do."""
    found: dict[int, list[Drained]] = {size: [] for size in sizes}
    for round_ in range(rounds):
        for size in list(sizes)[:: 1 if round_ % 2 == 0 else -1]:
            load = bench.daemon_load(
                sizes[size],
                users=size,
                batch=1,
                connections=SINGLE_CONNECTIONS,
                seconds=length * bench.seconds,
                events_per_s=events_per_s,
            )
            found[size].append(load)
    return found


def _arrive(daemon: Daemon, size: int) -> tuple[dict[str, int], dict[str, int]]:
    """That many users open a notebook and run three cells; memory before, and after all is stored."""
    empty = daemon.memory()
    daemon.post_all(arrivals(size, CELL_RUNS_ON_ARRIVAL), BATCH)
    daemon.wait_until_stored()
    # Snapshots and broadcasts of the last second are over too.
    time.sleep(1.0)
    stored = (daemon.activity_rows(), daemon.cell_rows())
    if stored != (size, size * CELL_RUNS_ON_ARRIVAL):
        daemon.problems.append(
            f"{size} users opened a notebook and ran {CELL_RUNS_ON_ARRIVAL} cells each: stored {stored}"
        )
    return empty, daemon.memory()


def floor_only(bench: Bench) -> Row:
    """The floor alone, to see what a machine gives."""
    row = Row("floor")
    log = bench.directory / "floor.log"
    with python_server(bench.cores.server, "loadtest.bench.floor", env=dict(os.environ), log=log) as floor:
        bench.generator.run(floor, users=FEW_USERS, batch=1, connections=SINGLE_CONNECTIONS, seconds=WARM_UP_S)
        for size, connections in ((1, SINGLE_CONNECTIONS), (BATCH, BATCH_CONNECTIONS)):
            load = bench.floor_load(floor, batch=size, connections=connections)
            row.add(f"{size} events a POST", load.requests_per_s, "req/s")
            row.add(f"{size} events a POST, p99", load.p99_ms, "ms")
            row.add(f"{size} events a POST, wrk's share of its core", load.generator_busy)
            _note_generator(row, [load])
    return row
