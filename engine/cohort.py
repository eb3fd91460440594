"""What a class knows together: how many cells each notebook has. It commutes, like a student's state."""

from typing import Final

import msgspec

from engine.event import CELL_TYPES, Event, Order
from engine.latest import Latest, latest

MAX_NOTEBOOKS: Final = 10_000  # a class; past them progress falls back to the student's own cells


class NotebookTotals(msgspec.Struct, array_like=True):
    """The size of a notebook, as far as a class has seen it."""

    highest_index: int = -1  # the highest cell_index that anyone ran
    given: Latest[int] | None = None  # total_cells, as the latest event that carries it says

    @property
    def total_cells(self) -> int:
        """What a client gave, else the highest index that anyone ran plus one. 0: nothing is known."""
        return self.given.value if self.given is not None and self.given.value > 0 else self.highest_index + 1

    def merge(self, other: "NotebookTotals") -> bool:
        """Join what was known elsewhere; tells whether anything changed."""
        before = (self.highest_index, self.given)
        self.highest_index = max(self.highest_index, other.highest_index)
        self.given = latest(self.given, other.given)
        return before != (self.highest_index, self.given)


class Cohort:
    """The notebooks of one class."""

    def __init__(self, class_id: str) -> None:
        self.class_id = class_id
        self.notebooks: dict[str, NotebookTotals] = {}

    def observe(self, event: Event) -> bool:
        """Fold in one event; tells whether a notebook is new or its size changed."""
        path = event.notebook_path
        if path is None:
            return False
        totals = self.notebooks.get(path)
        changed = totals is None
        if totals is None:
            if len(self.notebooks) >= MAX_NOTEBOOKS:
                return False
            totals = self.notebooks[path] = NotebookTotals()
        index = event.cell_index
        if index is not None and index > totals.highest_index and event.event_type in CELL_TYPES:
            totals.highest_index = index
            changed = True
        if event.total_cells is not None:
            given = latest(totals.given, Latest(Order(event.time, event.event_id), event.total_cells))
            changed = changed or given != totals.given
            totals.given = given
        return changed

    def total_cells(self, path: str) -> int:
        """Cells of a notebook; 0 when nothing is known of it."""
        totals = self.notebooks.get(path)
        return 0 if totals is None else totals.total_cells
