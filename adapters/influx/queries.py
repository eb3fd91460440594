"""`engine.ports.SeriesQueries` on InfluxDB: the measurement `cell_executions`, one point an event.

Every point has the field ``has_error``, so its count is the count of points. A point's time is the event's millisecond
plus ``seq mod 1e6`` nanoseconds, so the last run of a cell is the one with the highest time.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from statistics import median
from typing import Any, Final, TypeAlias

import trio

from engine.event import CELL_EXECUTED
from engine.series import (
    MAX_RUN_MS,
    Activity,
    By,
    CellWork,
    Errors,
    Window,
    notebook_summary,
    too_many_groups,
)

from .influxql import Bound, InfluxQl, Point
from .lines import stored_tag

# How many cells a notebook has (class, path), as PostgreSQL knows; 0: it does not.
TotalCells: TypeAlias = Callable[[str, str], Awaitable[int]]

_MS: Final = 1_000_000  # ns
_EXECUTED: Final = "event_type = 'cell_executed'"
_FAILED: Final = "(event_type = 'execution_error' OR has_error = true)"
_SUCCEEDED: Final = f"{_EXECUTED} AND has_error = false"
_TIMED: Final = f"{_EXECUTED} AND execution_duration_ms < {MAX_RUN_MS:.0f}"
_IN_WINDOW: Final = "class_id = $class AND time >= $start AND time < $end"
_ON_NOTEBOOK: Final = "class_id = $class AND notebook_path = $path"


class InfluxSeries:
    """``index_is_tag``: as the writer is told by ``influxdb.tags``; without it a summary reads every point."""

    def __init__(self, influxql: InfluxQl, total_cells: TotalCells, *, index_is_tag: bool = True) -> None:
        self._influxql = influxql
        self._total_cells = total_cells
        self._index_is_tag = index_is_tag

    async def activity(self, class_id: str, window: Window, by: By) -> list[Activity]:
        """See `engine.ports.SeriesQueries`."""
        executed, timed = await self._grouped(
            class_id,
            window,
            by,
            ("COUNT(has_error)", _EXECUTED),
            ("COUNT(execution_duration_ms), SUM(execution_duration_ms)", _TIMED),
        )
        return [
            Activity(group, start, values[0], *timed.get((group, start), (0, 0.0)))
            for (group, start), values in executed.items()
        ]

    async def errors(self, class_id: str, window: Window, by: By) -> list[Errors]:
        """See `engine.ports.SeriesQueries`."""
        executed, failed = await self._grouped(
            class_id, window, by, ("COUNT(has_error)", _EXECUTED), ("COUNT(has_error)", _FAILED)
        )
        return [
            Errors(group, start, executed.get((group, start), [0])[0], failed.get((group, start), [0])[0])
            for group, start in executed.keys() | failed.keys()
        ]

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """See `engine.ports.SeriesQueries`."""
        bound = {"class": stored_tag(class_id), "path": stored_tag(path)}
        total = await self._total_cells(class_id, path)
        if self._index_is_tag:
            return await self._summary_of_groups(bound, total)
        return await self._summary_of_points(bound, total)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._influxql.close()

    async def _grouped(
        self, class_id: str, window: Window, by: By, *asked: tuple[str, str]
    ) -> list[dict[tuple[str, int], list[Any]]]:
        """Values by group and bucket (ms), of each pair of selection and condition."""
        bound: Bound = {"class": stored_tag(class_id), "start": window.start * _MS, "end": window.end * _MS}
        tag, limit = ("", "") if by == "none" else (f", {by}", f" SLIMIT {window.max_groups + 1}")
        group = f"GROUP BY time({window.every}ms){tag} fill(none){limit}"
        found = await self._influxql.query(
            *(_select(what, f"{_IN_WINDOW} AND {where} {group}") for what, where in asked), bound=bound
        )
        answer = [{(point.tags.get(by, ""), point.time // _MS): point.values for point in points} for points in found]
        if len({key[0] for values in answer for key in values}) > window.max_groups:
            raise too_many_groups(window)
        return answer

    async def _summary_of_groups(self, bound: Bound, total: int) -> dict[str, Any]:
        """Five groupings that the server makes; what comes back is a row for each student and cell."""
        by_cell = "GROUP BY cell_index"
        by_student = "GROUP BY user_id, cell_index"
        asked = (
            ("COUNT(has_error)", _EXECUTED, by_cell),
            ("COUNT(has_error)", _FAILED, by_cell),
            ("MEDIAN(execution_duration_ms)", _TIMED, by_cell),
            ("LAST(has_error)", _SUCCEEDED, by_student),
            ("LAST(has_error)", _FAILED, by_student),
        )
        executed, failed, medians, succeeded, broken = await self._influxql.query(
            *(_select(what, f"{_ON_NOTEBOOK} AND {how} {group}") for what, how, group in asked),
            bound=bound,
        )
        last: dict[tuple[str, str], tuple[int, bool]] = {}  # by student and cell: when, and whether it succeeded
        for points, good in ((succeeded, True), (broken, False)):
            for point in points:
                key = (point.tags["user_id"], point.tags["cell_index"])
                last[key] = max(last.get(key, (0, False)), (point.time, good))
        executions, errors, halves = _by_cell(executed), _by_cell(failed), _by_cell(medians)
        students = Counter(cell for _, cell in last)
        cells = [
            CellWork(int(cell), count, executions.get(cell, 0), errors.get(cell, 0), halves.get(cell))
            for cell, count in students.items()
            if cell
        ]
        return notebook_summary(_done((user, cell, good) for (user, cell), (_, good) in last.items()), cells, total)

    async def _summary_of_points(self, bound: Bound, total: int) -> dict[str, Any]:
        """A field cannot be grouped by, so every point comes here; that takes long, and so goes to a thread."""
        (points,) = await self._influxql.query(
            _select("cell_index, has_error, execution_duration_ms", f"{_ON_NOTEBOOK} GROUP BY user_id, event_type"),
            bound=bound,
        )
        return await trio.to_thread.run_sync(_summary, points, total)


def _select(what: str, where: str) -> str:
    return f"SELECT {what} FROM cell_executions WHERE {where}"  # noqa: S608


def _by_cell(points: list[Point]) -> dict[str, Any]:
    return {point.tags["cell_index"]: point.values[0] for point in points}


def _done(results: Iterable[tuple[str, str, bool]]) -> Counter[int]:
    """How many students are through with how many cells. Who ran a cell without an index is a student too."""
    done: Counter[str] = Counter()
    for user, cell, good in results:
        done[user] += int(good and cell != "")
    return Counter(done.values())


def _summary(points: list[Point], total: int) -> dict[str, Any]:
    """The same of single points, each with ``cell_index``, ``has_error`` and the duration."""
    executions: Counter[int] = Counter()
    errors: Counter[int] = Counter()
    durations: defaultdict[int, list[float]] = defaultdict(list)
    last: dict[tuple[str, str], tuple[int, bool]] = {}
    for point in points:
        index, has_error, duration = point.values
        executed = point.tags["event_type"] == CELL_EXECUTED
        failed = bool(has_error) or not executed
        key = (point.tags["user_id"], "" if index is None else str(index))
        last[key] = max(last.get(key, (0, False)), (point.time, not failed))
        if index is None:
            continue
        executions[index] += executed
        errors[index] += failed
        if executed and duration is not None and duration < MAX_RUN_MS:
            durations[index].append(duration)
    students = Counter(int(cell) for _, cell in last if cell)
    cells = [
        CellWork(index, count, executions[index], errors[index], median(durations[index]) if durations[index] else None)
        for index, count in students.items()
    ]
    return notebook_summary(_done((user, cell, good) for (user, cell), (_, good) in last.items()), cells, total)
