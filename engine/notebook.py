"""A notebook as a class works on it: the summary, from the states of the students who are in memory.

Approximate by nature: a student who left memory counts no more, each one's last `engine.cells.MAX_CELLS` cells are
kept, and ``median_duration_ms`` is the median over students of each one's last run of the cell.
"""

from bisect import bisect_left, insort
from typing import Any

from engine.cells import Notebook, Result
from engine.view import progress_of


class _Cell:
    """One cell, over all students."""

    __slots__ = ("durations", "errors", "executions", "students")

    def __init__(self) -> None:
        self.students = 0
        self.executions = 0
        self.errors = 0
        self.durations: list[float] = []  # ascending: one a student whose last run told it

    def count(self, result: Result, sign: int) -> None:
        self.students += sign
        self.executions += sign * result.executions
        self.errors += sign * result.errors
        duration = result.duration_ms
        if duration is not None:
            if sign > 0:
                insort(self.durations, duration)
            else:
                del self.durations[bisect_left(self.durations, duration)]

    @property
    def median_ms(self) -> float | None:
        durations, half = self.durations, len(self.durations) // 2
        if not durations:
            return None
        return durations[half] if len(durations) % 2 else (durations[half - 1] + durations[half]) / 2


class NotebookView:
    """Adds and takes away students' parts, so that a change costs that student's cells and not the class's."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, dict[int, Result]]] = {}  # by user: cells done, and the results counted
        self._cells: dict[int, _Cell] = {}

    def put(self, user_id: str, notebook: Notebook | None) -> None:
        """A student's work on the notebook as it is now; None: none that is known. Who ran nothing is not counted."""
        if notebook is not None and not notebook.cells:
            notebook = None
        results = {} if notebook is None else dict(notebook.results)
        known = self._parts.pop(user_id, (0, {}))[1]
        for index, result in known.items():
            if results.get(index) is not result:
                self._count(index, result, -1)
        for index, result in results.items():
            if known.get(index) is not result:
                self._count(index, result, 1)
        if notebook is not None:
            self._parts[user_id] = (notebook.done, results)

    def summary(self, total_cells: int) -> dict[str, Any]:
        """The contract's notebook summary. ``total_cells`` as the cohort knows it; 0: nothing is known."""
        progress = [progress_of(done, total_cells or len(results)) for done, results in self._parts.values()]
        return {
            "total_students": len(progress),
            "avg_progress": round(sum(progress) / len(progress), 4) if progress else 0.0,
            "total_cells": total_cells,
            "cells": [_seen(index, cell) for index, cell in sorted(self._cells.items())],
        }

    def _count(self, index: int, result: Result, sign: int) -> None:
        cell = self._cells.get(index)
        if cell is None:
            cell = self._cells[index] = _Cell()
        cell.count(result, sign)
        if not cell.students:
            del self._cells[index]


def _seen(index: int, cell: _Cell) -> dict[str, Any]:
    seen = {"cell_index": index, "students": cell.students, "executions": cell.executions, "errors": cell.errors}
    median = cell.median_ms
    return seen if median is None else {**seen, "median_duration_ms": median}
