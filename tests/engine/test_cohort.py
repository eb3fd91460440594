"""What a class knows of its notebooks is the same whatever order its events come in."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine import cohort as cohort_module
from engine.cohort import Cohort, NotebookTotals
from engine.event import CELL_TYPES, Event, Order
from engine.latest import Latest
from tests.engine.strategies import START, event_lists

USERS = ("ana", "ben")


def cohort_of(events: list[Event]) -> Cohort:
    cohort = Cohort("default")
    for each in events:
        cohort.observe(each)
    return cohort


def run(number: int, **fields: Any) -> Event:
    fields = {"event_type": "cell_executed", "notebook_path": "n1"} | fields
    return Event(event_id=f"e{number:06}", time=START + number, user_id="ana", class_id="default", **fields)


@given(event_lists(users=USERS), st.data())
def test_any_order_gives_the_same_totals(events, data):
    assert cohort_of(data.draw(st.permutations(events))).notebooks == cohort_of(events).notebooks


@given(event_lists(users=USERS), st.integers(0, 25))
def test_two_parts_merge_to_the_whole(events, cut):
    left, right, whole = cohort_of(events[:cut]), cohort_of(events[cut:]), cohort_of(events)
    for path, totals in right.notebooks.items():
        left.notebooks.setdefault(path, NotebookTotals()).merge(totals)
    assert left.notebooks == whole.notebooks


@given(event_lists(users=USERS))
def test_the_total_is_what_was_given_last_else_the_highest_index_that_ran_plus_one(events):
    cohort = cohort_of(events)
    for path in ("n1", "n2", "n3"):
        own = [each for each in events if each.notebook_path == path]
        given_ = [each for each in own if each.total_cells is not None]
        last = max(given_, key=lambda each: (each.time, each.event_id)).total_cells if given_ else 0
        ran = [each.cell_index for each in own if each.event_type in CELL_TYPES and each.cell_index is not None]
        assert cohort.total_cells(path) == (last or max(ran, default=-1) + 1)


@given(event_lists(users=USERS))
def test_it_tells_of_every_change_and_of_nothing_else(events):
    cohort = Cohort("default")
    for each in events:
        before = {path: (totals.highest_index, totals.given) for path, totals in cohort.notebooks.items()}
        changed = cohort.observe(each)
        after = {path: (totals.highest_index, totals.given) for path, totals in cohort.notebooks.items()}
        assert changed == (before != after)


def test_the_highest_index_only_grows_and_only_by_runs():
    cohort = cohort_of([run(1, cell_index=4), run(2, cell_index=2), run(3, event_type="notebook_saved", cell_index=9)])
    assert cohort.total_cells("n1") == 5


def test_a_total_that_says_nothing_does_not_count():
    assert cohort_of([run(1, cell_index=4, total_cells=0)]).total_cells("n1") == 5
    assert cohort_of([run(1, cell_index=4, total_cells=-3)]).total_cells("n1") == 5


def test_merging_tells_whether_anything_changed():
    totals = NotebookTotals(4, Latest(Order(START, "e1"), 7))
    assert not totals.merge(NotebookTotals(3, Latest(Order(START, "e0"), 9)))
    assert totals.merge(NotebookTotals(5))
    assert totals.merge(NotebookTotals(-1, Latest(Order(START, "e2"), 9)))
    assert totals.total_cells == 9


def test_notebooks_of_a_class_are_bounded(monkeypatch):
    monkeypatch.setattr(cohort_module, "MAX_NOTEBOOKS", 3)
    cohort = cohort_of([run(number, notebook_path=f"n{number}", cell_index=1) for number in range(10)])
    assert len(cohort.notebooks) == 3
    assert cohort.total_cells("n9") == 0
    assert not cohort.observe(run(11, notebook_path="n11"))
