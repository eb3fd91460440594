"""Windows, durations, and what fills a series."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TooLargeError
from engine.series import (
    MAX_BUCKETS,
    MAX_POINTS,
    Activity,
    CellWork,
    Errors,
    Window,
    activity_series,
    errors_series,
    notebook_summary,
    parse_duration,
)

MINUTE = 60_000


@pytest.mark.parametrize(
    ("text", "ms"), [("1s", 1000), ("10m", 600_000), ("24h", 86_400_000), ("30d", 2_592_000_000), ("2w", 1_209_600_000)]
)
def test_durations(text, ms):
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text", ["", "m", "0m", "-1m", "1.5h", "10", "10ms", "1 m", "1M", "01m", "9999w", "١m", "1m\n"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        parse_duration(text)


@given(
    now=st.integers(10**12, 2 * 10**12),
    since=st.integers(1, 500).map(lambda n: n * 1000),
    every=st.integers(1, 900).map(lambda n: n * 1000),
)
def test_a_window_is_of_whole_buckets_and_holds_both_ends(now, since, every):
    window = Window.until(now, since, every)
    assert window.start % every == window.end % every == 0
    assert window.start <= now - since < window.start + every
    assert window.end - every <= now < window.end
    assert list(window.starts)[-1] == window.end - every
    assert window.max_groups * len(window.starts) <= MAX_POINTS


def test_too_many_buckets_are_refused_with_their_number():
    assert len(Window.until(0, (MAX_BUCKETS - 1) * 1000, 1000).starts) == MAX_BUCKETS
    with pytest.raises(TooLargeError, match=f"{MAX_BUCKETS + 1} buckets"):
        Window.until(0, MAX_BUCKETS * 1000, 1000)


def test_every_group_has_every_bucket():
    window = Window(0, 3 * MINUTE, MINUTE)
    rows = [Activity("b", MINUTE, 2, 1, 7.5), Activity("a", 0, 1, 0, 0.0)]
    series = activity_series(rows, window, "user_id")
    assert [group["user_id"] for group in series] == ["a", "b"]
    assert [bucket["start"] for bucket in series[0]["buckets"]] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:01:00.000Z",
        "1970-01-01T00:02:00.000Z",
    ]
    figures = [[(each["executions"], each["mean_duration_ms"]) for each in group["buckets"]] for group in series]
    assert figures == [[(1, None), (0, None), (0, None)], [(0, None), (2, 7.5), (0, None)]]


def test_a_rate_is_null_where_nothing_ran_and_may_pass_one():
    series = errors_series([Errors("", 0, 0, 2), Errors("", MINUTE, 2, 3)], Window(0, 3 * MINUTE, MINUTE), "none")
    assert [bucket["rate"] for bucket in series[0]["buckets"]] == [None, 1.5, None]


def test_one_series_of_all_is_there_without_a_row():
    (series,) = activity_series([], Window(0, MINUTE, MINUTE), "none")
    assert [bucket["executions"] for bucket in series["buckets"]] == [0]
    assert activity_series([], Window(0, MINUTE, MINUTE), "user_id") == []


def test_a_summary_without_a_stored_size_goes_by_the_highest_cell():
    cells = [CellWork(3, 1, 1, 0, None), CellWork(0, 2, 5, 1, 4.0)]
    assert notebook_summary({0: 1, 2: 1}, cells, 0)["avg_progress"] == 0.25
    assert notebook_summary({0: 1, 9: 1}, cells, 2)["avg_progress"] == 0.5
    assert [cell["cell_index"] for cell in notebook_summary({}, cells, 0)["cells"]] == [0, 3]
    assert notebook_summary({}, [], 0) == {"total_students": 0, "avg_progress": 0.0, "total_cells": 0, "cells": []}
