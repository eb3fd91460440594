"""The row of queries: tables of millions of rows, and how long the API takes to answer about them."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from statistics import median
from urllib.parse import urlsplit

import psutil

from loadtest.bench import daemon as daemons
from loadtest.bench import filling
from loadtest.bench.daemon import Daemon
from loadtest.bench.measures import BATCH, CELL_RUNS_ON_ARRIVAL, Bench
from loadtest.bench.processes import BenchError
from loadtest.bench.report import Row
from loadtest.bench.traffic import arrivals

# What issue 4 promises.
SERIES_ROWS, SERIES_MS = 5_000_000, 300.0
SUMMARY_ROWS, SUMMARY_MS = 1_000_000, 500.0
OVERVIEW_USERS, OVERVIEW_P99_MS = 1000, 20.0

TRIES = 9
OVERVIEWS = 300
ANSWER_TIMEOUT_S = 60.0

ACTIVITY = "/api/v1/series/activity?class=class0"
ERRORS = "/api/v1/series/errors?class=class0"
SUMMARY = "/api/v1/notebooks/summary?class=class0&path=lesson0.ipynb"


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
    for notebooks in (filling.NOTEBOOKS, 1):
        with _filled(bench, f"summary{notebooks}", SUMMARY_ROWS, notebooks) as daemon:
            name = f"summary, {SUMMARY_ROWS // notebooks:,} of {SUMMARY_ROWS:,} rows"
            _judge(row, name, _times(daemon, SUMMARY, TRIES), SUMMARY_MS)
    with daemons.running(bench.database, "overview", bench.directory, bench.cores.server) as daemon:
        daemon.post_all(arrivals(OVERVIEW_USERS, CELL_RUNS_ON_ARRIVAL), BATCH)
        daemon.wait_until_stored()
        times = sorted(_times(daemon, "/api/v1/classes/default/overview", OVERVIEWS))
        p99 = times[int(0.99 * len(times))]
        held = p99 <= OVERVIEW_P99_MS
        name = f"overview with {OVERVIEW_USERS:,} live users, p99"
        row.judge(name, p99, "ms", bound=f"<= {OVERVIEW_P99_MS:.0f} ms", held=held)
    return row


@contextlib.contextmanager
def _filled(bench: Bench, name: str, rows: int, notebooks: int = 20) -> Iterator[Daemon]:
    """A daemon whose database has so many rows of one class."""
    with daemons.running(bench.database, name, bench.directory, bench.cores.server) as daemon:
        began = time.monotonic()
        bench.database.ask(name, filling.cell_rows(rows, notebooks=notebooks))
        bench.database.ask(name, "VACUUM ANALYZE cell_executions")
        bench.database.ask(name, "CHECKPOINT")
        bench.say(f"  {name}: {rows:,} rows in {time.monotonic() - began:.0f} s")
        yield daemon


def _judge(row: Row, name: str, times: list[float], limit_ms: float) -> None:
    found = median(times)
    row.judge(name, found, "ms", bound=f"<= {limit_ms:.0f} ms", held=found <= limit_ms)


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
                raise BenchError(f"{path}: {answer.status} {body[:300]!r}")
    return times
