"""Bytes of disk that an event costs, in the journal until it is stored and in PostgreSQL from then on."""

from loadtest.bench import daemon as daemons
from loadtest.bench.measures import Bench
from loadtest.bench.report import Row
from loadtest.bench.traffic import samples

EVENTS = 20_000
USERS = 200
KINDS = {"ran": "a cell that ran", "failed": "a cell that failed", "opened": "a notebook opened"}
TABLES = {"ran": "cell_executions", "failed": "cell_executions", "opened": "activity_events"}
# Nobody listens there: what comes stays in the journal.
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


def disk(bench: Bench) -> Row:
    """Each kind alone, to a journal whose database is away and then to a fresh database."""
    row = Row("disk, bytes an event")
    for kind, title in KINDS.items():
        for batch in (1, 50):
            name = f"disk_{kind}_{batch}"
            count = EVENTS if batch > 1 else EVENTS // 10
            with daemons.running(bench.database, name, bench.directory, bench.cores.server, dsn=NOWHERE) as daemon:
                daemon.post_all(samples(kind, USERS, count), batch)
            # The stop has moved the write-ahead log into the file.
            journal = daemons.data_dir(bench.directory, name) / "journal.sqlite"
            row.add(f"{title}, {batch} a request: journal", journal.stat().st_size / count, "B")
        with daemons.running(bench.database, name, bench.directory, bench.cores.server) as daemon:
            daemon.wait_until_stored()
            stored = daemon.cell_rows() + daemon.activity_rows()
            rows, indexes = _sizes(daemon, TABLES[kind])
            states = sum(sum(_sizes(daemon, table)) for table in ("session_snapshots", "learning_sessions", "users"))
        if stored != EVENTS:
            row.problems.append(f"{name}: {stored} of {EVENTS} events are stored")
        row.add(f"{title}: PostgreSQL, rows", rows / EVENTS, "B")
        row.add(f"{title}: PostgreSQL, indexes", indexes / EVENTS, "B")
        row.add(f"{title}: PostgreSQL, a student's state and sessions", states / USERS, "B")
        bench.say(
            f"  {title}: {EVENTS} events, {rows / EVENTS:.0f} B of rows, {indexes / EVENTS:.0f} B of indexes each"
        )
    return row


def _sizes(daemon: daemons.Daemon, table: str) -> tuple[int, int]:
    """Of a table with all its partitions: rows, with what is too long for them, and indexes. Empty partitions count."""
    found = daemon.database.ask(
        daemon.name,
        "SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class WHERE oid = "  # noqa: S608
        f"'{table}'::regclass OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = '{table}'::regclass)",
    )
    rows, indexes = found.split("|")
    return int(rows), int(indexes)
