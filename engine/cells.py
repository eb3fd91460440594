"""What one student did with a notebook and its cells."""

from typing import Final

import msgspec

from engine.bounds import trim
from engine.event import CELL_EXECUTED, Event, Order
from engine.latest import Latest, latest

MAX_CELLS: Final = 500  # a notebook
MAX_FAILURES: Final = 32  # in a row, of one cell, that are kept one by one; more are only counted

_NEVER: Final = Order(-1, "")


class Cell(msgspec.Struct, array_like=True, gc=False):
    """The runs of one cell: its latest success, and the failures after it (ascending)."""

    success: Order | None = None
    failures: tuple[Order, ...] = ()
    uncounted: int = 0  # failures past MAX_FAILURES

    def add(self, order: Order, *, failed: bool) -> None:
        """Fold in one run."""
        if failed:
            if self.success is None or order > self.success:
                self.failures = tuple(sorted((*self.failures, order)))
                if len(self.failures) > MAX_FAILURES:
                    self.failures = self.failures[:-1]  # the earliest stay: `stuck_since` is among them
                    self.uncounted += 1
        elif self.success is None or order > self.success:
            self.success = order
            if self.failures:
                self.failures = tuple(failure for failure in self.failures if failure > order)
                if not self.failures:
                    self.uncounted = 0

    @property
    def consecutive_errors(self) -> int:
        """Failures since the latest success."""
        return len(self.failures) + self.uncounted


class Result(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """How the last run of a cell ended, and how many there were. A new one each time: `engine.notebook` compares."""

    order: Order
    ok: bool
    executions: int = 0
    errors: int = 0
    duration_ms: float | None = None  # of the last run


class Notebook(msgspec.Struct, array_like=True, gc=False):
    """A student's work on one notebook."""

    last: Order  # the latest event of any kind
    cell: Latest[int] | None = None  # the most recently run cell that has an index
    results: dict[int, Result] = {}  # by cell_index
    cells: dict[str, Cell] = {}  # by cell identity (`cell_key`)

    @property
    def done(self) -> int:
        """Distinct cells, by index, whose last run succeeded."""
        return sum(result.ok for result in self.results.values())

    def add_run(self, event: Event, key: str, order: Order, *, failed: bool, newest: bool) -> None:
        """Fold in the run of a cell. ``newest``: it is the latest that the student did."""
        index = event.cell_index
        if index is not None:
            at = self.cell
            if at is None:
                self.cell = Latest(order, index)
            elif newest or order > at.order:
                at.order = order
                at.value = index
            executed = event.event_type == CELL_EXECUTED
            known = self.results.get(index)
            if known is None:
                self.results[index] = Result(order, not failed, int(executed), int(failed), event.execution_duration_ms)
                trim(self.results, MAX_CELLS, _result_order)
            else:
                executions, errors = known.executions + executed, known.errors + failed
                self.results[index] = (
                    Result(order, not failed, executions, errors, event.execution_duration_ms)
                    if newest or order > known.order
                    else Result(known.order, known.ok, executions, errors, known.duration_ms)
                )
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = Cell()
            cell.add(order, failed=failed)
            trim(self.cells, MAX_CELLS, _cell_order)
        else:
            cell.add(order, failed=failed)

    def merge(self, other: "Notebook") -> None:
        """Join work that saw other events."""
        self.last = max(self.last, other.last)
        self.cell = latest(self.cell, other.cell)
        for index, theirs in other.results.items():
            mine = self.results.get(index)
            if mine is None:
                self.results[index] = theirs
                trim(self.results, MAX_CELLS, _result_order)
            else:
                last = theirs if theirs.order > mine.order else mine
                executions, errors = mine.executions + theirs.executions, mine.errors + theirs.errors
                self.results[index] = Result(last.order, last.ok, executions, errors, last.duration_ms)
        for key, cell in other.cells.items():
            known = self.cells.get(key)
            if known is None:
                self.cells[key] = cell
                trim(self.cells, MAX_CELLS, _cell_order)
                continue
            if cell.success is not None:
                known.add(cell.success, failed=False)
            for failure in cell.failures:
                known.add(failure, failed=True)
            if known.failures:
                known.uncounted += cell.uncounted


def cell_key(event: Event) -> str:
    """A cell's identity: its id, which stays when cells are inserted above it; else its place."""
    return event.cell_id or f"#{event.cell_index}"


def _cell_order(cell: Cell) -> Order:
    return cell.failures[-1] if cell.failures else cell.success or _NEVER


def _result_order(result: Result) -> Order:
    return result.order
