"""What a run found, as it is written to JSON and read again for reports and comparisons."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, Final

import msgspec

from loadtest.check import Check
from loadtest.errors import UsageError
from loadtest.histograms import Histogram
from loadtest.ledger import Tally
from loadtest.monitor import Sample
from loadtest.notifications import News
from loadtest.promises import Verdict, rank_of
from loadtest.rows import STORED

FORMAT: Final = 1
# Figures that every result has, in the order of its table.
SHOWN: Final = (
    *("rate", "errors", "p50", "p90", "p99", "p999", "max"),
    *("notify_p50", "notify_p99", "notify_max", "alert_p99", "alert_max", "delta_p99", "delta_max"),
    *("query_p50", "query_p99", "lag_max", "lag_slope", "drain", "memory_slope", "lost"),
)
# What became of events, and how many requests of all kinds that took.
ENDS: Final = ("sent", "acknowledged", "refused", "unknown", "requests", "retries", "given up", "never sent in time")
# A generator that wakes later than this, or has less of its core left, may be what is measured.
LATE_S: Final = 0.05
BUSY_CORES: Final = 0.9
# Over less, a slope says more about the moment than about what grows.
SLOPE_OVER_S: Final = 55.0
TEN_MINUTES_S: Final = 600.0
MEGABYTE: Final = 1e6


class Judgement(msgspec.Struct):
    """A promise beside what came; `strain` is the share of the bound that is used up, above 1 broken."""

    promise: str
    figure: str
    value: float | None
    measured: str
    held: bool
    strain: float | None


class Limits(msgspec.Struct):
    """The generator's own: what of the times may be its doing and not the daemon's."""

    late_p99_s: float
    late_max_s: float
    cpu_cores: float  # the busiest process'
    processes: int
    saturated: bool
    says: str


class Moment(msgspec.Struct):
    """The time line, by the second in which requests were due."""

    second: int
    requests: int
    acknowledged: int
    errors: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None
    notify_p50_s: float | None
    notify_p99_s: float | None


class Result(msgspec.Struct):
    """One run."""

    scenario: str
    says: str
    started: str  # RFC 3339
    options: dict[str, Any]
    environment: dict[str, str]
    interrupted: bool
    ok: bool  # neither interrupted nor a failure
    judgements: list[Judgement]
    checks: list[Check]
    figures: dict[str, float | None]  # times in seconds, `errors` in percent
    events: dict[str, int]  # by `ENDS`
    errors_by_kind: dict[str, int]
    generator: Limits
    notes: list[str]
    faults: list[tuple[str, float, float]]  # text, at, for
    timeline: list[Moment]
    samples: list[Sample]
    histograms: dict[str, Histogram]
    subscribers: dict[str, int]
    format: int = FORMAT
    capped: bool = False  # it ended at --max-events

    @property
    def counted(self) -> bool:
        """Whether rows were, by SQL: the API does not show every event."""
        return any(check.name == STORED for check in self.checks)

    def while_loaded(self, read: Callable[[Sample], float | None]) -> float | None:
        """The mean over the samples of the load; None when none of them knows."""
        loaded = [each for each in self.samples if 0 < each.offset_s <= float(self.options["duration_s"])]
        known = [value for value in map(read, loaded) if value is not None]
        return mean(known) if known else None

    @property
    def failures(self) -> list[str]:
        """Why it is no success, a few words each."""
        broken = [each.promise for each in self.judgements if not each.held]
        reasons = {
            f"{len(broken)} of {len(self.judgements)} promises broken": bool(broken),
            "the load was not played to its end": self.capped,
            "nothing was acknowledged": not self.events["acknowledged"],
            "events are not accounted for": not all(check.held for check in self.checks),
        }
        return [reason for reason, holds in reasons.items() if holds]

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.interrupted:
            return "INTERRUPTED: a part of the run, and no verdict on the whole"
        if failures := self.failures:
            return f"BROKEN: {'; '.join(failures)}"
        missing = "nothing is missing" if self.counted else "nothing that the API shows is missing"
        return f"HELD: every promise, and {missing}" if self.judgements else f"HELD: {missing}"


def figures(
    tally: Tally, news: News | None, samples: list[Sample], *, loaded_s: float, drain_s: float | None, lost: int
) -> dict[str, float | None]:
    """Every figure that a promise can be about."""
    histograms = histograms_of(tally, news)
    rate = sum(second.acknowledged for second in tally.seconds.values()) / loaded_s if loaded_s else None
    loaded = [each for each in samples if each.offset_s <= loaded_s]
    memory = slope([(each.offset_s, each.rss_bytes) for each in loaded if each.rss_bytes])
    lag = slope([(each.offset_s, each.lag_events) for each in loaded if each.lag_events is not None])
    found: dict[str, float | None] = {
        "rate": rate,
        "errors": 100 * tally.errors / tally.requests if tally.requests else None,
        "lost": float(lost),
        "drain": drain_s,
        "lag_max": max((each.lag_events for each in samples if each.lag_events is not None), default=None),
        "lag_slope": lag * TEN_MINUTES_S / rate if lag is not None and rate else None,
        "memory_slope": memory * TEN_MINUTES_S / MEGABYTE if memory is not None else None,
    }
    for name in SHOWN:
        if name not in found:
            found[name] = percentile(name, histograms)
    return found


def percentile(name: str, histograms: dict[str, Histogram]) -> float | None:
    """A figure like `notify_p99`, in seconds; None when nothing was timed."""
    rank = rank_of(name)
    assert rank is not None, name
    histogram = histograms.get(rank[0])
    if histogram is None or not histogram.total:
        return None
    return histogram.max if rank[1] == 100 else histogram.percentile(rank[1])


def histograms_of(tally: Tally, news: News | None) -> dict[str, Histogram]:
    """What was timed, whole."""
    post, query = Histogram(), Histogram()
    for second in tally.seconds.values():
        post.merge(second.post)
        query.merge(second.query)
    found = {"post": post, "query": query}
    if news is not None:
        found |= {"alert": news.alerts, "delta": news.deltas, "notify": news.all}
    return found


def slope(points: list[tuple[float, float]]) -> float | None:
    """Growth a second: the line of least squares through the second half.

    The first is warm-up. In `soak` it is as long as the daemon's window of known events, which fills until then.
    """
    points = points[len(points) // 2 :]
    if not points or points[-1][0] - points[0][0] < SLOPE_OVER_S:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def limits(tally: Tally, *, processes: int) -> Limits:
    """Whether the generator kept up with its own schedule."""
    late, longest = tally.behind.percentile(99), tally.behind.max
    cpu = tally.cpu_cores
    where = " in the busiest process" if processes > 1 else ""
    late_too_often, busy = late > LATE_S, cpu > BUSY_CORES
    if late_too_often or busy:
        says = (
            f"the generator saturates ({cpu:.0%} of a core{where}, wakes up to {late * 1000:.0f} ms late at p99): "
            "the times are partly its own. Use --workers, --transport lean, fewer --subscribers, or another machine"
        )
    else:
        wakes = f"wakes {late * 1000:.1f} ms late at p99, {longest * 1000:.0f} ms at most"
        says = f"the generator kept up: {cpu:.0%} of a core{where}, {wakes}"
    return Limits(late, longest, cpu, processes, late_too_often or busy, says)


def timeline(tally: Tally, news: News | None) -> list[Moment]:
    """By second; seconds in which nothing was due are left out."""
    moments = []
    for number in sorted(tally.seconds):
        second = tally.seconds[number]
        told = (news.by_second.get(number) if news is not None else None) or Histogram()
        timed = second.post
        moments.append(
            Moment(
                number,
                second.requests,
                second.acknowledged,
                second.errors,
                *(timed.percentile(rank) if timed.total else None for rank in (50, 99, 100)),
                *(told.percentile(rank) if told.total else None for rank in (50, 99)),
            )
        )
    return moments


def judgement(verdict: Verdict) -> Judgement:
    """For the file."""
    strain = verdict.strain
    finite = strain if strain != float("inf") else None
    promise = verdict.promise
    return Judgement(promise.text, promise.figure, verdict.value, verdict.measured, verdict.held, finite)


def environment(target: str, daemon_version: str | None) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "target": target,
        "daemon": daemon_version or "unknown",
        "harness": f"classpulse {version('classpulse')}",
        "generator's machine": machine(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "trio": version("trio"),
        "httpx": version("httpx"),
    }


def machine() -> str:
    """This one, and how busy it is."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.2f}"


def now_text() -> str:
    """The wall clock as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def packed(result: Result) -> bytes:
    """As JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def read(path: Path) -> Result:
    """Back from JSON; UsageError when it is none of ours."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: not a result of a load test: {error}") from error
    if result.format != FORMAT:
        raise UsageError(f"{path}: is of format {result.format}, this program reads {FORMAT}")
    if lacking := [name for name in ENDS if name not in result.events]:
        raise UsageError(f"{path}: not a result of a load test: events without {lacking[0]!r}")
    return result
