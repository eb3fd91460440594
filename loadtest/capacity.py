"""How many students a daemon carries: more and more until a promise breaks, then the border by halves."""

import os
from collections.abc import Awaitable, Callable, Iterator
from math import ceil
from typing import Final

import msgspec

from loadtest import promises
from loadtest.durations import written
from loadtest.errors import CannotTryError, InterruptedSearchError, LoadTestError, UsageError, all_of
from loadtest.result import Judgement, Result

# The border is known well enough when the two sides are this near, as a share of the larger.
PRECISION: Final = 0.05
GROWTH: Final = 2.0
# A search ends after so many runs, however near the sides are.
MOST_PROBES: Final = 20


class Probe(msgspec.Struct):
    """One run at one size."""

    students: int
    held: bool
    judgements: list[Judgement]
    lost: int
    saturated: bool  # the generator, not the daemon
    cpu_cores: float | None  # the daemon's, mean while loaded
    commit_s: float | None  # mean time of a commit
    lag_events: float | None  # most
    broke_first: str | None = None
    events_per_s: float | None = None  # planned, with everybody at work
    machine_cores: float | None = None  # the same of all that ran on the generator's machine

    @property
    def strain(self) -> float:
        """Of the promise that is nearest to its bound, or furthest over it: 1 is at the bound."""
        return max(map(_strain, self.judgements), default=0.0)

    @property
    def state(self) -> str:
        """The daemon at that moment."""
        parts = []
        if self.cpu_cores is not None:
            parts.append(f"daemon's CPU {self.cpu_cores:.0%} of a core")
        if self.machine_cores is not None:
            parts.append(f"this machine's {self.machine_cores:.1f} of {os.cpu_count()} cores")
        if self.commit_s is not None:
            parts.append(f"commits {written(self.commit_s)}")
        if self.lag_events is not None:
            parts.append(f"lag up to {self.lag_events:,.0f} events")
        return ", ".join(parts) or "nothing known of the daemon's inside"


class Answer(msgspec.Struct):
    """What the search found. `breaks` None: nothing broke up to the most that was tried."""

    carries: int  # the most students with which everything held
    breaks: Probe | None
    probes: list[Probe]
    asked: Probe | None = None  # at the size of `--students`
    interrupted: bool = False
    ended: str = ""  # why the search could not go on
    failed: bool = False  # and that this may be the daemon's doing

    @property
    def generator_bound(self) -> bool:
        """The border may be the generator's."""
        return self.breaks is not None and self.breaks.saturated

    @property
    def ok(self) -> bool:
        """The size that was asked for is carried; without one, any size."""
        if self.interrupted:
            return False
        return self.asked.held if self.asked is not None else self.carries > 0 and not self.failed

    def text(self) -> str:
        """The answer for people."""
        many = f"{self._at_least}{self.carries}"
        rate = next((probe.events_per_s for probe in self.probes if probe.students == self.carries), None)
        lines = [f"capacity: {many} students" + (f", {rate:,.0f} events/s" if rate else "")]
        if self.interrupted:
            lines.append("  interrupted: the search was not over")
        elif self.ended:
            lines.append(f"  the search could not go on: {self.ended}")
        elif self.breaks is None:
            lines.append("  no promise broke up to the most that was tried (--most)")
        if self.breaks is not None:
            lines.append(f"  at {self.breaks.students} broke first: {self.breaks.broke_first}")
            lines.append(f"  then: {self.breaks.state}")
        if self.generator_bound:
            lines.append("  the generator was at its own limit there: --workers or another machine sees further")
        if self.asked is not None:
            lines.append(self._headroom(self.asked))
        lines += ["", "  students  held  nearest to its bound"]
        for probe in sorted(self.probes, key=lambda probe: probe.students):
            near = max(probe.judgements, key=_strain, default=None)
            shown = f"{near.promise} at {near.measured}" if near else ""
            lines.append(f"  {probe.students:>8}  {'yes ' if probe.held else 'no  '}  {shown}; {probe.state}")
        return "\n".join(lines)

    @property
    def _at_least(self) -> str:
        known = self.breaks is not None and not (self.generator_bound or self.ended or self.interrupted)
        return "" if known else "at least "

    def _headroom(self, asked: Probe) -> str:
        if not asked.held:
            return f"  at the {asked.students} students asked for: not carried; broke {asked.broke_first}"
        spare = f"{self._at_least}x {self.carries / asked.students:.1f}"
        return (
            f"  at the {asked.students} students asked for: headroom {spare} in students; "
            f"the nearest promise is at {asked.strain:.0%} of its bound; {asked.state}"
        )


class _Search:
    """What is known so far; every size is tried once, and the border once more."""

    def __init__(self, probe: Callable[[int], Awaitable[Probe]], most: int) -> None:
        self.tried: dict[int, Probe] = {}
        self.good = 0
        self.bad: Probe | None = None
        self.wanted: Probe | None = None
        self._again: set[int] = set()  # borders that were tried once more
        self._probe = probe
        self._most = most

    async def at(self, students: int) -> Probe:
        if students not in self.tried:
            self.tried[students] = await self._probe(students)
        self._note(students)
        return self.tried[students]

    def _note(self, students: int) -> None:
        found = self.tried[students]
        if found.held:
            self.good = students
        else:
            self.bad = found

    async def run(self, first: int, asked: int | None) -> None:
        size = min(first, self._most)
        if asked is not None:
            self.wanted = await self.at(asked)
            size = min(self._most, ceil(asked * GROWTH))
        while True:
            while self.bad is None and self.good < self._most and self._may_go_on:
                await self.at(size)
                size = min(self._most, ceil(size * GROWTH))
            while self.bad is not None and self._wide(self.bad.students) and self._may_go_on:
                await self.at((self.good + self.bad.students) // 2)
            border = self.bad
            if border is None or border.lost or border.students in self._again or not self._may_go_on:
                return
            await self.once_more(border.students)
            size = min(self._most, ceil(self.good * GROWTH))

    async def once_more(self, students: int) -> None:
        """Try the border again, now that some time has passed: a disk that stalled twice in a row may be well again."""
        self._again.add(students)
        found = self.tried[students] = await self._probe(students)  # what broke stands until that is known
        if self.wanted is not None and self.wanted.students == students:
            self.wanted = found
        if found.held:  # the border is that of another size then, if any broke
            larger = (probe for size, probe in self.tried.items() if size > students and not probe.held)
            self.bad = min(larger, key=lambda probe: probe.students, default=None)
        self._note(students)

    @property
    def _may_go_on(self) -> bool:
        return len(self.tried) + len(self._again) < MOST_PROBES

    def _wide(self, bad: int) -> bool:
        return bad - self.good > max(1, PRECISION * bad)


async def search(
    probe: Callable[[int], Awaitable[Probe]], *, first: int, most: int, asked: int | None = None
) -> Answer:
    """Double until it breaks, then halve the gap. `asked` is tried first.

    A search that is interrupted, or comes to a size that cannot be tried, tells what it knows; LoadTestError when that
    is nothing.
    """
    known = _Search(probe, most)
    answer = Answer(0, None, [])
    try:
        await known.run(first, asked)
    except* (InterruptedSearchError, KeyboardInterrupt):
        answer.interrupted = True
    except* LoadTestError as group:
        if not known.tried:
            raise
        why = all_of(group)
        answer.ended = str(why[0])
        answer.failed = not all(isinstance(error, CannotTryError | UsageError) for error in why)
    answer.carries, answer.breaks, answer.asked = known.good, known.bad, known.wanted
    answer.probes = list(known.tried.values())
    return answer


def probe_of(students: int, result: Result) -> Probe:
    """What a run says about its size."""
    return Probe(
        students,
        result.ok,
        result.judgements,
        sum(check.faults for check in result.checks),
        result.generator.saturated,
        result.while_loaded(lambda sample: sample.cpu_cores),
        result.while_loaded(lambda sample: sample.commit_mean_s),
        result.figures["lag_max"],
        broke_first(result),
        float(result.options["events_per_s"]),
        result.while_loaded(lambda sample: sample.machine_cpu_cores),
    )


def _strain(judgement: Judgement) -> float:
    """JSON knows no infinity."""
    return float("inf") if judgement.strain is None else judgement.strain


def confirmed(probe: Callable[[int], Awaitable[Probe]]) -> Callable[[int], Awaitable[Probe]]:
    """A size that broke a promise is tried again: other work on the machine breaks one too. What was lost is lost."""

    async def twice(students: int) -> Probe:
        first = await probe(students)
        if first.held or first.lost:
            return first
        try:
            return await probe(students)
        except LoadTestError:  # it may have gone down with the first: the next size will say
            return first
        except BaseExceptionGroup as group:
            if group.split(LoadTestError)[1] is not None:
                raise
            return first

    return twice


def broke_first(result: Result) -> str | None:
    """The promise that broke first: of those about times, the one that broke in the earliest second; else the worst."""
    broken = [each for each in result.judgements if not each.held]
    lost = [check.name for check in result.checks if not check.held]
    if not broken:
        return lost[0] if lost else None

    def order(each: Judgement) -> tuple[float, float]:
        return first_second(each, result), -_strain(each)

    first = min(broken, key=order)
    return f"{first.promise} (was {first.measured})"


def first_second(judgement: Judgement, result: Result) -> float:
    """When a broken promise was first seen broken; infinite for those that only the whole run tells."""
    (promise,) = promises.parse(judgement.promise)
    seen = _course(judgement.figure, result)
    return next((at_s for at_s, value in seen if value is not None and not promise.holds(value)), float("inf"))


def _course(figure: str, result: Result) -> Iterator[tuple[float, float | None]]:
    """How a figure went, by second; of errors the share of all requests up to it, as a promise is about all."""
    if figure == "lag_max":
        yield from ((sample.offset_s, sample.lag_events) for sample in result.samples)
        return
    requests = errors = 0
    for moment in result.timeline:
        requests, errors = requests + moment.requests, errors + moment.errors
        share = 100 * errors / requests if requests else None
        yield moment.second, share if figure == "errors" else getattr(moment, f"{figure}_s", None)
