"""Samples of a student's state on a notebook: what `learning_progress` and `performance_metrics` are made of.

They are taken when the state is stored, of those notebooks whose sessions changed since it last was: at most one a
student and notebook a flush. A sample says how things were then; one that is missing, or there twice, costs no truth.
"""

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from engine.cells import Notebook
from engine.ports import Sample, SessionRow
from engine.session import UserState
from engine.view import progress_of

# Cells of a notebook (class, path), as the class knows it; 0: nothing is known.
TotalCells: TypeAlias = Callable[[str, str], int]

# The state does not keep the type of a cell; what runs, and so has durations and errors, is code.
CELL_TYPE: Final = "code"


def samples_of(state: UserState, changed: Iterable[SessionRow], total_cells: TotalCells, now: int) -> list[Sample]:
    """One sample a notebook of the sessions that ``changed``, taken at ``now`` (ms)."""
    latest: dict[str, SessionRow] = {}
    for row in changed:
        path = row.notebook_path
        if path is not None and ((known := latest.get(path)) is None or row.ended_at > known.ended_at):
            latest[path] = row
    return [
        _sample(state, notebook, row, total_cells(state.class_id, path), now)
        for path, row in latest.items()
        if (notebook := state.notebooks.get(path)) is not None
    ]


def _sample(state: UserState, notebook: Notebook, row: SessionRow, total: int, now: int) -> Sample:
    done = executions = errors = timed = 0
    longest = together = 0.0
    # One pass: it runs for each student that is stored, over all cells of the notebook.
    for result in notebook.results.values():
        done += result.ok
        executions += result.executions
        errors += result.errors
        duration = result.duration_ms
        if duration is not None:
            timed += 1
            together += duration
            if duration > longest:  # max() would be half of the loop
                longest = duration
    total = total or len(notebook.results)
    # An `execution_error` is a failed run that no execution counts.
    runs = max(executions, errors)
    return Sample(
        state.class_id,
        state.user_id,
        row.notebook_path or "",
        now,
        done,
        total,
        100 * progress_of(done, total),
        row.ended_at - row.started_at,
        together / timed if timed else None,
        longest if timed else None,
        errors / runs if runs else None,
    )
