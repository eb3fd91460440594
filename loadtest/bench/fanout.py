"""The row of the fan-out: many subscribers of one class, when they hear of what happens, and what they cost."""

import contextlib
import os
from collections.abc import Iterator
from statistics import median
from typing import Final

from loadtest.bench import daemon as daemons
from loadtest.bench import harness
from loadtest.bench.daemon import Daemon
from loadtest.bench.measures import FEW_USERS, Bench
from loadtest.bench.report import Row
from loadtest.processes import python_server

SUBSCRIBERS: Final = 100
# What is promised of deltas, at this many events a second.
DELTA_P99_MS: Final = 200.0
EVENTS_PER_S: Final = 500
# For four times the events. Not 1: a delta that tells of more students is longer.
CPU_GROWTH: Final = 1.5
# Who listens where CPU is measured: a hundred cost so little that the difference of two loads is mostly noise.
LISTENERS: Final = 4 * SUBSCRIBERS

# A steady number of POSTs, of more and more events: then commits, wakes and ticks are the same at every rate. Single
# events would hide the cost, because a daemon that is busy with sending commits more of them at a time.
POSTS_PER_S: Final = 50
CONNECTIONS: Final = 8
RATES: Final = (EVENTS_PER_S // 2, EVENTS_PER_S, EVENTS_PER_S * 2)
# One load has the noise of the machine in it, and what is looked for is a difference of two.
ROUNDS: Final = 3
# Everybody at work from the begin; long enough for a p99 that is no single tick's.
SHAPE: Final = "hold:15s"


def fanout(bench: Bench, subscribers: int) -> Row:
    """Deltas by the harness, whose students post one event at a time; CPU by wrk, with one listening and with many."""
    row = Row(f"{subscribers} subscribers of one class of {FEW_USERS}")
    bench.say(row.title)
    with daemons.running(bench.database, "fanout", bench.directory, bench.cores.server) as daemon:
        _delays(bench, daemon, subscribers, row)
        # One listens and not nobody: a class that is not watched makes no deltas.
        counts = (1, max(subscribers, LISTENERS))
        busy: dict[tuple[int, int], list[float]] = {(count, rate): [] for count in counts for rate in RATES}
        for _ in range(ROUNDS):
            for count in counts:
                with _listening(bench, daemon, count):
                    for rate in RATES:
                        busy[count, rate].append(_busy(bench, daemon, count, rate))
        row.problems += daemon.problems
    for (count, rate), found in busy.items():
        row.add(f"daemon's CPU at {rate:,} events/s, {count} listening", median(found), "% core")
    # Of each round by itself: what else the machine does changes from one to the next.
    low, *between, high = (
        (rate, median(all_ - one for all_, one in zip(busy[counts[1], rate], busy[1, rate], strict=True)))
        for rate in RATES
    )
    for rate, cost in (low, *between):
        row.add(f"fan-out's CPU at {rate:,} events/s", cost, "% core")
    row.judge_ratio(f"fan-out's CPU at {high[0]:,} events/s (floor: {low[0]:,})", high[1], "% core", low[1], CPU_GROWTH)
    return row


def _delays(bench: Bench, daemon: Daemon, subscribers: int, row: Row) -> None:
    found = harness.play(
        bench,
        "fanout",
        "classroom-200",
        *("--target", daemon.server.address, "--dsn", bench.database.dsn(daemon.name), "--shape", SHAPE, "--slo", ""),
        *("--students", str(FEW_USERS), "--rate", str(EVENTS_PER_S), "--subscribers", str(subscribers)),
        # Who reads a hundred streams would post late, and the lateness would count as the daemon's.
        *("--workers", "2"),
    )
    row.problems += harness.faults(found)
    row.notes += found.notes
    name = f"delta p99 at {EVENTS_PER_S} events/s"
    row.judge(name, 1000 * harness.figure(found, "delta_p99"), "ms", DELTA_P99_MS)
    row.add("alert p99", 1000 * harness.figure(found, "alert_p99"), "ms")
    row.add("API p99", 1000 * harness.figure(found, "p99"), "ms")
    row.add("daemon's CPU", 100 * harness.daemon_cores(found), "% core")
    row.add("frames read", found.subscribers["frames"])


@contextlib.contextmanager
def _listening(bench: Bench, daemon: Daemon, count: int) -> Iterator[None]:
    """So many subscribers, beside the load on its core, until the end of the block."""
    arguments = (daemon.server.address, "default", str(count))
    log = bench.directory / "listeners.log"
    with python_server(bench.cores.load, "loadtest.bench.listeners", *arguments, env=dict(os.environ), log=log):
        yield


def _busy(bench: Bench, daemon: Daemon, count: int, rate: int) -> float:
    """The daemon's share of its core under a load."""
    found = daemon.measure(
        bench.generator,
        users=FEW_USERS,
        batch=rate // POSTS_PER_S,
        connections=CONNECTIONS,
        seconds=bench.seconds / 2,
        events_per_s=rate,
    )
    busy = 100 * found.load.server_busy
    bench.say(f"  daemon  {found.load.events_per_s:6,.0f} events/s  {count:4} listening  {busy:.1f} % of a core")
    return busy
