"""The daemon's own figures during a run: `/metrics` each second, and its process where we can see it."""

import contextlib
import math
import re
from statistics import median
from typing import Final

import msgspec
import psutil
import trio

from loadtest.durations import written
from loadtest.errors import TransportError
from loadtest.plan import Clock
from loadtest.target import Target
from loadtest.transports import LeanTransport, Line

EVERY_S: Final = 1.0
# What is no number is not told.
_SAMPLE: Final = re.compile(
    r"^([a-z_]+)(?:\{(.*)\})? ([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]Inf)$", re.MULTILINE
)
# Of each store: events that it does not have yet.
LAG: Final = "classpulse_store_lag_events"
_LABEL: Final = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


class Sample(msgspec.Struct, omit_defaults=True):
    """One look. None: not known. CPU in cores, times in seconds, memory in bytes."""

    offset_s: float
    lag_events: float | None = None  # of the store that is furthest behind
    commit_mean_s: float | None = None  # of the commits since the look before
    commit_p99_s: float | None = None  # upper end of the metrics' bucket, and of the next
    commit_max_s: float | None = None
    actors: float | None = None
    mailbox: float | None = None
    cpu_cores: float | None = None
    rss_bytes: float | None = None
    generator_cpu_cores: float | None = None  # of this process, without its workers
    machine_cpu_cores: float | None = None  # of all that runs on this machine


class Scrape:
    """One answer of `/metrics`, by name and labels."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, labels, value in _SAMPLE.findall(text):
            self._values.setdefault(name, []).append((dict(_LABEL.findall(labels)), float(value)))

    def total(self, name: str, **labels: str) -> float | None:
        """Over all labels, or those that have these values; None when it is not there."""
        found = [value for its, value in self._values.get(name, []) if its.items() >= labels.items()]
        return sum(found) if found else None

    def highest(self, name: str) -> float | None:
        """Of all labels; None when it is not there."""
        return max((value for _, value in self._values.get(name, [])), default=None)

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound in seconds, over all other labels."""
        counts: dict[float, float] = {}
        for labels, value in self._values.get(f"{name}_bucket", []):
            bound = float(labels["le"])
            counts[bound] = counts.get(bound, 0) + value
        return counts


def bucket_percentile(before: dict[float, float], after: dict[float, float], percent: float) -> float | None:
    """The upper bound of the bucket that holds the percentile of what came between; None when nothing did."""
    came = {bound: count - before.get(bound, 0) for bound, count in sorted(after.items())}
    total = max(came.values(), default=0)
    if total <= 0:
        return None
    return next((bound for bound, count in came.items() if count >= total * percent / 100), None)


class Monitor:
    """Looks at the daemon once a second."""

    def __init__(self, target: Target, clock: Clock, pid: int | None) -> None:
        """`pid` is the daemon's, where it is known; a loopback target's is looked for."""
        self.samples: list[Sample] = []
        self.pid = pid
        self.metrics_missing = False
        self._target = target
        self._clock = clock
        self._before: tuple[float, float, dict[float, float]] | None = None
        self._cpu: dict[int, tuple[float, float]] = {}

    def restart(self, clock: Clock) -> None:
        """The run begins at another moment than was thought."""
        self._clock = clock
        self._cpu = {}
        self.samples.clear()

    async def run(self) -> None:
        """Look until cancelled."""
        async with LeanTransport(self._target) as transport:
            line = transport.line()
            try:
                while True:
                    await self.look(line)
                    await trio.sleep(EVERY_S)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await line.aclose()

    async def look(self, line: Line) -> None:
        """Take one sample."""
        sample = Sample(round(self._clock.offset_s, 3))
        try:
            answer = await line.get("/metrics")
        except TransportError:
            self._before = None
        else:
            if answer.status == 200:
                self._read(Scrape(answer.body.decode(errors="replace")), sample)
            else:
                self.metrics_missing = True
        self._processes(sample)
        self.samples.append(sample)

    def _read(self, scrape: Scrape, sample: Sample) -> None:
        # An event that several stores wait for is one event.
        sample.lag_events = scrape.highest(LAG)
        sample.actors = scrape.total("classpulse_session_actors")
        sample.mailbox = scrape.total("classpulse_mailbox_depth")
        name = "classpulse_journal_commit_seconds"
        count, total = scrape.total(f"{name}_count") or 0.0, scrape.total(f"{name}_sum") or 0.0
        buckets = scrape.buckets(name)
        if self._before is not None and count > self._before[0]:
            sample.commit_mean_s = (total - self._before[1]) / (count - self._before[0])
            sample.commit_p99_s = bucket_percentile(self._before[2], buckets, 99)
            sample.commit_max_s = bucket_percentile(self._before[2], buckets, 100)
        self._before = count, total, buckets

    def _processes(self, sample: Sample) -> None:
        """CPU and memory; nothing when the daemon runs elsewhere."""
        if self.pid is None and self._target.loopback:
            self.pid = listening_on(self._target.port)
        sample.generator_cpu_cores = self._cores(psutil.Process().pid)
        sample.machine_cpu_cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        if self.pid is None:
            return
        try:
            sample.rss_bytes = float(psutil.Process(self.pid).memory_info().rss)
            sample.cpu_cores = self._cores(self.pid)
        except psutil.Error:
            self.pid = None

    def _cores(self, pid: int) -> float | None:
        """Share of a core since the last look."""
        times = psutil.Process(pid).cpu_times()
        now, used = self._clock.offset_s, times.user + times.system
        before = self._cpu.get(pid)
        self._cpu[pid] = now, used
        return None if before is None or now <= before[0] else (used - before[1]) / (now - before[0])


def commits_say(samples: list[Sample]) -> str | None:
    """How long the journal's commits took, for people: every answer waits for one. None where no look saw any."""
    seen = [each for each in samples if each.offset_s >= 0 and each.commit_mean_s is not None]
    if not seen:
        return None
    usual = median(each.commit_mean_s or 0 for each in seen)
    worst, at = max((each.commit_max_s or 0, -each.offset_s) for each in seen)
    slowest = "longer than the metrics tell" if math.isinf(worst) else f"up to {written(worst)}"
    return f"commits took {written(usual)} on average in the usual second; the slowest took {slowest}, at {-at:.0f} s"


def listening_on(port: int) -> int | None:
    """The process that listens on a TCP port of this machine, when we may know it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
                pid: int = connection.pid
                return pid
    return None
