"""`engine.ports.SeriesQueries` on PostgreSQL: `cell_executions` holds the time series where no InfluxDB does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import trio

from adapters.asyncio_bridge import Connection, Dsn, from_timestamptz, to_timestamptz
from engine.errors import ClasspulseError, StoreUnavailableError
from engine.ids import notebook_uuid
from engine.measures import Histograms
from engine.series import MAX_RUN_MS, Activity, By, CellWork, Errors, Window, notebook_summary, too_many_groups

# A summary asks for two things at once; more would take the server's cores from the writer.
_CONNECTIONS: Final = 2
# Seconds until a query is given up. A term of a large class takes a few.
_PATIENCE_S: Final = 30.0
# Compiling costs more than these queries do, and a plan that suits one class's hour does not suit another's year.
_PREPARE: Final = "set jit = off; set plan_cache_mode = force_custom_plan"

_FAILED: Final = "(has_error is true or event_type = 'execution_error')"
_EXECUTED: Final = "event_type = 'cell_executed'"
_TIMED: Final = f"execution_duration_ms < {MAX_RUN_MS}"
_IN_WINDOW: Final = "class_id = $1 and event_timestamp >= $2 and event_timestamp < $3"
_BUCKET: Final = "date_bin($4, event_timestamp, timestamptz 'epoch')"
# An expression in place of the column: else the rows are read in the order of the summaries' index, all of the class's
# and not only those of the window, to spare sorting them.
_GROUP: Final[dict[By, str]] = {"user_id": "user_id || ''", "notebook_path": "notebook_path || ''", "none": "''"}

# The last run of a cell is the one with the highest time, then seq, as InfluxDB's timestamps are made. Where a success
# and a failure are of the same millisecond that row is looked up: a number made of both costs a quarter more.
_SUCCEEDED_LAST: Final = (
    "case when succeeded_at = failed_at then (select not "  # noqa: S608
    f"{_FAILED} from cell_executions c where c.event_timestamp = succeeded_at and c.class_id = $1 "
    "and c.notebook_path = $2 and c.user_id = r.user_id and c.cell_index = r.cell_index "
    "order by c.seq % 1000000 desc limit 1) "
    "else succeeded_at > failed_at or (succeeded_at is not null and failed_at is null) end"
)
_RUNS: Final = (
    "with runs as (select user_id, cell_index, "  # noqa: S608
    f"count(*) filter (where {_EXECUTED}) as executions, count(*) filter (where {_FAILED}) as errors, "
    f"max(event_timestamp) filter (where not {_FAILED}) as succeeded_at, "
    f"max(event_timestamp) filter (where {_FAILED}) as failed_at "
    "from cell_executions where class_id = $1 and notebook_path = $2 group by 1, 2), "
    f"students as (select count(*) filter (where cell_index is not null and {_SUCCEEDED_LAST}) as done "
    "from runs r group by user_id) "
    "select null as cell_index, done, count(*) as students, 0 as executions, 0 as errors from students group by done "
    "union all select cell_index, null, count(*), sum(executions)::bigint, sum(errors)::bigint from runs "
    "where cell_index is not null group by cell_index"
)
# Gathered into arrays first, which the server's workers share; grouping for the median itself would sort all of it.
_MEDIANS: Final = (
    "select cell_index, (select percentile_cont(0.5) within group (order by each) from unnest(durations) as each) "  # noqa: S608
    "from (select cell_index, array_agg(execution_duration_ms) as durations from cell_executions "
    f"where class_id = $1 and notebook_path = $2 and {_EXECUTED} and {_TIMED} and cell_index is not null group by 1) "
    "as gathered"
)


class PostgresSeries:
    """On connections of its own: a query may take longer than the page of sessions may wait."""

    def __init__(self, dsn: Dsn, times: Histograms | None = None) -> None:
        self._dsn = dsn
        self._times = times
        self._idle: list[Connection] = []
        self._busy = 0
        self._turn = trio.Semaphore(_CONNECTIONS)

    async def activity(self, class_id: str, window: Window, by: By) -> list[Activity]:
        """See `engine.ports.SeriesQueries`."""
        rows = await self._grouped(
            class_id,
            window,
            by,
            _EXECUTED,
            f"count(*), count(*) filter (where {_TIMED}), sum(execution_duration_ms) filter (where {_TIMED})",
        )
        return [Activity(row[0], from_timestamptz(row[1]), row[2], row[3], row[4] or 0.0) for row in rows]

    async def errors(self, class_id: str, window: Window, by: By) -> list[Errors]:
        """See `engine.ports.SeriesQueries`."""
        counts = f"count(*) filter (where {_EXECUTED}), count(*) filter (where {_FAILED})"
        rows = await self._grouped(class_id, window, by, "true", counts)
        return [Errors(row[0], from_timestamptz(row[1]), row[2], row[3]) for row in rows]

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """See `engine.ports.SeriesQueries`."""
        runs, halves = await self._fetch_both(_RUNS, _MEDIANS, class_id, path)
        medians = {row[0]: row[1] for row in halves}
        done = {row[1]: row[2] for row in runs if row[0] is None}
        cells = [CellWork(row[0], row[2], row[3], row[4], medians.get(row[0])) for row in runs if row[0] is not None]
        return notebook_summary(done, cells, await self.total_cells(class_id, path))

    async def total_cells(self, class_id: str, path: str) -> int:
        """How many cells a notebook has, as the table `notebooks` knows; 0: it does not."""
        rows = await self._fetch("select cell_count from notebooks where id = $1", notebook_uuid(class_id, path))
        return (rows[0][0] or 0) if rows else 0

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._busy + sum(not connection.closed for connection in self._idle)

    async def close(self) -> None:
        """Let go of the connections that nobody uses."""
        while self._idle:
            await self._idle.pop().close()

    async def _grouped(self, class_id: str, window: Window, by: By, where: str, counts: str) -> list[Any]:
        limit = window.max_groups * len(window.starts)
        rows = await self._fetch(
            f"select {_GROUP[by]}, {_BUCKET}, {counts} from cell_executions "  # noqa: S608
            f"where {_IN_WINDOW} and {where} group by 1, 2 limit $5",
            class_id,
            to_timestamptz(window.start),
            to_timestamptz(window.end),
            timedelta(milliseconds=window.every),
            limit + 1,
        )
        if len(rows) > limit:
            raise too_many_groups(window)
        return rows

    async def _fetch_both(self, first: str, second: str, *args: Any) -> tuple[list[Any], list[Any]]:
        """Two queries at once. Neither runs in parallel for all of its way, and the server has more than one core."""
        found: dict[str, list[Any]] = {}
        faults: list[ClasspulseError] = []

        async def fetch(query: str) -> None:
            try:
                found[query] = await self._fetch(query, *args)
            except ClasspulseError as fault:
                faults.append(fault)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, first)
            nursery.start_soon(fetch, second)
        if faults:
            raise faults[0]
        return found[first], found[second]

    async def _fetch(self, query: str, *args: Any) -> list[Any]:
        async with self._connection() as connection:
            with trio.move_on_after(_PATIENCE_S):
                return await connection.fetch(query, *args)
        raise StoreUnavailableError(f"PostgreSQL: the query took longer than {_PATIENCE_S:.0f} s: ask for less")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._turn:
            connection = self._idle.pop() if self._idle else None
            if connection is None or connection.closed:
                connection = await Connection.connect(self._dsn(), self._times)
            self._busy += 1
            try:
                await connection.execute(_PREPARE)  # a round trip, and nothing to remember of a connection
                yield connection
            finally:
                self._busy -= 1
                if not connection.closed:
                    self._idle.append(connection)
