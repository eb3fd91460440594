"""The search against systems whose capacity is known."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import promises
from loadtest.capacity import MOST_PROBES, PRECISION, Probe, broke_first, confirmed, first_second, search
from loadtest.errors import CannotTryError, InterruptedSearchError, LoadTestError
from loadtest.monitor import Sample
from loadtest.result import Moment, judgement
from tests.loadtest.test_cli import found


class System:
    """An M/M/1 queue: its p99 rises without bound as the load nears what it carries."""

    def __init__(self, carries, saturates_at=10**9):
        self.carries, self.saturates_at = carries, saturates_at
        self.tried = []

    async def probe(self, students):
        self.tried.append(students)
        load = students / (1.05 * self.carries)
        p99 = 0.1 * 0.05 / 1.05 / (1 - load) if load < 1 else 60.0
        verdicts = promises.judged(promises.parse("p99<100ms, errors<0.1%"), {"p99": p99, "errors": 0.0})
        held = all(verdict.held for verdict in verdicts)
        assert held == (students < self.carries) or students == self.carries
        first = None if held else verdicts[0].promise.text
        judged = [judgement(verdict) for verdict in verdicts]
        return Probe(students, held, judged, 0, students > self.saturates_at, load, 0.001, 10.0, first)


@given(st.integers(1, 9000), st.one_of(st.none(), st.integers(1, 9000)))
async def test_it_finds_the_border(carries, asked):
    system = System(carries)
    answer = await search(system.probe, first=50, most=10_000, asked=asked)
    assert answer.carries <= carries
    assert answer.breaks is not None
    assert answer.breaks.students >= carries
    assert answer.breaks.students - answer.carries <= max(1, PRECISION * answer.breaks.students)
    assert len(system.tried) <= min(MOST_PROBES, len(set(system.tried)) + 1)  # the border once more
    assert answer.breaks.broke_first == "p99<100ms"
    if asked is not None:
        assert answer.asked is not None
        assert answer.asked.students == asked
        assert answer.ok == answer.asked.held


async def test_nothing_breaks():
    answer = await search(System(10**6).probe, first=50, most=700)
    assert (answer.carries, answer.breaks) == (700, None)
    assert "at least 700" in answer.text()


async def test_headroom_is_told_at_the_size_asked_for():
    answer = await search(System(1000).probe, first=50, most=10_000, asked=300)
    assert answer.ok
    text = answer.text()
    assert "headroom x 3." in text
    assert "at 300 students" not in text.splitlines()[0]
    assert "broke first: p99<100ms" in text
    assert "CPU" in text


async def test_the_size_asked_for_is_not_carried():
    answer = await search(System(100).probe, first=50, most=10_000, asked=300)
    assert not answer.ok
    assert "not carried" in answer.text()


async def test_a_border_of_the_generator_is_no_border_of_the_daemon():
    answer = await search(System(1000, saturates_at=900).probe, first=50, most=10_000)
    assert answer.generator_bound
    assert answer.text().startswith(f"capacity: at least {answer.carries}")
    assert "--workers" in answer.text()
    answer = await search(System(1000, saturates_at=900).probe, first=50, most=10_000, asked=100)
    assert "headroom at least x" in answer.text()


async def test_an_interrupted_search_tells_what_it_knows():
    system = System(1000)

    async def probe(students):
        if len(system.tried) == 3:
            raise InterruptedSearchError
        return await system.probe(students)

    answer = await search(probe, first=50, most=10_000)
    assert not answer.ok
    assert answer.carries == 200
    assert "interrupted" in answer.text()
    assert "at least 200" in answer.text()


GROUPED = [lambda error: error, lambda error: ExceptionGroup("", [ExceptionGroup("", [error])])]


@pytest.mark.parametrize("wrap", GROUPED)
async def test_a_daemon_that_goes_down_with_a_size_is_no_success(wrap):
    """The first try breaks it, and it does not come back."""
    system = System(450)

    async def probe(students):
        if system.tried and max(system.tried) > 450:
            raise wrap(LoadTestError("is the daemon running?"))
        return await system.probe(students)

    answer = await search(confirmed(probe), first=50, most=10_000)
    assert not answer.ok
    assert (answer.carries, answer.breaks.students) == (400, 800)
    assert "at least 400 students" in answer.text()
    assert "is the daemon running?" in answer.text()


async def test_a_search_that_is_ended_tells_what_it_knows():
    system = System(1000)

    async def probe(students):
        if students > 300:
            raise KeyboardInterrupt
        return await system.probe(students)

    answer = await search(probe, first=50, most=10_000, asked=100)
    assert (answer.carries, answer.interrupted, answer.ok) == (200, True, False)


@pytest.mark.parametrize("wrap", GROUPED)
async def test_a_size_that_cannot_be_tried_ends_the_search_with_what_it_knows(wrap):
    system = System(1000)

    async def probe(students):
        if students > 300:
            raise wrap(CannotTryError("too few files"))
        return await system.probe(students)

    answer = await search(probe, first=50, most=10_000, asked=100)
    assert answer.ok
    assert answer.carries == 200
    assert "at least 200 students" in answer.text()
    assert "headroom at least x 2.0" in answer.text()
    assert "could not go on: too few files" in answer.text()
    with pytest.raises(ExceptionGroup):
        await search(probe, first=500, most=10_000)


class Disturbed(System):
    """Other work breaks every size once, the first time."""

    def __init__(self, carries, lost=0):
        super().__init__(carries)
        self.lost = lost

    async def probe(self, students):
        found = await super().probe(students)
        if self.tried.count(students) == 1:
            found.held, found.lost = False, self.lost
        return found


async def test_a_size_that_breaks_once_is_not_broken():
    system = Disturbed(1000)
    answer = await search(confirmed(system.probe), first=50, most=10_000)
    assert 950 <= answer.carries <= 1000
    often = {size: times for size, times in Counter(system.tried).items() if times > 2}
    assert often == {answer.breaks.students: 4}  # the border once more


class Stalling(System):
    """Everything breaks at first, as while a disk stalls."""

    def __init__(self, carries, *, tries):
        super().__init__(carries)
        self._tries = tries

    async def probe(self, students):
        found = await super().probe(students)
        if len(self.tried) <= self._tries:
            found.held = False
        return found


@pytest.mark.parametrize("asked", [None, 300])
async def test_a_stall_at_the_start_is_no_border(asked):
    """Both tries of the first size break; the sizes below it hold, and so it is tried once more."""
    system = Stalling(1000, tries=2)
    answer = await search(confirmed(system.probe), first=300, most=10_000, asked=asked)
    assert 950 <= answer.carries <= 1000
    assert answer.breaks is not None
    assert answer.breaks.students <= 1050
    assert (answer.asked is not None and answer.asked.held) == (asked is not None)


@pytest.mark.parametrize("error", [LoadTestError("is the daemon running?"), KeyboardInterrupt()], ids=repr)
async def test_a_border_stands_until_its_second_look_is_over(error):
    system = System(3)

    async def probe(students):
        if students in system.tried:
            raise error
        return await system.probe(students)

    answer = await search(probe, first=4, most=10_000, asked=4)
    assert (answer.carries, answer.ok) == (3, False)
    assert answer.breaks is answer.asked is not None
    assert {found.students for found in answer.probes} == set(system.tried)


async def test_a_size_that_lost_an_event_is_not_tried_again():
    system = Disturbed(1000, lost=1)
    answer = await search(confirmed(system.probe), first=50, most=10_000)
    assert answer.carries == 0
    assert len(system.tried) == len(set(system.tried))


def moment(second, p99_s, errors=0):
    return Moment(second, 100, 100, errors, None, p99_s, None, None, None)


def judged(text, **figures):
    return [judgement(verdict) for verdict in promises.judged(promises.parse(text), figures)]


@pytest.mark.parametrize(
    ("text", "figures", "second"),
    [
        ("p99<100ms", {"p99": 0.2}, 2),
        ("p99<=100ms", {"p99": 0.2}, 3),
        ("p99>60ms", {"p99": 0.05}, 0),
        ("p99>=60ms", {"p99": 0.0}, 0),
        ("p99<0ms", {"p99": 0.2}, 0),
        ("errors<=0%", {"errors": 5.0}, 1),
        ("errors<1%", {"errors": 5.0}, 1),
        ("errors<1.6%", {"errors": 5.0}, float("inf")),  # 3 of 200 in the second that is the worst
        ("lag_max<50", {"lag_max": 90.0}, 2.5),
        ("rate>=500", {"rate": 0.0}, float("inf")),
    ],
)
def test_a_promise_breaks_in_the_first_second_that_does_not_hold_it(text, figures, second):
    timeline = [moment(0, 0.05), moment(1, 0.07, errors=3), moment(2, 0.1), moment(3, 0.3)]
    (broken,) = judged(text, **figures)
    assert not broken.held
    samples = [Sample(0.5), Sample(1.5, lag_events=49.0), Sample(2.5, lag_events=90.0), Sample(3.5, lag_events=60.0)]
    assert first_second(broken, found(timeline=timeline, samples=samples)) == second


def test_one_whose_bound_is_0_may_be_the_first_that_broke():
    run = found(judgements=judged("p99<100ms, errors<=0%", p99=0.2, errors=5.0))
    run.timeline = [moment(0, 0.05), moment(1, 0.05, errors=3), moment(2, 0.2)]
    assert broke_first(run) == "errors<=0% (was 5 %)"


async def test_of_a_size_the_promise_that_is_furthest_over_is_told():
    async def probe(students):
        told = judged("p99<100ms, errors<=0%", p99=0.09, errors=5.0)
        return Probe(students, False, told, 0, False, None, None, None, "errors<=0%")

    answer = await search(probe, first=1, most=1)
    assert answer.text().splitlines()[-1].split(";")[0].split() == ["1", "no", "errors<=0%", "at", "5", "%"]
