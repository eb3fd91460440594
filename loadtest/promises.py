"""What must hold, as people write it: `p99<100ms, notify_p99<1s, errors<0.1%`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loadtest import durations
from loadtest.errors import UsageError

# What is measured, beside the percentiles: the figure's name, its unit, what it says.
FIGURES: Final = {
    "errors": ("%", "requests that were not answered 2xx at the first attempt"),
    "lost": ("", "faults in the accounts: what is missing or too much, and what could not be asked"),
    "lag_max": ("", "most events that were not stored, by the store that was furthest behind"),
    "drain": ("s", "from the end of the load until every store had all"),
    # Both without the first half of the load, which is warm-up.
    "memory_slope": ("MB", "growth of the daemon's resident memory in 10 minutes"),
    "lag_slope": ("s", "growth of what is not yet stored in 10 minutes, in seconds of load"),
    "rate": ("", "events acknowledged a second"),
}
# Percentiles of: answers to POSTs, answers to queries, news at a subscriber's socket (all, alerts, deltas).
TIMES: Final = ("", "query_", "notify_", "alert_", "delta_")
_RANK: Final = re.compile(rf"({'|'.join(TIMES)})(p\d{{1,2}}(?:\.\d+)?|p999|max)")
_WRITTEN: Final = re.compile(r"\s*([a-z_0-9.]+)\s*(<=|>=|<|>)\s*(\d[\d.]*)\s*([a-z%]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Promise:
    """A bound on one figure. Times are in seconds, shares in percent."""

    figure: str
    relation: str
    bound: float
    text: str

    def holds(self, value: float | None) -> bool:
        """Whether the value keeps it; what was not measured does not."""
        if value is None:
            return False
        match self.relation:
            case "<":
                return value < self.bound
            case "<=":
                return value <= self.bound
            case ">":
                return value > self.bound
        return value >= self.bound

    def strain(self, value: float | None) -> float:
        """How much of the bound is used up: 1 is at the bound, above is broken."""
        if value is None:
            return float("inf")
        if self.relation.startswith("<"):
            return value / self.bound if self.bound else (1.0 if value == 0 else float("inf"))
        return self.bound / value if value else float("inf")

    @property
    def rank(self) -> tuple[str, float] | None:
        """For a time: of what, and the percentile (100 is the longest)."""
        return rank_of(self.figure)

    @property
    def unit(self) -> str:
        """See `unit_of`."""
        return unit_of(self.figure)


@dataclass(frozen=True)
class Verdict:
    """A promise and what came."""

    promise: Promise
    value: float | None

    @property
    def held(self) -> bool:
        """Whether it was kept."""
        return self.promise.holds(self.value)

    @property
    def strain(self) -> float:
        """See `Promise.strain`."""
        return self.promise.strain(self.value)

    @property
    def measured(self) -> str:
        """The value for people."""
        return shown(self.promise.figure, self.value)


def unit_of(figure: str) -> str:
    """`s`, `%`, `MB` or none."""
    return "s" if rank_of(figure) else FIGURES[figure][0]


def shown(figure: str, value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return "not measured"
    unit = unit_of(figure)
    if unit == "s":
        text = durations.written(value)
    else:
        number = f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
        text = f"{number} {unit}".rstrip()
    return f"{text} in 10 min" if figure.endswith("_slope") else text


def rank_of(figure: str) -> tuple[str, float] | None:
    """`notify_p99` is ("notify", 99.0), `p99` ("post", 99.0), `alert_max` ("alert", 100.0); None for other figures."""
    found = _RANK.fullmatch(figure)
    if found is None:
        return None
    word = found[2]
    percent = 100.0 if word == "max" else 99.9 if word == "p999" else float(word[1:])
    return found[1].removesuffix("_") or "post", percent


def parse(text: str) -> tuple[Promise, ...]:
    """Promises, comma-separated; UsageError names what is wrong."""
    return tuple(_parse_one(part) for part in text.split(",") if part.strip())


def _parse_one(text: str) -> Promise:
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise UsageError(f"promise: expected something like p99<100ms, got {text.strip()!r}")
    figure, relation, number, unit = found[1], found[2], found[3], found[4]
    if number.count(".") > 1:
        raise UsageError(f"promise: {number} is no number, in {text.strip()!r}")
    if rank_of(figure) is not None or FIGURES.get(figure, ("",))[0] == "s":
        if not unit and float(number or 0):
            raise UsageError(f"promise: {text.strip()!r} has no unit: write {figure}{relation}{number}ms, or s")
        bound = durations.seconds(number + unit)
    elif figure in FIGURES:
        wanted = FIGURES[figure][0]
        if unit.upper() not in {"", wanted.upper()}:
            raise UsageError(f"promise: {figure} is a number{f' in {wanted}' if wanted else ''}, got {number + unit!r}")
        bound = float(number)
    else:
        known = ", ".join(("p50", "p99", "p999", "max", "notify_p99", "alert_max", "delta_p95", "query_p99", *FIGURES))
        raise UsageError(f"promise: {figure!r} is not measured; known are {known}")
    return Promise(figure, relation, bound, f"{figure}{relation}{number}{unit}")


def judged(promises: tuple[Promise, ...], figures: Mapping[str, float | None]) -> list[Verdict]:
    """Each promise beside its figure."""
    return [Verdict(promise, figures.get(promise.figure)) for promise in promises]
