"""After a fault: does everything add up, in PostgreSQL and in the live state?"""

from collections.abc import Iterable
from typing import Any

from tests.e2e import stored
from tests.e2e.api import Api
from tests.e2e.oracle import Counters, Oracle
from tests.e2e.postgres_server import Database
from tests.e2e.waiting import eventually


async def check_rows(database: Database, acknowledged: Iterable[str], *, possible: set[str] | None = None) -> None:
    """No acknowledged event is missing and none has two rows; ``possible`` are others that may have been stored."""
    wanted = set(acknowledged)
    rows = await stored.event_ids(database)
    missing = wanted - set(rows)
    assert not missing, f"{len(missing)} of {len(wanted)} acknowledged events are lost, such as {sorted(missing)[:3]}"
    twice = {event_id: count for event_id, count in rows.items() if count > 1}
    assert not twice, f"{len(twice)} events have more than one row, such as {sorted(twice.items())[:3]}"
    foreign = set(rows) - wanted - (possible or set())
    assert not foreign, f"{len(foreign)} rows that nobody sent, such as {sorted(foreign)[:3]}"


async def check_counters(api: Api, database: Database, events: Iterable[dict[str, Any]]) -> None:
    """Each session's counters in PostgreSQL and each user's in the live state are those of a clean run."""
    oracle = Oracle(events)
    assert await stored.sessions(database) == oracle.sessions()

    wanted = {name: counters for name, counters in oracle.users().items() if counters != Counters(0, 0)}

    async def shown() -> bool:
        return await live_counters(api) == wanted

    await eventually(shown, within=5, every=0.1, what="the overview's counters")
    summary = (await api.overview())["state"]["summary"]
    users = oracle.users().values()
    assert summary["cell_executions"] == sum(user.cell_executions for user in users)
    assert summary["error_count"] == sum(user.error_count for user in users)


async def live_counters(api: Api) -> dict[str, Counters]:
    """Of every student who has some: one of whom nothing could be applied has none."""
    users = (await api.overview())["state"]["users"]
    counted = {name: Counters(user["cell_executions"], user["error_count"]) for name, user in users.items()}
    return {name: counters for name, counters in counted.items() if counters != Counters(0, 0)}
