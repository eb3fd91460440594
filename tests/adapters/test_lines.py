"""Line protocol: as the library writes it, as InfluxDB reads it, and how fast."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from influxdb_client import Point

from adapters.influx.lines import cell_line, cell_lines, sample_lines, stored_tag
from engine.event import CELL_EXECUTED, EXECUTION_ERROR, Commit, Event
from engine.ports import Sample
from tests.adapters.events import NOW, event, run

# As the edge lets texts through (no NUL, no lone surrogate), rich in what the format gives a meaning to.
TEXTS = st.text(
    st.one_of(st.sampled_from(' ,="\\\n\r\t\U0001f600é#'), st.characters(exclude_categories=["Cs"])), max_size=12
)
TEXTS = TEXTS.map(lambda text: text.replace("\0", "\u2400"))
FLOATS = st.floats(0, 1e12) | st.sampled_from([0.0, 1.0, 1e-9, 1e16, 123456789.125])
COUNTS = st.integers(0, 2**31 - 1)
EVENTS = st.builds(
    Event,
    event_id=st.just("e"),
    event_type=st.sampled_from([CELL_EXECUTED, EXECUTION_ERROR]),
    time=st.integers(1, 4_000_000_000_000),
    user_id=TEXTS,
    class_id=TEXTS,
    notebook_path=TEXTS | st.none(),
    cell_index=COUNTS | st.none(),
    execution_count=st.integers(-5, 2**31 - 1) | st.none(),
    execution_duration_ms=FLOATS | st.none(),
    has_error=st.booleans() | st.none(),
    error_message=TEXTS | st.none(),
)
SAMPLES = st.builds(
    Sample,
    class_id=TEXTS,
    user_id=TEXTS,
    notebook_path=TEXTS,
    time=st.integers(1, 4_000_000_000_000),
    completed_cells=COUNTS,
    total_cells=COUNTS,
    progress_percentage=FLOATS,
    session_duration_ms=COUNTS,
    avg_execution_time=st.none(),
    max_execution_time=st.none(),
    error_rate=FLOATS | st.none(),
) | st.builds(
    Sample,
    *([TEXTS] * 3), *([COUNTS] * 3), FLOATS, COUNTS, FLOATS, FLOATS, FLOATS,
)  # fmt: skip


def point_of(event, seq, *, index_is_tag=True):
    point = Point("cell_executions").tag("class_id", event.class_id).tag("user_id", event.user_id)
    point.tag("notebook_path", event.notebook_path).tag("event_type", event.event_type)
    (point.tag if index_is_tag else point.field)("cell_index", event.cell_index)
    for name in ("execution_duration_ms", "error_message", "execution_count"):
        point.field(name, getattr(event, name))
    return point.field("has_error", event.failed).time(event.time * 10**6 + seq % 10**6)


@given(EVENTS, st.integers(1, 2**53), st.booleans())
@example(run("a\\", notebook_path='b c,d=e"f\\', error_message='say "\\n"\nno', cell_index=0), 1, True)
def test_an_event_reads_as_the_librarys_point(event, seq, index_is_tag):
    line = cell_line(event, seq, index_is_tag=index_is_tag)
    assert line == point_of(event, seq, index_is_tag=index_is_tag).to_line_protocol()


@given(SAMPLES)
def test_a_sample_reads_as_the_librarys_points(sample):
    def point(measurement, *fields):
        made = Point(measurement).tag("class_id", sample.class_id).tag("user_id", sample.user_id)
        made.tag("notebook_path", sample.notebook_path).time(sample.time * 10**6)
        for name in fields:
            made.field(name, getattr(sample, name))
        return made

    progress = point(
        "learning_progress", "completed_cells", "total_cells", "progress_percentage", "session_duration_ms"
    )
    speed = point("performance_metrics", "avg_execution_time", "max_execution_time", "error_rate")
    speed.tag("cell_type", "code")
    expected = [progress] if sample.error_rate is None else [progress, speed]
    assert sample_lines([sample]) == [each.to_line_protocol() for each in expected]


def test_other_events_have_no_line_and_seqs_are_their_own():
    commits = [Commit(7, NOW, [run(), event(), run()]).pack(), Commit(1_000_003, NOW, [run()]).pack()]
    stamps = [int(line.rpartition(" ")[2]) for line in cell_lines(commits, index_is_tag=True)]
    assert stamps == [NOW * 10**6 + nanos for nanos in (7, 9, 3)]


@pytest.mark.parametrize("index_is_tag", [True, False])
def test_influx_reads_what_was_written(influx_database, index_is_tag):
    """Every text in one database: what differs only in what a tag cannot hold would meet there."""
    texts = [
        "a b",
        "a,b",
        "a=b",
        'a"b',
        "a\\b",
        "a\\,b",
        "a\\ b",
        "a\\\\",
        "a\\",
        "a\nb",
        "a\tb",
        "é\U0001f600",
        "#a",
        "'",
    ]
    events = [
        run(text, notebook_path=f"{text}.ipynb", error_message=text, has_error=True, cell_index=n,
            execution_count=n, execution_duration_ms=n / 3)
        for n, text in enumerate(texts)
    ]  # fmt: skip
    influx_database.write("\n".join(cell_lines([Commit(1, NOW, events).pack()], index_is_tag=index_is_tag)))
    for n, (text, sent) in enumerate(zip(texts, events, strict=True)):
        (point,) = influx_database.query("select * from cell_executions where user_id = $user", user=stored_tag(text))
        assert point == {
            "time": sent.time * 10**6 + n + 1,
            "user_id": stored_tag(text),
            "notebook_path": stored_tag(f"{text}.ipynb"),
            "class_id": "default",
            "event_type": "cell_executed",
            "cell_index": str(n) if index_is_tag else n,
            "error_message": text,
            "has_error": True,
            "execution_count": n,
            "execution_duration_ms": n / 3,
        }
    tags = {row["tagKey"] for row in influx_database.query("show tag keys from cell_executions")}
    assert tags == {"class_id", "event_type", "notebook_path", "user_id", *(["cell_index"] if index_is_tag else [])}


def test_lines_are_at_least_three_times_as_fast_as_the_librarys():
    """Of the same events, the points made beforehand: the library only has to write them. ``-s`` shows the ratio."""
    events = [
        run(f"student{n % 300}@example.org", notebook_path=f"lesson {n % 3}.ipynb", cell_index=n % 40,
            execution_count=n, execution_duration_ms=n / 7, has_error=n % 10 == 0,
            error_message="NameError: name 'x' is not defined" if n % 10 == 0 else None)
        for n in range(4000)
    ]  # fmt: skip
    points = [point_of(each, seq) for seq, each in enumerate(events)]

    def seconds(work):
        began = time.process_time()
        work()
        return time.process_time() - began

    ours = min(
        seconds(lambda: [cell_line(each, n, index_is_tag=True) for n, each in enumerate(events)]) for _ in range(5)
    )
    theirs = min(seconds(lambda: [point.to_line_protocol() for point in points]) for _ in range(5))
    per = 1e6 / len(events)
    print(f"\na line: {ours * per:.2f} us; Point.to_line_protocol: {theirs * per:.2f} us; ratio {theirs / ours:.1f}")  # noqa: T201
    assert theirs >= 3 * ours
