"""Sums of cell runs, by student, cell and month: what a summary of a notebook needs of rows that stay as they are.

They follow the rows, some at a time, beside the writer. Whoever reads both adds to the sums what they do not hold yet
(`unsummed`), so a summary is right however far behind they are, and only slower. Rows of a journal that
`cell_sums_offsets` does not name, because something else than a daemon wrote them, are never in a sum.
"""

from contextlib import suppress
from typing import Any, Final

from adapters.asyncio_bridge import Connection
from engine.errors import StoreUnavailableError

# Rows that are summed at once: some 0.1 s of the server's.
_AT_ONCE: Final = 20_000

EXECUTED: Final = "event_type = 'cell_executed'"
FAILED: Final = "(has_error is true or event_type = 'execution_error')"
# Of rows of `cell_executions`, in the order of the columns of `cell_sums`.
SUMS: Final = (
    f"count(*) filter (where {EXECUTED}) as executions, count(*) filter (where {FAILED}) as errors, "
    f"max(event_timestamp) filter (where not {FAILED}) as succeeded_at, "
    f"max(event_timestamp) filter (where {FAILED}) as failed_at"
)

# A journal with rows that are not summed, how far it is, and how far rows are stored.
BEHIND: Final = (
    "select journal_id, coalesce(summed.seq, 0), sink_offsets.seq from sink_offsets "
    "left join cell_sums_offsets as summed using (journal_id) "
    "where store = $1 and sink_offsets.seq > coalesce(summed.seq, 0) order by sink_offsets.updated_at limit 1"
)
_OFFSETS: Final = "select journal_id, seq from cell_sums_offsets order by journal_id"
_ADD: Final = (
    "insert into cell_sums as sums select class_id, notebook_path, user_id, coalesce(cell_index, -1), "  # noqa: S608
    f"date_trunc('month', event_timestamp, 'UTC'), {SUMS} from cell_executions "
    "where journal_id = $1 and seq > $2 and seq <= $3 group by 1, 2, 3, 4, 5 "
    "on conflict (class_id, notebook_path, md5(user_id), cell_index, month) do update set "
    "executions = sums.executions + excluded.executions, errors = sums.errors + excluded.errors, "
    "succeeded_at = greatest(sums.succeeded_at, excluded.succeeded_at), "
    "failed_at = greatest(sums.failed_at, excluded.failed_at)"
)
_MOVE: Final = (
    "insert into cell_sums_offsets (journal_id, seq) values ($1, $2) "
    "on conflict (journal_id) do update set seq = excluded.seq"
)
# Pages that the index of the journal's order does not describe yet are read whenever it is asked.
_DESCRIBE: Final = (
    "select brin_summarize_new_values(indexrelid) from pg_partition_tree('cell_executions') "
    "join pg_index on indrelid = relid join pg_class on pg_class.oid = indexrelid "
    "join pg_am on pg_am.oid = relam where isleaf and amname = 'brin'"
)
# How long a step waits for whoever erases rows. Less than `deadlock_timeout` (1 s), after which the server would end an
# autovacuum that `_DESCRIBE` waits for; a vacuum describes the pages itself.
_LOCK_WAIT: Final = "set local lock_timeout = '500ms'"


async def unsummed(connection: Connection, first: int) -> tuple[str, list[Any]]:
    """Which rows of `cell_executions` are in no sum: a condition, and its values from parameter number ``first`` on.

    It holds for the snapshot in which it is asked for. In ranges of (journal_id, seq), whose bounds the planner sees:
    where few rows are left it finds them by the index of that order, where many are it reads the notebook instead.
    """
    conditions: list[str] = []
    values: list[Any] = []
    after: str | None = None
    for journal_id, seq in await connection.fetch(_OFFSETS):
        journal, number = f"${first + len(values)}", f"${first + len(values) + 1}"
        values += [journal_id, seq]
        conditions += [_between(after, journal), f"(journal_id = {journal} and seq > {number})"]
        after = journal
    conditions.append(_between(after, None))
    return f"({' or '.join(conditions)})", values


def _between(after: str | None, before: str | None) -> str:
    bounds = [f"journal_id > {after}"] * (after is not None) + [f"journal_id < {before}"] * (before is not None)
    return f"({' and '.join(bounds)})" if bounds else "true"


async def sum_up(connection: Connection, store: str) -> bool:
    """Add the next stored rows to the sums, as the tables' owner; False: there are none.

    ``store`` is the name under which `sink_offsets` says how far rows are stored.
    """
    async with connection.transaction():
        await connection.execute(_LOCK_WAIT)
        # One step at a time, whoever makes it, and none while the sums begin anew (`forget_sums`). The rows come first,
        # as for somebody who empties their table.
        await connection.execute("lock table cell_executions in access share mode")
        await connection.execute("lock table cell_sums_offsets in share row exclusive mode")
        behind = await connection.fetch(BEHIND, store)
        if not behind:
            return False
        journal_id, summed, stored = behind[0]
        upto = min(summed + _AT_ONCE, stored)
        # A table restored from a dump has no statistics, and would be read from end to end.
        await connection.execute("set local enable_seqscan = off; set local jit = off")
        await connection.execute(_ADD, journal_id, summed, upto)
        await connection.execute(_MOVE, journal_id, upto)
    with suppress(StoreUnavailableError):
        async with connection.transaction():
            await connection.execute(_LOCK_WAIT)
            await connection.fetch(_DESCRIBE)
    return True
