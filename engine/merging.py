"""One answer of several databases, each of which has some of a class's students."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TypeVar

from engine.ports import ClassSession
from engine.series import Activity, CellWork, Errors

Row = TypeVar("Row", Activity, Errors)


def merge_sessions(pages: Iterable[list[ClassSession]], limit: int) -> list[ClassSession]:
    """The newest of pages that are newest first: by start, then id, as the cursor has them."""
    merged = heapq.merge(*pages, key=lambda each: (each.row.started_at, each.row.id), reverse=True)
    return list(islice(merged, limit))


def merge_activity(parts: Iterable[list[Activity]]) -> list[Activity]:
    """Sums by group and bucket."""

    def add(one: Activity, other: Activity) -> Activity:
        return Activity(
            one.group,
            one.start,
            one.executions + other.executions,
            one.timed + other.timed,
            one.total_ms + other.total_ms,
        )

    return _merged(parts, add)


def merge_errors(parts: Iterable[list[Errors]]) -> list[Errors]:
    """Sums by group and bucket."""

    def add(one: Errors, other: Errors) -> Errors:
        return Errors(one.group, one.start, one.executions + other.executions, one.errors + other.errors)

    return _merged(parts, add)


def _merged(parts: Iterable[list[Row]], add: Callable[[Row, Row], Row]) -> list[Row]:
    merged: dict[tuple[str, int], Row] = {}
    for row in chain.from_iterable(parts):
        known = merged.get((row.group, row.start))
        merged[row.group, row.start] = row if known is None else add(known, row)
    return list(merged.values())


def merge_cells(parts: Iterable[list[CellWork]], durations: Iterable[list[tuple[int, float, int]]]) -> list[CellWork]:
    """Cells with their medians. ``durations``: (cell_index, ms, how many took so long), in any order."""
    timed: dict[int, dict[float, int]] = {}
    for cell_index, ms, count in chain.from_iterable(durations):
        counts = timed.setdefault(cell_index, {})
        counts[ms] = counts.get(ms, 0) + count
    merged: dict[int, CellWork] = {}
    for cell in chain.from_iterable(parts):
        known = merged.get(cell.cell_index, CellWork(cell.cell_index, 0, 0, 0, None))
        merged[cell.cell_index] = CellWork(
            cell.cell_index,
            known.students + cell.students,
            known.executions + cell.executions,
            known.errors + cell.errors,
            None,
        )
    return [cell._replace(median_ms=_median(sorted(timed.get(index, {}).items()))) for index, cell in merged.items()]


def _median(counts: Sequence[tuple[float, int]]) -> float | None:
    """Of values with how often each is there, ascending: halfway between the two in the middle."""
    total = sum(count for _, count in counts)
    if not total:
        return None
    below = 0
    low: float | None = None
    for value, count in counts:
        below += count
        if low is None and below > (total - 1) // 2:
            low = value
        if low is not None and below > total // 2:
            return low + (value - low) / 2
    raise AssertionError("the middle is among the values")
