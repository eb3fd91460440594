"""What InfluxDB holds, against what was acknowledged."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from tests.e2e import stored
from tests.e2e.postgres_server import Database
from tests.servers.influx_server import InfluxDatabase

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
CELL_TYPES = {"cell_executed", "cell_execution", "execution_error"}

# A point has no event_id: this is what it is of. Two events may well agree in it.
Trace = tuple[str, str, str, str, bool, int]


def trace_of(event: dict[str, Any]) -> Trace:
    kind = "cell_executed" if event["event_type"] == "cell_execution" else event["event_type"]
    failed = kind == "execution_error" or event["has_error"]
    at = (datetime.fromisoformat(event["timestamp"]) - EPOCH) // timedelta(milliseconds=1)
    return event["user_id"], event["notebook_path"], str(event["cell_index"]), kind, failed, at


async def traces(influx: InfluxDatabase) -> Counter[Trace]:
    points = await influx.points("select * from cell_executions")
    return Counter(
        (
            point["user_id"], point["notebook_path"], point["cell_index"], point["event_type"], point["has_error"],
            point["time"] // 10**6,
        )
        for point in points
    )  # fmt: skip


async def check_everywhere(
    influx: InfluxDatabase, database: Database, events: Iterable[dict[str, Any]], *, possible: set[str] | None = None
) -> None:
    """Each cell event is one point and no row, each other event is one row; ``possible`` may be there too."""
    events = list(events)
    cells = Counter(trace_of(event) for event in events if event["event_type"] in CELL_TYPES)
    found = await traces(influx)
    missing, doubled = cells - found, found - cells
    assert not missing, f"{missing.total()} of {cells.total()} points are missing, such as {next(iter(missing))}"
    if possible is None:
        assert not doubled, f"{doubled.total()} points too many, such as {next(iter(doubled))}"
    others = {event["event_id"] for event in events if event["event_type"] not in CELL_TYPES}
    rows = await stored.event_ids(database)
    assert set(rows.values()) <= {1}
    assert others <= rows.keys() <= others | (possible or set())
