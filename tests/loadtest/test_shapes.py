"""Who is at work when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import shapes
from loadtest.errors import UsageError


def at_work(shape, people, second):
    return sum(
        any(span.begin_s <= second < span.end_s for span in shape.spans(index, people)) for index in range(people)
    )


def test_a_ramp_brings_them_in_one_by_one_and_hold_keeps_them():
    shape = shapes.parse("ramp:10s hold:50s")
    assert shape.duration_s == 60
    assert [at_work(shape, 100, second) for second in (0, 2.5, 5, 10, 59)] == [0, 25, 50, 100, 100]


def test_a_spike_is_over_at_once():
    shape = shapes.parse("ramp:10s@50% hold:10s spike:5s hold:10s")
    assert [at_work(shape, 100, second) for second in (15, 20, 24.9, 25, 34)] == [50, 100, 100, 50, 50]
    assert len(shape.spans(10, 100)) == 1
    assert shape.spans(80, 100) == [shapes.Span(20, 25)]


def test_steps():
    shape = shapes.parse("step:5s@25%, step:5s@50%, step:5s@100%")
    assert [at_work(shape, 100, second) for second in (1, 6, 11)] == [25, 50, 100]


def test_hold_alone_is_everybody():
    assert at_work(shapes.parse("hold:5s"), 10, 0) == 10


def test_a_shorter_time_presses_it_together_and_a_longer_one_holds_its_end():
    shape = shapes.parse("ramp:10s hold:50s")
    assert shape.lasting(6) == shapes.parse("ramp:1s hold:5s")
    assert shape.lasting(3600) == shapes.parse("ramp:10s hold:3590s")
    assert shapes.parse("ramp:10s").lasting(20) == shapes.parse("ramp:20s")


@pytest.mark.parametrize(
    "text", ["", "ramp", "ramp:", "rump:5s", "ramp:5s@120%", "ramp:5s@x%", "ramp:5s@50", "hold:0s"]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError):
        shapes.parse(text)


SEGMENTS = st.lists(
    st.tuples(st.sampled_from(["ramp", "hold", "step", "spike"]), st.integers(1, 20), st.integers(0, 100)),
    min_size=1,
    max_size=6,
)


@given(SEGMENTS, st.integers(1, 50))
def test_spans_are_in_order_and_within_the_run(segments, people):
    shape = shapes.parse(" ".join(f"{kind}:{length}s@{level}%" for kind, length, level in segments))
    for index in range(people):
        edges = [edge for span in shape.spans(index, people) for edge in (span.begin_s, span.end_s)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= shape.duration_s for edge in edges)
