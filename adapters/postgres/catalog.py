"""Classes and their notebooks: what other rows point at, written once and seldom again."""

from collections.abc import Iterable
from typing import Any, Final

from adapters.asyncio_bridge import Connection
from engine.cohort import NotebookTotals
from engine.event import Order
from engine.ids import notebook_uuid
from engine.latest import Latest
from engine.ports import Flush

NOTEBOOKS: Final = "select class_id, path, highest_cell_index, given_cell_count, given_at_ms, given_by from notebooks"
# PostgreSQL's `integer`. An event's cell_index may be as high, and its notebook then has one cell more.
_MAX_INTEGER: Final = 2**31 - 1
# Classes and notebooks known to be stored; only a saving of statements, so it may be forgotten.
_MAX_KNOWN: Final = 50_000


def notebook_of(row: Any) -> tuple[str, str, NotebookTotals]:
    """Class, path and size, of a row of `NOTEBOOKS`."""
    given = None if row[3] is None else Latest(Order(row[4], row[5]), row[3])
    return row[0], row[1], NotebookTotals(row[2], given)


class Catalog:
    """Puts them there, and knows which are."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def forget(self) -> None:
        """Nobody knows what is there."""
        self._known = set()

    async def put_classes(self, connection: Connection, flush: Flush) -> None:
        """Those that a flush names."""
        classes = {snapshot.key[0] for snapshot in flush.snapshots} | {class_id for class_id, _, _ in flush.notebooks}
        if new := sorted(classes - self._known):
            await connection.execute(
                "insert into classes (id) select * from unnest($1::text[]) on conflict do nothing", new
            )
            self._remember(new)

    async def put_notebooks(self, connection: Connection, flush: Flush) -> None:
        """Those whose size a flush tells, and those that its sessions point at."""
        totals = {(class_id, path): totals for class_id, path, totals in flush.notebooks}
        for snapshot in flush.snapshots:
            for row in snapshot.sessions:
                key = (snapshot.key[0], row.notebook_path)
                if row.notebook_path is not None and key not in self._known:
                    totals.setdefault((snapshot.key[0], row.notebook_path), NotebookTotals())
        if not totals:
            return
        given = [item.given for item in totals.values()]
        await connection.execute(
            "insert into notebooks (id, class_id, path, cell_count, highest_cell_index, given_cell_count, given_at_ms, "
            "given_by) select * from unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::int[], $6::int[], "
            "$7::bigint[], $8::text[]) on conflict (id) do update set cell_count = excluded.cell_count, "
            "highest_cell_index = excluded.highest_cell_index, given_cell_count = excluded.given_cell_count, "
            "given_at_ms = excluded.given_at_ms, given_by = excluded.given_by "
            # Totals only grow; those of a notebook that a session made known say nothing.
            "where excluded.highest_cell_index >= notebooks.highest_cell_index "
            "and (excluded.given_at_ms is not null or notebooks.given_at_ms is null)",
            [notebook_uuid(*key) for key in totals],
            [class_id for class_id, _ in totals],
            [path for _, path in totals],
            [min(item.total_cells, _MAX_INTEGER) for item in totals.values()],
            [item.highest_index for item in totals.values()],
            [None if item is None else item.value for item in given],
            [None if item is None else item.order.time for item in given],
            [None if item is None else item.order.event_id for item in given],
        )
        self._remember(totals)

    def _remember(self, keys: Iterable[Any]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(keys)
