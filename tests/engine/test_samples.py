"""Samples of a student's state."""

import itertools

from engine.rows import StoredRows
from engine.samples import samples_of
from engine.session import UserState
from tests.adapters.events import NOW, event, run

IDLE_MS = 1_800_000


class Student:
    def __init__(self):
        self.state = UserState(class_id="7b", user_id="ann")
        self.rows = StoredRows()

    def sampled(self, *events, total=0, now=NOW + 5):
        """What is sampled when the state is stored after these events."""
        for each in events:
            self.state.apply(each, NOW, IDLE_MS)
        changed, _ = self.rows.changes(self.state)
        self.rows.stored()
        return samples_of(self.state, changed, lambda class_id, path: total if class_id == "7b" else -1, now)


def test_a_sample_is_of_the_state_as_it_is():
    (sample,) = Student().sampled(
        run(time=NOW, cell_index=0, execution_duration_ms=10.0),
        run(time=NOW + 1000, cell_index=0, execution_duration_ms=30.0),
        run(time=NOW + 2000, cell_index=1, has_error=True, execution_duration_ms=50.0),
        run(time=NOW + 3000, cell_index=2),
        total=8,
    )
    assert (sample.class_id, sample.user_id, sample.notebook_path, sample.time) == ("7b", "ann", "a.ipynb", NOW + 5)
    assert (sample.completed_cells, sample.total_cells, sample.progress_percentage) == (2, 8, 25.0)
    assert sample.session_duration_ms == 3000
    # Of each cell's last run that told its duration; failed runs over runs.
    assert (sample.avg_execution_time, sample.max_execution_time, sample.error_rate) == (40.0, 50.0, 0.25)


def test_only_notebooks_that_were_touched_since_are_sampled():
    student = Student()
    assert {each.notebook_path for each in student.sampled(run(), run(notebook_path="b.ipynb"))} == {
        "a.ipynb",
        "b.ipynb",
    }
    assert student.sampled() == []
    assert [each.notebook_path for each in student.sampled(run(notebook_path="b.ipynb", cell_index=1))] == ["b.ipynb"]
    # An event that comes late changes what the notebook is, though not when it was last used.
    (late,) = student.sampled(run(time=NOW - 60_000, cell_index=5))
    assert (late.notebook_path, late.completed_cells) == ("a.ipynb", 2)


def test_a_notebook_in_two_sessions_is_sampled_once_with_the_later():
    events = [
        run(time=NOW + start + step, session_id=f"s{start}", cell_index=0)
        for start, step in itertools.product((0, 100_000), (0, 700 + 10))
    ]
    (sample,) = Student().sampled(*events)
    assert sample.session_duration_ms == 710


def test_what_is_not_known_is_left_out():
    (opened,) = Student().sampled(event(event_type="notebook_opened", notebook_path="a.ipynb", session_id="s"))
    assert (opened.completed_cells, opened.total_cells, opened.progress_percentage) == (0, 0, 0.0)
    assert (opened.avg_execution_time, opened.max_execution_time, opened.error_rate) == (None, None, None)
    (ran,) = Student().sampled(run())
    assert (ran.avg_execution_time, ran.max_execution_time, ran.error_rate) == (None, None, 0.0)
    assert ran.total_cells == 1  # the class knows nothing: the student's own cells
    assert Student().sampled(event(event_type="session_start", session_id="s")) == []


def test_failed_runs_that_no_execution_counts_are_runs():
    (sample,) = Student().sampled(run(event_type="execution_error"), run(event_type="execution_error", cell_index=1))
    assert sample.error_rate == 1.0
