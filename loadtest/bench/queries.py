"""The row of queries: tables of millions of rows, and how long the API takes to answer about them."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from urllib.parse import urlsplit

import psutil

from loadtest.bench import daemon as daemons
from loadtest.bench import filling, servers
from loadtest.bench.daemon import Daemon
from loadtest.bench.measures import BATCH, CELL_RUNS_ON_ARRIVAL, Bench
from loadtest.bench.report import Row
from loadtest.bench.traffic import arrivals, samples
from loadtest.errors import LoadTestError

# What issue 4 promises.
SERIES_ROWS, SERIES_MS = 5_000_000, 300.0
SUMMARY_ROWS, SUMMARY_MS, CACHED_P99_MS = 1_000_000, 500.0, 10.0
OVERVIEW_USERS, OVERVIEW_P99_MS = 1000, 20.0

TRIES = 9
LIVE_EVENTS_PER_S, LIVE_S = 1000, 10
QUICK_TRIES = 300  # of what p99 is asked of
ANSWER_TIMEOUT_S = 60.0
CACHE_TIMEOUT_S = 5.0
SUMS_TIMEOUT_S = 180.0

ACTIVITY = "/api/v1/series/activity?class=class0"
ERRORS = "/api/v1/series/errors?class=class0"
SUMMARY = "/api/v1/notebooks/summary?class=class0&path=lesson0.ipynb"
OVERVIEW = "/api/v1/classes/default/overview"
SUMMARY_KEY = "class_summary:class0:lesson0.ipynb"


def queries(bench: Bench) -> Row:
    """Times of whole answers, over loopback. PostgreSQL has all cores here: it is what works."""
    row = Row("queries")
    psutil.Process(bench.database.pid).cpu_affinity([bench.cores.server, bench.cores.load])
    with _filled(bench, "series", SERIES_ROWS) as daemon:
        for name, path in (
            ("activity, 1 h of 10 m by user", ACTIVITY),
            ("errors, 24 h of 1 h by notebook", ERRORS),
            ("activity, 24 h of 1 h by user", f"{ACTIVITY}&since=24h&every=1h"),
        ):
            _judge(row, f"{name}, of {SERIES_ROWS:,} rows", _times(daemon, path, TRIES), SERIES_MS)
        everything = f"{ERRORS}&since={filling.DAYS}d&every=1d&by=none"
        row.add("errors of all these rows, by day", median(_times(daemon, everything, 3)), "ms")
        everything = f"{ACTIVITY}&since={filling.DAYS}d&every=1d"
        row.add("activity of all these rows, by day and user", median(_times(daemon, everything, 3)), "ms")
    with servers.redis_server(bench.directory, bench.cores.load) as redis:
        for notebooks in (filling.NOTEBOOKS, 1):
            with _filled(bench, f"summary{notebooks}", SUMMARY_ROWS, notebooks, redis.environment) as daemon:
                name = f"summary, {SUMMARY_ROWS // notebooks:,} of {SUMMARY_ROWS:,} rows"
                if notebooks == 1:
                    times = [_uncached_ms(daemon, redis) for _ in range(TRIES)]
                    row.add(f"{name}, before the daemon has summed them", median(times), "ms")
                    _sum_up(bench, f"summary{notebooks}")
                _judge(row, name, [_uncached_ms(daemon, redis) for _ in range(TRIES)], SUMMARY_MS)
                _judge_p99(row, f"{name}, cached", _times(daemon, SUMMARY, QUICK_TRIES), CACHED_P99_MS)
    with daemons.running(bench.database, "overview", bench.directory, bench.cores.server) as daemon:
        daemon.post_all(arrivals(OVERVIEW_USERS, CELL_RUNS_ON_ARRIVAL), BATCH)
        daemon.wait_until_stored()
        name = f"overview with {OVERVIEW_USERS:,} live users"
        _judge_p99(row, name, _overviews(daemon), OVERVIEW_P99_MS)
        _judge_p99(row, f"{name} under {LIVE_EVENTS_PER_S:,} events/s", _under_load(bench, daemon), OVERVIEW_P99_MS)
        # The events are still being applied when it is asked for, so this is theirs too.
        times = _overviews(daemon, changed=True)
        row.add("overview at once after an event of each of them, p99", _p99(times), "ms")
    return row


@contextlib.contextmanager
def _filled(
    bench: Bench, name: str, rows: int, notebooks: int = 20, more: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A daemon whose database has so many rows of one class; ``more`` is of its environment."""
    with daemons.running(bench.database, name, bench.directory, bench.cores.server, more=more) as daemon:
        began = time.monotonic()
        bench.database.ask(name, filling.cell_rows(rows, notebooks=notebooks))
        bench.database.ask(name, "VACUUM ANALYZE cell_executions")
        bench.database.ask(name, "CHECKPOINT")
        bench.say(f"  {name}: {rows:,} rows in {time.monotonic() - began:.0f} s")
        yield daemon


def _sum_up(bench: Bench, name: str) -> None:
    """Say that the rows are stored, and wait until the daemon has added them up."""
    bench.database.ask(name, filling.stored(SUMMARY_ROWS))
    deadline = time.monotonic() + SUMS_TIMEOUT_S
    while bench.database.ask(name, "SELECT max(seq) FROM cell_sums_offsets").strip() != str(SUMMARY_ROWS):
        if time.monotonic() > deadline:
            raise LoadTestError(f"the daemon did not sum up {SUMMARY_ROWS:,} rows within {SUMS_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def _judge(row: Row, name: str, times: list[float], limit_ms: float) -> None:
    found = median(times)
    row.judge(name, found, "ms", limit_ms)


def _p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]


def _judge_p99(row: Row, name: str, times: list[float], limit_ms: float) -> None:
    found = _p99(times)
    row.judge(f"{name}, p99", found, "ms", limit_ms)


def _uncached_ms(daemon: Daemon, redis: servers.Redis) -> float:
    """The summary, which the cache has afterwards and not before."""
    redis.delete(SUMMARY_KEY)
    (found,) = _times(daemon, SUMMARY, 1)
    deadline = time.monotonic() + CACHE_TIMEOUT_S
    while not redis.holds(SUMMARY_KEY):
        if time.monotonic() > deadline:
            raise LoadTestError(f"{SUMMARY_KEY} did not come into Redis")
        time.sleep(0.01)
    return found


def _overviews(daemon: Daemon, *, changed: bool = False) -> list[float]:
    """Times of overviews, each of all users; ``changed``: each of them has run a cell before each."""
    times = []
    for _ in range(QUICK_TRIES):
        if changed:
            daemon.post_all(samples("ran", OVERVIEW_USERS, OVERVIEW_USERS), 10 * BATCH)
        times += _times(daemon, OVERVIEW, 1)
    users = len(daemon.get(OVERVIEW)["state"]["users"])
    if users != OVERVIEW_USERS:
        raise LoadTestError(f"{OVERVIEW}: {users} users in place of {OVERVIEW_USERS}")
    return times


def _under_load(bench: Bench, daemon: Daemon) -> list[float]:
    """Times of overviews while single events of all users come at a steady rate."""
    load = partial(
        bench.generator.run,
        daemon.server,
        users=OVERVIEW_USERS,
        batch=1,
        connections=32,
        seconds=LIVE_S,
        events_per_s=LIVE_EVENTS_PER_S,
    )
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(load)
        time.sleep(1.0)
        times = []
        while not found.done():
            times += _times(daemon, OVERVIEW, 1)
            time.sleep(0.02)
        if not found.result().clean or found.result().events_per_s < 0.9 * LIVE_EVENTS_PER_S:
            raise LoadTestError(f"the load beside overviews was {found.result()}")
    return times


def _times(daemon: Daemon, path: str, tries: int) -> list[float]:
    """Milliseconds from a request to the end of its answer, each on one kept connection."""
    netloc = urlsplit(daemon.server.address).netloc
    times = []
    with contextlib.closing(http.client.HTTPConnection(netloc, timeout=ANSWER_TIMEOUT_S)) as connection:
        for _ in range(tries):
            began = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            times.append((time.perf_counter() - began) * 1000)
            if answer.status != 200 or not json.loads(body):
                raise LoadTestError(f"{path}: {answer.status} {body[:300]!r}")
    return times
