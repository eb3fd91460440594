"""What PostgreSQL holds, in the contract's tables."""

from collections import Counter
from typing import Any

from tests.e2e.oracle import Counters
from tests.e2e.postgres_server import Database

# Both tables of events, whose rows must not share an event.
EVENTS = """
    select event_id, user_id, class_id, notebook_path, event_type, event_timestamp, seq from cell_executions
    union all
    select event_id, user_id, class_id, notebook_path, event_type, event_timestamp, seq from activity_events
"""

SESSIONS = """
    select u.username, n.path, s.cell_executions, s.error_count
    from learning_sessions s join users u on u.id = s.user_id join notebooks n on n.id = s.notebook_id
"""

# A request for help begins an episode unless one is open: the row before it is a request too.
HELP_EPISODES = """
    select count(*) from (
        select event_type, lag(event_type) over (partition by class_id, user_id order by event_timestamp, event_id) before
        from activity_events where event_type in ('help_requested', 'help_resolved')
    ) steps
    where event_type = 'help_requested' and before is distinct from 'help_requested'
"""

# Cells whose last run succeeded, by user and notebook.
DONE = """
    select user_id, notebook_path, count(*) filter (where not coalesce(has_error, false)) as done, max(cell_index) + 1 as cells
    from (
        select distinct on (user_id, notebook_path, cell_index) user_id, notebook_path, cell_index, has_error
        from cell_executions where event_type = 'cell_executed'
        order by user_id, notebook_path, cell_index, event_timestamp desc, event_id desc
    ) last_runs
    group by user_id, notebook_path
"""


async def event_ids(database: Database) -> Counter[str]:
    """How many rows each event has."""
    rows = await database.query(f"select event_id, count(*) as rows from ({EVENTS}) e group by event_id")
    return Counter({row["event_id"]: row["rows"] for row in rows})


async def sessions(database: Database) -> Counter[tuple[str, str, Counters]]:
    """As ``Oracle.sessions`` has them."""
    return Counter(
        (row["username"], row["path"], Counters(row["cell_executions"], row["error_count"]))
        for row in await database.query(SESSIONS)
    )


async def row_of(database: Database, event_id: str) -> dict[str, Any]:
    """The one row of an event, with all its table's columns and the table's name."""
    found = []
    for table in ("cell_executions", "activity_events"):
        rows = await database.query(f"select * from {table} where event_id = '{event_id}'")
        found += [{"table": table, **row} for row in rows]
    assert len(found) == 1, (event_id, found)
    return found[0]
