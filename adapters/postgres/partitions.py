"""Month partitions (UTC): made ahead of the rows, because a row in DEFAULT would keep its month from being made."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from adapters.asyncio_bridge import Connection
from engine.clock import to_datetime

Month: TypeAlias = tuple[int, int]  # year, month

PARTITIONED: Final = ("cell_executions", "activity_events", "learning_sessions")
DAY_MS: Final = 86_400_000
# Events may be 30 days old and 10 minutes ahead (engine.decode); a month more is ready before it begins.
_AHEAD_DAYS: Final = 31
_BEHIND_DAYS: Final = 31


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
    for year, month in sorted(months):
        after = (year + 1, 1) if month == 12 else (year, month + 1)
        for table in PARTITIONED:
            name = f"{table}_{year:04}_{month:02}"
            if (await connection.fetch("select to_regclass($1) is null", name))[0][0]:
                await connection.execute(
                    f"create table if not exists {name} partition of {table} for values "
                    f"from ('{year:04}-{month:02}-01 00:00+00') to ('{after[0]:04}-{after[1]:02}-01 00:00+00')"
                )
