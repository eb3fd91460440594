"""`engine.ports.SeriesQueries` on PostgreSQL: `cell_executions` holds the time series where no InfluxDB does."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, NamedTuple

import trio

from adapters.asyncio_bridge import Connection, from_timestamptz, to_timestamptz
from engine.errors import ClasspulseError
from engine.ids import notebook_uuid
from engine.series import MAX_RUN_MS, Activity, By, CellWork, Errors, Window, notebook_summary, too_many_groups

from .pool import patience
from .replicas import ReadPool
from .sums import EXECUTED, FAILED, SUMS, unsummed

# A summary asks for two things at once; more would take the server's cores from the writer.
_CONNECTIONS: Final = 2

_TIMED: Final = f"execution_duration_ms < {MAX_RUN_MS}"
_IN_WINDOW: Final = "class_id = $1 and event_timestamp >= $2 and event_timestamp < $3"
_BUCKET: Final = "date_bin($4, event_timestamp, timestamptz 'epoch')"
_GROUP: Final[dict[By, str]] = {"user_id": "user_id", "notebook_path": "notebook_path", "none": "''"}

# The last run of a cell is the one with the highest time, then seq, as InfluxDB's timestamps are made. Where a success
# and a failure are of the same millisecond that row is looked up: a number made of both costs a quarter more.
_SUCCEEDED_LAST: Final = (
    "case when succeeded_at = failed_at then (select not "  # noqa: S608
    f"{FAILED} from cell_executions c where c.event_timestamp = succeeded_at and c.class_id = $1 "
    "and c.notebook_path = $2 and c.user_id = r.user_id and c.cell_index = r.cell_index "
    "order by c.seq % 1000000 desc limit 1) "
    "else succeeded_at > failed_at or (succeeded_at is not null and failed_at is null) end"
)
# What is summed already, and the rows that are not (to be filled in): grouping all of them cost as much again as the
# medians, and reading all of them half of that.
_RUNS: Final = (
    "with parts as (select user_id, cell_index, executions, errors, succeeded_at, failed_at from cell_sums "  # noqa: S608
    "where class_id = $1 and notebook_path = $2 "
    f"union all select user_id, coalesce(cell_index, -1), {SUMS} "
    "from cell_executions where class_id = $1 and notebook_path = $2 and {unsummed} group by 1, 2), "
    "runs as (select user_id, cell_index, sum(executions)::bigint as executions, sum(errors)::bigint as errors, "
    "max(succeeded_at) as succeeded_at, max(failed_at) as failed_at from parts group by 1, 2), "
    f"students as (select count(*) filter (where cell_index >= 0 and {_SUCCEEDED_LAST}) as done "
    "from runs r group by user_id) "
    "select null as cell_index, done, count(*) as students, 0 as executions, 0 as errors from students group by done "
    "union all select cell_index, null, count(*), sum(executions)::bigint, sum(errors)::bigint from runs "
    "where cell_index >= 0 group by cell_index"
)
# Gathered into arrays first, which the server's workers share; grouping for the median itself would sort all of it.
# `unnest` among the columns hands one value on at a time; in a `from` it would write the whole array down first.
_MEDIANS: Final = (
    "select cell_index, "  # noqa: S608
    "(select percentile_cont(0.5) within group (order by each) from (select unnest(durations) as each) as timed) "
    "from (select cell_index, array_agg(execution_duration_ms) as durations from cell_executions "
    f"where class_id = $1 and notebook_path = $2 and {EXECUTED} and {_TIMED} and cell_index is not null group by 1) "
    "as gathered"
)
_DURATIONS: Final = (
    "select cell_index, execution_duration_ms, count(*) from cell_executions "  # noqa: S608
    f"where class_id = $1 and notebook_path = $2 and {EXECUTED} and {_TIMED} "
    "and cell_index is not null group by 1, 2"
)


class NotebookParts(NamedTuple):
    """What one database knows of a notebook; several can be put together."""

    done: dict[int, int]  # see `engine.series.notebook_summary`
    cells: list[CellWork]  # without medians
    durations: list[tuple[int, float, int]]  # (cell_index, ms, how many took so long)
    total: int


class PostgresSeries:
    """On connections that reads share; it leaves some of them to pages of sessions, which may not wait as long."""

    def __init__(self, reads: ReadPool) -> None:
        self._reads = reads
        self._turn = trio.Semaphore(_CONNECTIONS)

    async def activity(self, class_id: str, window: Window, by: By) -> list[Activity]:
        """See `engine.ports.SeriesQueries`."""
        rows = await self._grouped(
            class_id,
            window,
            by,
            EXECUTED,
            f"count(*), count(*) filter (where {_TIMED}), sum(execution_duration_ms) filter (where {_TIMED})",
        )
        return [Activity(row[0], from_timestamptz(row[1]), row[2], row[3], row[4] or 0.0) for row in rows]

    async def errors(self, class_id: str, window: Window, by: By) -> list[Errors]:
        """See `engine.ports.SeriesQueries`."""
        counts = f"count(*) filter (where {EXECUTED}), count(*) filter (where {FAILED})"
        rows = await self._grouped(class_id, window, by, "true", counts)
        return [Errors(row[0], from_timestamptz(row[1]), row[2], row[3]) for row in rows]

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """See `engine.ports.SeriesQueries`."""
        with patience():
            runs, halves = await self._fetch_both(_MEDIANS, class_id, path)
            total = await self.total_cells(class_id, path)
        medians = {row[0]: row[1] for row in halves}
        done = {row[1]: row[2] for row in runs if row[0] is None}
        cells = [CellWork(row[0], row[2], row[3], row[4], medians.get(row[0])) for row in runs if row[0] is not None]
        return notebook_summary(done, cells, total)

    async def notebook_parts(self, class_id: str, path: str) -> NotebookParts:
        """The same for several databases that hold a class together: medians cannot be made of medians."""
        with patience():
            runs, durations = await self._fetch_both(_DURATIONS, class_id, path)
            total = await self.total_cells(class_id, path)
        return NotebookParts(
            {row[1]: row[2] for row in runs if row[0] is None},
            [CellWork(row[0], row[2], row[3], row[4], None) for row in runs if row[0] is not None],
            [(row[0], row[1], row[2]) for row in durations],
            total,
        )

    async def total_cells(self, class_id: str, path: str) -> int:
        """How many cells a notebook has, as the table `notebooks` knows; 0: it does not."""
        rows = await self._fetch("select cell_count from notebooks where id = $1", notebook_uuid(class_id, path))
        return (rows[0][0] or 0) if rows else 0

    async def _grouped(self, class_id: str, window: Window, by: By, where: str, counts: str) -> list[Any]:
        limit = window.max_groups * len(window.starts)
        # The limit is there to refuse, hardly ever to cut. Materialized, so that it does not count when plans are
        # compared: for a few groups of many the server would read all of a class in the order of its notebooks.
        rows = await self._fetch(
            f"with grouped as materialized (select {_GROUP[by]}, {_BUCKET}, {counts} from cell_executions "  # noqa: S608
            f"where {_IN_WINDOW} and {where} group by 1, 2) select * from grouped limit $5",
            class_id,
            to_timestamptz(window.start),
            to_timestamptz(window.end),
            timedelta(milliseconds=window.every),
            limit + 1,
        )
        if len(rows) > limit:
            raise too_many_groups(window)
        return rows

    async def _fetch_both(self, durations: str, class_id: str, path: str) -> tuple[list[Any], list[Any]]:
        """Runs, and ``durations``, at once: neither is parallel for all of its way, and servers have more cores."""
        runs: list[Any] = []
        timed: list[Any] = []
        faults: list[ClasspulseError] = []

        async def read(into: list[Any], work: Callable[[Connection], Awaitable[list[Any]]]) -> None:
            try:
                into += await self._read(work)
            except ClasspulseError as fault:
                faults.append(fault)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, runs, lambda connection: _runs(connection, class_id, path))
            nursery.start_soon(read, timed, lambda connection: connection.fetch(durations, class_id, path))
        if faults:
            raise faults[0]
        return runs, timed

    async def _fetch(self, query: str, *args: Any) -> list[Any]:
        return await self._read(lambda connection: connection.fetch(query, *args))

    async def _read(self, work: Callable[[Connection], Awaitable[list[Any]]]) -> list[Any]:
        with patience():
            async with self._turn:
                return await self._reads.read(work)


async def _runs(connection: Connection, class_id: str, path: str) -> list[Any]:
    async with connection.transaction(snapshot=True):
        condition, values = await unsummed(connection, first=3)
        return await connection.fetch(_RUNS.format(unsummed=condition), class_id, path, *values)
