"""Month partitions (UTC): made ahead of the rows, because a row in DEFAULT would keep its month from being made."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeAlias

import structlog

from adapters.asyncio_bridge import Connection
from engine.clock import to_datetime
from engine.errors import StoreDataError
from engine.ports import Retention

Month: TypeAlias = tuple[int, int]  # year, month

# Each partitioned table, and the column that it is partitioned by.
KEYS: Final = {
    "cell_executions": "event_timestamp",
    "activity_events": "event_timestamp",
    "learning_sessions": "started_at",
    "learning_progress": "sampled_at",
    "performance_metrics": "sampled_at",
}
PARTITIONED: Final = tuple(KEYS)
DAY_MS: Final = 86_400_000
# Events may be 30 days old and 10 minutes ahead (engine.decode); a month more is ready before it begins.
_AHEAD_DAYS: Final = 31
_BEHIND_DAYS: Final = 31
# Years that a name has four digits for; rows of others stay in DEFAULT.
_YEARS: Final = (1000, 9998)
# How long dropping a month may wait for readers of the table, in seconds: everybody else waits behind it.
_LOCK_WAIT_S: Final = 5

log = structlog.get_logger("partitions")


def months_of(days: Iterable[int]) -> set[Month]:
    """The months of days since the epoch."""
    moments = (to_datetime(day * DAY_MS) for day in days)
    return {(moment.year, moment.month) for moment in moments}


@lru_cache(maxsize=64)
def months_around(day: int) -> frozenset[Month]:
    """The months that events received on ``day`` (since the epoch) can fall in, and the next."""
    return frozenset(months_of(range(day - _BEHIND_DAYS, day + _AHEAD_DAYS + 1)))


async def make_months(connection: Connection, months: Iterable[Month]) -> None:
    """Make these months of every partitioned table, where they are missing."""
    for month in sorted(months):
        for table in PARTITIONED:
            name = _name(table, month)
            if (await connection.fetch("select to_regclass($1) is null", name))[0][0]:
                try:
                    async with connection.transaction():
                        await connection.execute(
                            f"create table if not exists {name} partition of {table} for values {_span(month)}"
                        )
                        await _close(connection, name)
                except StoreDataError:  # DEFAULT holds rows of it
                    await _make_of_strays(connection, table, month)


async def _close(connection: Connection, partition: str) -> None:
    """Who names a partition is not asked for the policies of its parent: it has none of its own, so it shows nothing.

    Grants are on the parents only; this holds also when somebody grants every table to a role.
    """
    await connection.execute(f"alter table {partition} enable row level security")


async def _make_of_strays(connection: Connection, table: str, month: Month) -> None:
    """Make a month of the rows of it that lie in DEFAULT."""
    name = _name(table, month)
    start, end = (f"'{each}'" for each in _bounds(month))
    async with connection.transaction():
        await connection.execute(f"create table {name} (like {table} including defaults)")
        tag = await connection.execute(
            f"with strays as (delete from {table}_default where {KEYS[table]} >= {start} and {KEYS[table]} < {end} "  # noqa: S608
            f"returning *) insert into {name} select * from strays"
        )
        await connection.execute(f"alter table {table} attach partition {name} for values {_span(month)}")
        await _close(connection, name)
    log.warning("rows moved out of the default partition", partition=name, rows=int(tag.split()[-1]))


async def tend_default(connection: Connection) -> int:
    """Give the rows in DEFAULT partitions a month of their own; returns how many must stay there."""
    left = 0
    for table, key in KEYS.items():
        found = await connection.fetch(
            f"select distinct extract(year from at)::int, extract(month from at)::int "  # noqa: S608
            f"from (select {key} at time zone 'UTC' as at from {table}_default where isfinite({key})) as strays "
            "where extract(year from at) between $1 and $2",
            *_YEARS,
        )
        for year, month in found:
            await _make_of_strays(connection, table, (year, month))
        strays: int = (await connection.fetch(f"select count(*) from {table}_default"))[0][0]  # noqa: S608
        if strays:
            log.warning("rows in the default partition", table=f"{table}_default", rows=strays)
        left += strays
    return left


async def drop_months(connection: Connection, now: int, retention: Retention) -> set[Month]:
    """Drop the partitions whose whole month is past its time at ``now`` (ms); returns the months."""
    dropped: set[Month] = set()
    for table in PARTITIONED:
        days = retention.sessions_days if table == "learning_sessions" else retention.events_days
        cutoff = to_datetime(now - days * DAY_MS)
        for month in await _months(connection, table):
            after = _after(month)
            if datetime(*after, 1, tzinfo=UTC) <= cutoff:
                async with connection.transaction():
                    await connection.execute(f"set local lock_timeout = '{_LOCK_WAIT_S}s'")
                    await connection.execute(f"drop table {_name(table, month)}")
                    if table == "cell_executions":  # sums go with their rows
                        await connection.execute(f"delete from cell_sums where month = '{_bounds(month)[0]}'")  # noqa: S608
                log.info("partition dropped", partition=_name(table, month), retention_days=days)
                dropped.add(month)
    return dropped


async def _months(connection: Connection, table: str) -> list[Month]:
    """The months that a table has partitions for, in the order of time."""
    rows = await connection.fetch(
        "select substring(relname from '_(\\d{4}_\\d{2})$') from pg_inherits join pg_class on oid = inhrelid "
        "where inhparent = $1::text::regclass order by 1",
        table,
    )
    return [(int(row[0][:4]), int(row[0][5:])) for row in rows if row[0] is not None]


def _name(table: str, month: Month) -> str:
    return f"{table}_{month[0]:04}_{month[1]:02}"


def _after(month: Month) -> Month:
    return (month[0] + 1, 1) if month[1] == 12 else (month[0], month[1] + 1)


def _bounds(month: Month) -> tuple[str, str]:
    """Where a month begins and ends, as PostgreSQL reads it."""
    start, end = (f"{year:04}-{number:02}-01 00:00+00" for year, number in (month, _after(month)))
    return start, end


def _span(month: Month) -> str:
    start, end = _bounds(month)
    return f"from ('{start}') to ('{end}')"
