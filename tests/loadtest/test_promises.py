"""Promises as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import durations, promises
from loadtest.errors import UsageError


def one(text):
    (promise,) = promises.parse(text)
    return promise


@pytest.mark.parametrize(
    ("text", "figure", "bound", "rank"),
    [
        ("p99<100ms", "p99", 0.1, ("post", 99)),
        ("notify_p99 < 1s", "notify_p99", 1, ("notify", 99)),
        ("errors<0.1%", "errors", 0.1, None),
        ("alert_max<=1s", "alert_max", 1, ("alert", 100)),
        ("delta_p99.5<200ms", "delta_p99.5", 0.2, ("delta", 99.5)),
        ("p999<1s", "p999", 1, ("post", 99.9)),
        ("query_p50<10ms", "query_p50", 0.01, ("query", 50)),
        ("drain<5s", "drain", 5, None),
        ("memory_slope<=1MB", "memory_slope", 1, None),
        ("rate>=200", "rate", 200, None),
    ],
)
def test_they_are_read(text, figure, bound, rank):
    promise = one(text)
    assert (promise.figure, promise.bound, promise.rank) == (figure, bound, rank)


@pytest.mark.parametrize(
    "text",
    [
        "p99",
        "p99<",
        "p99<fast",
        "p99<100kg",
        "p100<1s",
        "speed<1s",
        "errors<1ms",
        "p99=1s",
        "p99<1.2.3s",
        "p99<1.2.3",
        "drain<1..2",
        "p99<100",
        "drain<5",
    ],
)
def test_what_is_no_promise_is_refused_by_name(text):
    with pytest.raises(UsageError):
        promises.parse(text)


def test_several_and_none():
    assert [each.figure for each in promises.parse("p99<100ms, notify_p99<1s,errors<0.1%")] == [
        "p99",
        "notify_p99",
        "errors",
    ]
    assert promises.parse("") == ()


@pytest.mark.parametrize(
    ("text", "value", "held"),
    [
        ("p99<100ms", 0.0999, True),
        ("p99<100ms", 0.1, False),
        ("p99<=100ms", 0.1, True),
        ("rate>=200", 200, True),
        ("rate>200", 200, False),
        ("errors<=0%", 0.0, True),
        ("errors<=0%", 0.01, False),
        ("p99<100ms", None, False),
    ],
)
def test_what_was_not_measured_was_not_kept(text, value, held):
    verdict = promises.Verdict(one(text), value)
    assert verdict.held == held
    if value is None:
        assert verdict.measured == "not measured"


@given(st.floats(0, 10))
def test_strain_says_on_which_side_of_the_bound_it_is(value):
    promise = one("p99<=1s")
    assert (promise.strain(value) <= 1) == promise.holds(value)


@pytest.mark.parametrize(("text", "seconds"), [("100ms", 0.1), ("2.5s", 2.5), ("10m", 600), ("1h", 3600), ("7", 7)])
def test_durations(text, seconds):
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 day", "1e3s"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError):
        durations.seconds(text)
