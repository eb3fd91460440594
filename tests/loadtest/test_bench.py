"""What the bench prints."""

import json
import math
from pathlib import Path

import pytest

from loadtest.bench import harness, lessons
from loadtest.bench.measures import Bench
from loadtest.bench.report import Row, table, write_json
from loadtest.processes import Cores
from loadtest.promises import judged, parse
from loadtest.result import judgement
from tests.loadtest.test_cli import found


def rows():
    single = Row("one event a POST")
    single.add("floor", 40_000, "req/s")
    single.judge_ratio("daemon", 18_000, "req/s", 40_000, 0.5, least=True)
    single.judge("daemon p99", 9.5, "ms", 100, floor=5)
    quiet = Row("floor")
    quiet.add("1 event a POST", 40_000, "req/s")
    lesson = Row("burst")
    found = judged(parse("errors<=0%, alert_max<1s"), {"errors": 0.0, "alert_max": 0.25})
    lesson.figures += [lessons.judged(judgement(each)) for each in found]
    lesson.judge("lost", 0, "events", 0)
    return [single, quiet, lesson]


def test_one_table_with_floor_ratio_and_verdict():
    lines = table({"machine": "a fast one"}, rows()).split("\n\n")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["floor", "figure", "bound", "ratio", "verdict"],
        ["one", "event", "a", "POST:", "MISSED"],
        ["daemon", "40,000", "18,000", "req/s", ">=", "0.5", "of", "floor", "0.45", "MISSED"],
        ["daemon", "p99", "5", "9.5", "ms", "<=", "100", "ms", "1.9", "held"],
        ["burst:", "held"],
        ["requests", "failed", "at", "first", "0", "%", "<=", "0", "%", "held"],
        ["slowest", "alert", "250", "ms", "<", "1000", "ms", "0.25", "held"],
        ["lost", "0", "events", "<=", "0", "events", "held"],
    ]
    assert len({line.rindex("  ") for line in lines if line.startswith("  ")}) == 1


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize(("value", "floor"), [(3.0, -0.5), (3.0, 0.0), (-3.0, 0.5), (-3.0, -0.5), (3.0, math.nan)])
def test_noise_keeps_no_promise(value, floor, least):
    row = Row("fanout")
    row.judge_ratio("CPU", value, "% core", floor, 1.5, least=least)
    (figure,) = row.figures
    assert (figure.held, figure.ratio) == (False, None)
    (note,) = row.notes
    assert note.startswith("CPU: ")
    assert "MISSED" in table({}, [row])


def test_what_was_not_measured_is_null_for_programs(tmp_path):
    row = Row("burst")
    row.judge("alert p99", math.nan, "ms", 100)
    row.add("slowest", 2.5, "µs")
    write_json(tmp_path / "bench.json", {"commit": "x"}, [row])

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    told = json.loads((tmp_path / "bench.json").read_text("utf-8"), parse_constant=refuse)
    assert told["machine"] == {"commit": "x"}
    (read,) = told["rows"]
    assert (read["title"], read["held"]) == ("burst", False)
    assert [(each["value"], each["unit"], each["held"]) for each in read["figures"]] == [
        (None, "ms", False),
        (2.5, "µs", None),
    ]


def test_what_a_scenario_did_not_measure_is_not_told_as_0(monkeypatch):
    nothing = found()
    nothing.figures |= dict.fromkeys(("rate", "p50")) | {"lag_max": 0.0}
    monkeypatch.setattr(harness, "play", lambda *_: nothing)
    row = lessons.lesson(Bench(Cores(0, 0), None, Path(), 1, 1), "burst")
    values = {figure.name: figure.value for figure in row.figures}
    assert all(math.isnan(values[name]) for name in ("a second", "p50", "notify p50", "query p99"))
    assert values["highest lag"] == 0


def test_what_went_wrong_fails_a_row_whose_bounds_hold():
    row = Row("batch")
    row.judge("daemon", 60_000, "events/s", 50_000, least=True)
    assert row.held
    row.problems.append("3 acknowledged events are not in PostgreSQL")
    assert not row.held
    printed = table({}, [row])
    assert "batch: MISSED" in printed
    assert "PROBLEM: 3 acknowledged events" in printed
