"""Bytes of disk that an event costs, in the journal until it is stored and in PostgreSQL or InfluxDB from then on."""

import time

from loadtest.bench import daemon as daemons
from loadtest.bench import servers
from loadtest.bench.measures import Bench
from loadtest.bench.report import Row
from loadtest.bench.traffic import samples

EVENTS = 20_000
USERS = 200
KINDS = {"ran": "a cell that ran", "failed": "a cell that failed", "opened": "a notebook opened"}
SAMPLES = ("learning_progress", "performance_metrics")
# How often the few samples of a bench are copied, so that begun pages and empty partitions count for little.
SAMPLE_COPIES = 100
TABLES = {"ran": "cell_executions", "failed": "cell_executions", "opened": "activity_events"}
# Nobody listens there: what comes stays in the journal.
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"
# InfluxDB writes its cache to TSM files when nothing has come for this long, in place of ten minutes.
FLUSH_SOON = 'cache-snapshot-write-cold-duration = "1s"'
FLUSH_TIMEOUT_S = 60.0


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
            if kind == "ran":
                for table in SAMPLES:
                    row.add(f"a sample in {table}: PostgreSQL", _sample_bytes(daemon, table), "B")
        if stored != EVENTS:
            row.problems.append(f"{name}: {stored} of {EVENTS} events are stored")
        row.add(f"{title}: PostgreSQL, rows", rows / EVENTS, "B")
        row.add(f"{title}: PostgreSQL, indexes", indexes / EVENTS, "B")
        row.add(f"{title}: PostgreSQL, a student's state and sessions", states / USERS, "B")
        if TABLES[kind] == "cell_executions":
            row.add(f"{title}: InfluxDB", _influx_bytes(bench, kind, row), "B")
        bench.say(
            f"  {title}: {EVENTS} events, {rows / EVENTS:.0f} B of rows, {indexes / EVENTS:.0f} B of indexes each"
        )
    return row


def _sample_bytes(daemon: daemons.Daemon, table: str) -> float:
    """Rows and indexes of one sample, of many."""
    earlier = "jsonb_build_object('sampled_at', sampled_at - n * interval '2 s')"
    copy = (
        f"INSERT INTO {table} SELECT (jsonb_populate_record({table}, {earlier})).* "  # noqa: S608
        f"FROM {table}, generate_series(1, {SAMPLE_COPIES}) AS n"
    )
    daemon.database.ask(daemon.name, copy)
    count = int(daemon.database.ask(daemon.name, f"SELECT count(*) FROM {table}"))  # noqa: S608
    return sum(_sizes(daemon, table)) / count


def _influx_bytes(bench: Bench, kind: str, row: Row) -> float:
    """Of a point, once InfluxDB has written its cache to TSM files; these hold the series' names too."""
    name = f"disk_{kind}_influx"
    with (
        servers.influx(bench.directory, bench.cores.load, FLUSH_SOON) as influx,
        daemons.running(bench.database, name, bench.directory, bench.cores.server, influx=influx) as daemon,
    ):
        daemon.post_all(samples(kind, USERS, EVENTS), 50)
        daemon.wait_until_stored()
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while influx.bytes_of(".wal") or not influx.bytes_of(".tsm"):
            if time.monotonic() > deadline:
                row.problems.append(f"{name}: InfluxDB did not write its cache to files")
                break
            time.sleep(0.1)
        stored = daemon.cell_rows()
        if stored != EVENTS:
            row.problems.append(f"{name}: {stored} of {EVENTS} events are stored")
        return influx.bytes_of(".tsm") / EVENTS


def _sizes(daemon: daemons.Daemon, table: str) -> tuple[int, int]:
    """Of a table with all its partitions: rows, with what is too long for them, and indexes. Empty partitions count."""
    found = daemon.database.ask(
        daemon.name,
        "SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class WHERE oid = "  # noqa: S608
        f"'{table}'::regclass OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = '{table}'::regclass)",
    )
    rows, indexes = found.split("|")
    return int(rows), int(indexes)
