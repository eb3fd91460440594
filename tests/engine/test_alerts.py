"""Which events raise which alerts, and that the same event raises the same one again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.alerts import CLUSTER_MS, CLUSTER_STUDENTS, Alert, ErrorClusters, apply_alerting, rouses
from engine.help import HELP_LAPSE_MS
from engine.session import UserState
from engine.view import Thresholds, help_wanted, trouble
from tests.adapters.events import NOW, event, run
from tests.engine.strategies import IDLE_MS, event_lists

THRESHOLDS = Thresholds(180_000, 600_000, 3)


class Student:
    def __init__(self):
        self.state = UserState(class_id="default", user_id="ann")
        self._ticks = itertools.count(1)

    def does(self, *, after=0, **fields):
        """Kinds of the alerts that an event raises, a second after the one before."""
        time = fields.pop("time", NOW + next(self._ticks) * 1000 + after)
        made = run(time=time, **fields) if "event_type" not in fields else event(time=time, **fields)
        return [alert.kind for alert in self.apply(made, time)]

    def apply(self, made, received_at):
        if rouses(self.state, made):
            return apply_alerting(self.state, made, received_at, IDLE_MS, THRESHOLDS)
        self.state.apply(made, received_at, IDLE_MS)
        return []

    def fails(self, **fields):
        return self.does(has_error=True, **fields)


def test_each_failed_run_is_an_error_and_the_third_makes_stuck():
    student = Student()
    assert student.does() == []
    assert [student.fails() for _ in range(4)] == [["error"], ["error"], ["error", "stuck"], ["error"]]
    assert student.does() == ["unstuck"]
    assert student.does() == []


def test_who_leaves_the_cell_is_no_longer_stuck():
    student = Student()
    for _ in range(3):
        student.fails()
    assert student.does(cell_index=1) == ["unstuck"]
    assert student.fails(cell_index=2) == ["error"]


def test_an_execution_error_is_an_error():
    assert Student().does(event_type="execution_error", notebook_path="n", cell_index=0) == ["error"]


def test_help_is_told_when_it_begins_and_when_it_ends():
    student = Student()
    assert student.does(event_type="help_resolved") == []
    assert student.does(event_type="help_requested") == ["help_requested"]
    assert student.does(event_type="help_requested") == []
    assert student.does(event_type="help_resolved") == ["help_resolved"]
    assert student.does(event_type="help_resolved") == []


def test_a_call_after_one_that_lapsed_is_told_again():
    student = Student()
    assert student.does(event_type="help_requested") == ["help_requested"]
    assert student.does(event_type="help_requested") == []
    assert student.does(event_type="help_requested", after=HELP_LAPSE_MS + 1000) == ["help_requested"]


def test_a_call_that_arrives_after_its_resolve_is_not_told():
    student = Student()
    assert student.does(event_type="help_resolved", time=NOW + 10) == []
    assert student.does(event_type="help_requested", time=NOW) == []


def test_an_alert_as_subscribers_see_it():
    student = Student()
    made = run(event_id="e-1", has_error=True, error_message="KeyError: " + "x" * 300, cell_id="c1", user_name="Ann")
    (alert,) = student.apply(made, NOW)
    seen = alert.view()
    assert {name: seen[name] for name in ("alert", "user_id", "user_name", "error_class")} == {
        "alert": "error",
        "user_id": "ann",
        "user_name": "Ann",
        "error_class": "KeyError",
    }
    assert (seen["notebook_path"], seen["cell_id"], seen["cell_index"]) == ("a.ipynb", "c1", 0)
    assert len(seen["error_message"]) == 200
    assert None not in seen.values()
    (again,) = Student().apply(made, NOW)
    assert again.view()["id"] == seen["id"]
    (other,) = Student().apply(run("bob", event_id="e-1", has_error=True), NOW)
    assert other.view()["id"] != seen["id"]


@given(event_lists(max_size=40))
def test_what_the_quick_look_lets_pass_changes_nothing(events):
    state = UserState(class_id="default", user_id="ana")
    for made in events:
        before = (trouble(state, THRESHOLDS)[1] is None, help_wanted(state, made.time)[0] is None)
        if rouses(state, made):
            apply_alerting(state, made, made.time, IDLE_MS, THRESHOLDS)
            continue
        state.apply(made, made.time, IDLE_MS)
        assert not made.failed
        assert before == (trouble(state, THRESHOLDS)[1] is None, help_wanted(state, made.time)[0] is None)


# --- clusters


def failure(number, *, at=0, user=None, cell=3):
    return Alert(
        kind="error",
        event_id=f"e{number}",
        time=NOW + at,
        class_id="default",
        user_id=user or f"u{number}",
        notebook_path="n",
        cell_index=cell,
    )


def observed(*alerts):
    clusters = ErrorClusters()
    return [cluster for alert in alerts if (cluster := clusters.observe(alert)) is not None]


@given(st.permutations(range(CLUSTER_STUDENTS)))
def test_the_same_five_make_the_same_cluster_in_whatever_order_they_come(order):
    failures = [failure(number, at=number * 1000) for number in range(CLUSTER_STUDENTS)]
    (cluster,) = observed(*(failures[number] for number in order))
    assert (cluster.kind, cluster.event_id) == ("error_cluster", f"e{CLUSTER_STUDENTS - 1}")
    assert cluster.view()["students"] == tuple(f"u{number}" for number in range(CLUSTER_STUDENTS))


@pytest.mark.parametrize(
    "failures",
    [
        [failure(number) for number in range(CLUSTER_STUDENTS - 1)],
        [failure(number, user="ann") for number in range(20)],
        [failure(number, cell=number) for number in range(20)],
        [failure(number, at=number * CLUSTER_MS) for number in range(20)],
        [failure(number, at=number * (CLUSTER_MS // 4 + 1)) for number in range(20)],
    ],
    ids=["four students", "one student", "other cells", "far apart", "never five at once"],
)
def test_no_cluster(failures):
    assert observed(*failures) == []


def test_a_cluster_is_told_once_and_again_after_a_quiet_time():
    first = [failure(number) for number in range(12)]
    second = [failure(number, at=CLUSTER_MS + 1) for number in range(20, 20 + CLUSTER_STUDENTS)]
    assert len(observed(*first)) == 1
    assert len(observed(*first, *second)) == 2


def test_other_kinds_make_no_cluster():
    stuck = [
        Alert(kind="stuck", event_id=f"e{n}", time=NOW, class_id="c", user_id=f"u{n}", notebook_path="n", cell_index=1)
        for n in range(20)
    ]
    assert observed(*stuck) == []
