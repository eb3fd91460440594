"""PostgreSQL, a real one: what only a database server can do."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest
import trio

from actors.bisection import Bisection
from actors.mailboxes import Mailboxes
from adapters.asyncio_bridge import Connection, open_loop
from adapters.postgres.migrations import migrate, migrations
from adapters.postgres.partitions import PARTITIONED, make_months
from adapters.postgres.probe import migrate_database
from adapters.postgres.queries import PostgresQueries
from adapters.postgres.replicas import ReadPool
from adapters.postgres.series import PostgresSeries
from adapters.postgres.store import PostgresStore
from engine.cohort import NotebookTotals
from engine.errors import StoreDataError, StoreMisconfiguredError, StoreRefusedError, StoreUnavailableError
from engine.event import Order
from engine.latest import Latest
from engine.ports import DeadLetter, Retention, Sample, StoredOffsets
from engine.series import Window
from tests.adapters.events import DAY, NOW, event, run
from tests.adapters.flushes import Feed, Student, make_store, opened
from tests.e2e.postgres_server import Database, free_port


@pytest.fixture
async def loop():
    """asyncpg needs it; pytest-trio enters only what a test asks for by name."""
    async with open_loop():
        yield


@pytest.fixture
def store(database):
    return make_store(database)


@pytest.fixture
def feed():
    return Feed()


async def alter(database: Database, rule: str) -> None:
    connection = await Connection.connect(database.dsn)
    await connection.execute(rule)
    await connection.close()


# --- migrations


async def test_migrating_again_changes_nothing(loop, database):
    assert await migrate_database(database.dsn) == migrations()[-1].version
    before = await database.query("select * from schema_migrations")
    assert await migrate_database(database.dsn) == migrations()[-1].version
    assert await database.query("select * from schema_migrations") == before
    assert [row["version"] for row in before] == [each.version for each in migrations()]


async def test_two_that_migrate_at_once_both_succeed(loop, database):
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(migrate_database, database.dsn)
    assert await database.value("select count(*) from schema_migrations") == len(migrations())


async def test_an_edited_migration_is_refused(loop, database, store):
    await migrate_database(database.dsn)
    connection = await Connection.connect(database.dsn)
    await connection.execute("update schema_migrations set checksum = 'edited'")
    await connection.close()
    with pytest.raises(StoreRefusedError, match=r"0001 .*checksum"):
        await store.open()


async def test_a_newer_schema_is_refused(loop, database, store):
    await migrate_database(database.dsn)
    connection = await Connection.connect(database.dsn)
    await connection.execute("insert into schema_migrations values (9999, 'future', 'x')")
    await connection.close()
    with pytest.raises(StoreRefusedError, match=r"9999.*upgrade"):
        await store.open()
    with pytest.raises(StoreRefusedError, match=r"9999.*upgrade"):
        await migrate_database(database.dsn)


async def test_without_leave_to_migrate_an_old_schema_is_refused_and_a_current_one_is_not(loop, database):
    store = make_store(database, apply_migrations=False)
    with pytest.raises(StoreRefusedError, match="classpulse migrate"):
        await store.open()
    assert await database.value("select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0
    await migrate_database(database.dsn)
    async with opened(store):
        await store.ping()


async def test_a_migration_that_fails_leaves_nothing_of_itself(loop, database, monkeypatch):
    broken = migrations()[0]._replace(version=9000, name="broken", sql="create table half (a int); select 1 / 0;")
    monkeypatch.setattr("adapters.postgres.migrations.migrations", lambda: [broken])
    connection = await Connection.connect(database.dsn)
    with pytest.raises(StoreUnavailableError, match="DivisionByZero"):
        await migrate(connection, apply=True)
    await connection.close()
    assert await database.value("select to_regclass('half') is null")
    assert await database.value("select count(*) from schema_migrations") == 0


# --- partitions


def month(days: int) -> str:
    return datetime.fromtimestamp((NOW + days * DAY) / 1000, UTC).strftime("%Y_%m")


async def partitions(database: Database, table: str) -> set[str]:
    rows = await database.query(
        f"select inhrelid::regclass::text as name from pg_inherits where inhparent = '{table}'::regclass"
    )
    return {row["name"].removeprefix(f"{table}_") for row in rows}


async def test_months_are_made_around_now_and_only_those(loop, database, store):
    async with opened(store):
        for table in PARTITIONED:
            wanted = {month(days) for days in range(-31, 32)}
            assert await partitions(database, table) == wanted | {"default"}


async def test_the_next_month_is_made_while_it_runs(loop, database, store):
    async with opened(store):
        store._clock = lambda: NOW + 40 * DAY
        await store.write(Feed().flush(event()))
        assert month(68) in await partitions(database, "cell_executions")


async def test_old_events_fall_into_their_month_and_default_stays_empty(loop, database, store, feed):
    students = [Student(f"u{days}") for days in range(31)]
    for days, student in enumerate(students):
        student.apply(run(student.state.user_id, time=NOW - days * DAY))
    async with opened(store):
        await store.write(
            feed.flush(
                *(run(time=NOW - days * DAY) for days in range(31)),
                *(event(time=NOW - days * DAY) for days in range(31)),
                snapshots=[student.snapshot() for student in students],
            )
        )
    for table in ("cell_executions", "activity_events", "learning_sessions"):
        assert await database.value(f"select count(*) from {table}") == 31
        assert await database.value(f"select count(*) from {table}_default") == 0
    assert await database.value(f"select count(*) from cell_executions_{month(-30)}") > 0


async def test_a_month_far_off_is_made_before_its_first_row(loop, database, store, feed):
    """The edge bounds an event's age, but a session may have begun long before."""
    student = Student().apply(run(time=NOW - 400 * DAY))
    async with opened(store):
        await store.write(feed.flush(snapshots=[student.snapshot()]))
    assert await database.value("select count(*) from learning_sessions_default") == 0


async def test_events_at_both_ends_of_their_bounds_fall_into_months_whatever_the_day(loop, database, store):
    """At the turns of months and of the year, received at the last and the first moment."""
    async with opened(store):
        feed, sent = Feed(), 0
        for year, number in ((2026, 3), (2027, 1), (2028, 3)):
            turn = int(datetime(year, number, 1, tzinfo=UTC).timestamp() * 1000)
            for now in (turn - 1, turn):
                store._clock = lambda now=now: now
                ages = [now - 30 * DAY, now, now + 600_000]
                await store.write(feed.flush(*(run(time=at) for at in ages), *(event(time=at) for at in ages)))
                sent += len(ages)
    for table in ("cell_executions", "activity_events"):
        assert await database.value(f"select count(*) from {table}") == sent
        assert await database.value(f"select count(*) from {table}_default") == 0


async def test_a_session_that_crosses_a_month_is_one_row_and_moves_with_its_start(loop, database, store, feed):
    turn = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)
    student = Student()
    async with opened(store):
        for at in (turn + 5000, turn - 5000, turn + 9000, turn - 40 * DAY):
            student.apply(run(time=at))
            await store.write(feed.flush(snapshots=[student.snapshot()]))
    (row,) = await database.query("select tableoid::regclass::text as month, * from learning_sessions")
    assert row["month"] == "learning_sessions_2026_09"
    assert row["total_duration_ms"] == 40 * DAY + 9000
    assert row["cell_executions"] == 4


async def test_months_past_their_retention_are_dropped_whole(loop, database, store, feed, capsys):
    async with opened(store):
        async with store._owner() as owner:
            await make_months(owner, [(2023, 7), (2023, 8), (2025, 9), (2025, 10)])
        await store.write(feed.flush(run(time=NOW - 30 * DAY), run()))
        assert await store.tend(NOW, Retention(400, 1200)) == 0  # since 2025-10-14 and 2023-08-06
        kept = {month(days) for days in range(-31, 32)} | {"default", "2025_10"}
        assert await partitions(database, "cell_executions") == kept
        for table in ("activity_events", "learning_progress", "performance_metrics"):
            assert await partitions(database, table) == kept
        assert await partitions(database, "learning_sessions") == kept | {"2025_09", "2023_08"}
        said = capsys.readouterr()
        assert (said.out + said.err).count("partition dropped") == 4 * 3 + 1
        assert await database.value("select count(*) from cell_executions") == 2
        # One that was dropped is made again when something of it comes.
        student = Student().apply(run(time=NOW - 1230 * DAY))
        await store.write(feed.flush(snapshots=[student.snapshot()]))
        assert await database.value("select count(*) from learning_sessions_2023_07") == 1


async def test_samples_fall_into_their_month(loop, database, store, feed):
    samples = [
        Sample("default", "ann", "a.ipynb", NOW, 3, 8, 37.5, 60_000, 1.5, 2.5, 0.25),
        Sample("default", "bob", "a.ipynb", NOW, 0, 8, 0.0, 0, None, None, None),  # has run nothing
    ]
    async with opened(store):
        await store.write(feed.flush(samples=samples))
        await store.write(feed.flush(samples=samples[:1]))  # as after a fault: it is there twice
    rows = await database.query("select tableoid::regclass::text as month, * from learning_progress order by user_id")
    assert [(row["user_id"], row["completed_cells"], row["progress_percentage"]) for row in rows] == [
        ("ann", 3, 37.5), ("ann", 3, 37.5), ("bob", 0, 0.0),
    ]  # fmt: skip
    assert {row["month"] for row in rows} == {f"learning_progress_{month(0)}"}
    rows = await database.query("select * from performance_metrics")
    assert [(row["user_id"], row["cell_type"], row["avg_execution_time"], row["error_rate"]) for row in rows] == [
        ("ann", "code", 1.5, 0.25)
    ] * 2
    assert await database.value("select count(*) from performance_metrics_default") == 0


async def test_upkeep_makes_the_months_ahead_without_a_flush(loop, database, store):
    async with opened(store):
        await store.tend(NOW + 300 * DAY, Retention(400, 1200))
        assert {month(300), month(331)} <= await partitions(database, "cell_executions")


async def stray(database: Database, *times: str) -> None:
    for table, columns, values in (
        ("activity_events", "event_id, user_id, class_id, event_type, clock_skewed, received_at, seq, journal_id",
         "'e', 'ann', 'default', 'x', false, now(), 1, gen_random_uuid()"),
    ):  # fmt: skip
        for at in times:
            await alter(database, f"insert into {table} (event_timestamp, {columns}) values ('{at}', {values})")


async def test_rows_in_default_are_moved_into_months_of_their_own_and_others_are_told_of(loop, database, store):
    async with opened(store):
        await stray(database, "2027-06-15", "2027-06-30 23:59:59.999+00", "2031-01-01 00:00+00", "infinity")
        assert await store.tend(NOW, Retention(400, 1200)) == 1
        assert await database.value("select count(*) from activity_events") == 4
        assert await database.value("select count(*) from activity_events_2027_06") == 2
        assert await database.value("select count(*) from activity_events_2031_01") == 1
        assert await database.value("select count(*) from activity_events_default") == 1
        assert await store.tend(NOW, Retention(400, 1200)) == 1


async def test_a_row_in_default_does_not_keep_its_month_from_being_made(loop, database, store, feed):
    async with opened(store):
        later = NOW + 200 * DAY
        await stray(database, datetime.fromtimestamp(later / 1000, UTC).isoformat())
        await store.write(feed.flush(event(time=later - 60_000)))  # the month is not known: a stray itself
        store._clock = lambda: later
        await store.write(feed.flush(event(time=later)))
        assert await database.value(f"select count(*) from activity_events_{month(200)}") == 3
        assert await database.value("select count(*) from activity_events_default") == 0


# --- who may use it


async def test_a_second_daemon_is_refused_until_the_first_has_gone(loop, database, store, monkeypatch):
    monkeypatch.setattr("adapters.postgres.store._LOCK_PATIENCE_S", 0.3)
    other = make_store(database)
    async with opened(store):
        with pytest.raises(StoreRefusedError, match="in use by another classpulse"):
            await other.open()
        await store.ping()
    async with opened(other):
        await other.ping()


async def test_a_second_daemon_waits_for_one_that_is_just_leaving(loop, database, store):
    other = make_store(database)
    async with trio.open_nursery() as nursery, opened(other):
        nursery.start_soon(store.open)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert store._writer is None
        await other.close()
    await store.ping()
    await store.close()


@pytest.fixture
def guarded(postgres, database) -> Iterator[str]:
    """A role with a password; the test server trusts everybody else."""
    file = postgres._base / "data" / "pg_hba.conf"
    trust = file.read_text()
    postgres.execute("create role guarded login password 'right'")
    file.write_text(f"host all guarded all scram-sha-256\n{trust}")
    postgres.execute("select pg_reload_conf()")
    yield database.dsn.replace("postgres@", "guarded:%s@")
    file.write_text(trust)
    postgres.execute("select pg_reload_conf()")
    postgres.execute("drop role guarded")


async def test_a_wrong_password_is_refused_and_not_shown(loop, guarded):
    connection = await Connection.connect(guarded % "right")
    await connection.close()
    store = PostgresStore(lambda: guarded % "s3cret", apply_migrations=True, clock=lambda: NOW)
    with pytest.raises(StoreMisconfiguredError, match="password") as refused:
        await store.open()
    assert "s3cret" not in str(refused.value)


async def test_a_role_that_may_not_migrate_is_refused(loop, guarded):
    store = PostgresStore(lambda: guarded % "right", apply_migrations=True, clock=lambda: NOW)
    with pytest.raises(StoreMisconfiguredError, match="permission denied"):
        await store.open()


async def test_a_database_that_is_not_there_is_refused(loop, postgres):
    store = PostgresStore(lambda: postgres.dsn("nowhere"), apply_migrations=True, clock=lambda: NOW)
    with pytest.raises(StoreMisconfiguredError, match="nowhere"):
        await store.open()


async def test_a_server_that_is_away_is_unavailable(loop):
    dsn = f"postgresql://ann:s3cret@127.0.0.1:{free_port()}/x"
    store = PostgresStore(lambda: dsn, apply_migrations=True, clock=lambda: NOW)
    queries = PostgresQueries(ReadPool(lambda: dsn))
    for call in (store.open, store.ping, lambda: queries.user_sessions("ann", "default", None, 10, None)):
        with pytest.raises(StoreUnavailableError) as away:
            await call()
        assert "s3cret" not in str(away.value)


async def test_a_query_that_waits_for_long_is_given_up(loop, database, store, monkeypatch):
    monkeypatch.setattr("adapters.postgres.pool.PATIENCE_S", 0.3)
    async with opened(store):
        reads = ReadPool(lambda: database.dsn)
        sessions, series = PostgresQueries(reads), PostgresSeries(reads)
        window = Window(NOW, NOW + 60_000, 60_000)
        locking = await Connection.connect(database.dsn)
        asked = (
            *[lambda: series.activity("default", window, "none")] * 5,
            lambda: series.notebook_summary("default", "n.ipynb"),
            lambda: sessions.user_sessions("ann", "default", None, 10, None),
            lambda: sessions.class_sessions("default", 0, 10, None),
        )
        told = []

        async def ask(call):
            with pytest.raises(StoreUnavailableError, match="longer than"):
                await call()
            told.append(call)

        try:
            async with locking.transaction():
                await locking.execute("lock table learning_sessions, cell_executions in access exclusive mode")
                with trio.fail_after(10):
                    async with trio.open_nursery() as nursery:
                        for call in asked:
                            nursery.start_soon(ask, call)
        finally:
            await locking.close()
            await reads.close()
        assert len(told) == len(asked)


async def test_a_query_that_waits_for_its_turn_for_long_is_given_up(loop, database, monkeypatch):
    monkeypatch.setattr("adapters.postgres.pool.PATIENCE_S", 0.3)
    series = PostgresSeries(ReadPool(lambda: database.dsn))
    async with series._turn, series._turn:
        with trio.fail_after(10), pytest.raises(StoreUnavailableError, match="longer than"):
            await series.activity("default", Window(NOW, NOW + 60_000, 60_000), "none")


async def test_while_nobody_knows_where_it_is_it_is_unavailable(loop):
    def dsn() -> str:
        raise StoreUnavailableError("not up yet")

    store = PostgresStore(dsn, apply_migrations=True, clock=lambda: NOW)
    with pytest.raises(StoreUnavailableError, match="not up yet"):
        await store.open()


# --- connections that are lost


def terminate(database: Database) -> None:
    """End every session of ours, as an administrator would."""
    database.server.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.name}'")


async def test_a_connection_that_was_killed_is_told_and_made_again(loop, database, store, feed):
    async with opened(store):
        await store.write(feed.flush(run()))
        await store.ping()
        await trio.to_thread.run_sync(terminate, database)
        lost = feed.flush(run())
        with pytest.raises(StoreUnavailableError):
            await store.write(lost)
        with pytest.raises(StoreUnavailableError):
            await store.write(lost)  # still: only `open` makes a new one
        await store.open()
        await store.write(lost)
        assert await database.value("select count(*) from cell_executions") == 2


async def test_reads_come_back_by_themselves(loop, database, store):
    queries = PostgresQueries(ReadPool(lambda: database.dsn))
    async with opened(store):
        await store.ping()
        await queries.user_sessions("ann", "default", None, 10, None)
        await trio.to_thread.run_sync(terminate, database)
        for call in (store.ping, lambda: queries.user_sessions("ann", "default", None, 10, None)):
            with trio.fail_after(5):
                while True:
                    try:
                        await call()
                    except StoreUnavailableError:
                        await trio.lowlevel.checkpoint()
                    else:
                        break
    await queries.close()


async def test_killed_within_a_flush_nothing_of_it_is_stored(loop, database, store, feed):
    """A lock makes the flush wait in its transaction, after its first statements; there it is killed."""
    async with opened(store):
        await store.write(feed.flush(run(), snapshots=[Student().apply(run()).snapshot()]))
        blocker = await Connection.connect(database.dsn)
        await blocker.execute("begin")
        await blocker.execute("lock table session_snapshots")
        flush = feed.flush(run(), snapshots=[Student().apply(run(), run()).snapshot()])
        failures = []

        async def write():
            try:
                await store.write(flush)
            except StoreUnavailableError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            with trio.fail_after(10):
                while not (await blocker.fetch(waiting))[0][0]:
                    await trio.lowlevel.checkpoint()
            # Not the blocker: with it gone the flush could go through before its own end comes.
            await blocker.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'"
            )
        assert len(failures) == 1
        blocker.terminate()
        await store.open()
        assert (await store.offsets(feed.journal_id)).rows == 1
        await store.write(flush)
        assert await database.value("select count(*) from cell_executions") == 2


async def test_a_cancelled_flush_is_not_stored_and_open_mends_it(loop, database, store, feed):
    async with opened(store):
        blocker = await Connection.connect(database.dsn)
        await blocker.execute("begin")
        await blocker.execute("lock table cell_executions")
        flush = feed.flush(run())
        with trio.move_on_after(0.2) as scope:
            await store.write(flush)
        assert scope.cancelled_caught
        await blocker.execute("rollback")
        await blocker.close()
        await store.open()
        await store.write(flush)
        assert await database.value("select count(*) from cell_executions") == 1


# --- what text may hold

AWKWARD = 'quo\'te "double" back\\slash \\N tab\t newline\n return\r \U0001f600 é \u2028 {braces} $1 %s ; -- /*'


async def test_any_text_comes_back_as_it_went(loop, database, store, feed):
    given = {
        "event_id": AWKWARD[:128], "notebook_path": f"{AWKWARD}.ipynb", "session_id": AWKWARD, "cell_id": AWKWARD,
        "error_message": f"{AWKWARD}:{AWKWARD}", "user_name": AWKWARD, "team": AWKWARD,
        "data": json.dumps({AWKWARD: [AWKWARD]}), "metadata": json.dumps({"m": AWKWARD}, ensure_ascii=False),
    }  # fmt: skip
    cell = run(AWKWARD, **given, has_error=True, cell_type="code", execution_count=1, execution_duration_ms=1.5)
    activity = event(AWKWARD, **{**given, "notebook_path": None}, has_error=True)
    student = Student(AWKWARD).apply(cell, activity)
    snapshot = student.snapshot()
    snapshot = type(snapshot)(
        **{name: getattr(snapshot, name) for name in snapshot.__struct_fields__} | {"profile": (AWKWARD, AWKWARD)}
    )
    async with opened(store):
        await store.write(
            feed.flush(
                cell,
                activity,
                snapshots=[snapshot],
                notebooks=[("default", cell.notebook_path, NotebookTotals(0))],
                dead_letters=[DeadLetter(1, cell, "KeyError", AWKWARD)],
            )
        )
        assert [state.name.value for state in await store.snapshots([("default", AWKWARD)])] == [AWKWARD]
        assert [path for _, path, _ in await store.notebooks()] == [cell.notebook_path]
    (row,) = await database.query("select * from cell_executions")
    for name in ("event_id", "notebook_path", "session_id", "cell_id", "error_message"):
        assert row[name] == getattr(cell, name), name
    assert row["user_id"] == AWKWARD
    assert row["error_class"] == AWKWARD.partition(":")[0]
    assert row["data"] == {AWKWARD: [AWKWARD]}
    assert row["metadata"] == {"m": AWKWARD}
    (row,) = await database.query("select * from activity_events")
    assert row["data"] == {
        AWKWARD: [AWKWARD],
        "cell_id": AWKWARD,
        "error_message": activity.error_message,
        "has_error": True,
    }
    (row,) = await database.query("select * from users")
    assert (row["username"], row["display_name"], row["team"]) == (AWKWARD, AWKWARD, AWKWARD)
    queries = PostgresQueries(ReadPool(lambda: database.dsn))
    (session,) = await queries.user_sessions(AWKWARD, "default", cell.notebook_path, 10, None)
    assert session.client_session == AWKWARD
    await queries.close()


async def test_numbers_at_the_edge_of_their_columns_are_stored(loop, database, store, feed):
    most = 2**31 - 1
    async with opened(store):
        await store.write(
            feed.flush(
                run(cell_index=most, execution_count=most, execution_duration_ms=1.7e308),
                run(cell_index=0, execution_count=-(2**31), execution_duration_ms=0.0),
                event(total_cells=most, completed_cells=0),
                notebooks=[("default", "a.ipynb", NotebookTotals(most - 1, Latest(Order(NOW, "e"), most)))],
            )
        )
        assert await store.notebooks() == [
            ("default", "a.ipynb", NotebookTotals(most - 1, Latest(Order(NOW, "e"), most)))
        ]
    assert await database.value("select max(cell_index) from cell_executions") == most


async def test_the_highest_index_of_all_can_be_counted(loop, database, store, feed):
    """`cell_index` may be 2^31 - 1, and a notebook has one cell more than its highest index."""
    async with opened(store):
        await store.write(feed.flush(notebooks=[("default", "a.ipynb", NotebookTotals(2**31 - 1))]))
        assert await store.notebooks() == [("default", "a.ipynb", NotebookTotals(2**31 - 1))]


async def test_a_state_that_cannot_be_read_is_told_by_whose_it_is(loop, database, store, feed):
    async with opened(store):
        students = [Student(name).apply(run(name)) for name in ("ann", "bob")]
        await store.write(feed.flush(snapshots=[student.snapshot() for student in students]))
        await alter(database, "update session_snapshots set state = '\\x93' where user_id = 'ann'")
        for load in (store.snapshots([("default", "ann"), ("default", "bob")]), store.recent_snapshots(0)):
            with pytest.raises(StoreRefusedError, match=r"'ann' in class 'default'.* cannot be read"):
                await load
        assert [state.user_id for state in await store.snapshots([("default", "bob")])] == ["bob"]


async def test_a_profile_that_says_less_takes_nothing_away(loop, database, store, feed):
    async with opened(store):
        for profile in (("Ann", "reds"), (None, None), ("Ann B", None)):
            snapshot = Student().apply(run()).snapshot()
            fields = {name: getattr(snapshot, name) for name in snapshot.__struct_fields__}
            await store.write(feed.flush(snapshots=[type(snapshot)(**fields | {"profile": profile})]))
    (row,) = await database.query("select display_name, team from users")
    assert row == {"display_name": "Ann B", "team": "reds"}


# --- data that the server refuses


@pytest.mark.parametrize(
    "rule",
    [
        "alter table cell_executions add check (notebook_path <> 'bad.ipynb')",
        (
            "create function refuse() returns trigger language plpgsql as $$ begin "
            "if new.notebook_path = 'bad.ipynb' then perform 1 / 0; end if; return new; end $$; "
            "create trigger refuse before insert on cell_executions for each row execute function refuse()"
        ),
    ],
    ids=["check", "trigger"],
)
async def test_data_that_is_refused_is_told_apart_and_the_connection_goes_on(loop, database, store, feed, rule):
    async with opened(store):
        await store.write(feed.flush(run()))
        await alter(database, rule)
        bad = feed.flush(run(), run(notebook_path="bad.ipynb"), snapshots=[Student("new", "new class").snapshot()])
        with pytest.raises(StoreDataError) as refused:
            await store.write(bad)
        assert refused.value.kind in {"CheckViolationError", "DivisionByZeroError"}
        assert "bad.ipynb" not in str(refused.value)
        assert (await store.offsets(feed.journal_id)).rows == 1
        again = feed.flush(snapshots=[Student("new", "new class").apply(run("new")).snapshot()])
        await store.write(msgspec.structs.replace(again, after=1, upto=1))
        assert await database.value("select count(*) from classes where id = 'new class'") == 1


async def test_a_flush_is_halved_until_the_bad_rows_are_alone(loop, database, store, feed):
    """Three bad rows of 500, a bad state and a bad notebook, against a real server."""
    async with opened(store):
        await alter(
            database,
            "alter table cell_executions add check (notebook_path <> 'bad.ipynb');"
            "alter table users add check (username <> 'refused');"
            "alter table notebooks add check (path <> 'bad.ipynb')",
        )
        cells = [run(notebook_path="bad.ipynb" if n in {0, 250, 499} else "a.ipynb") for n in range(500)]
        students = [Student(name).apply(run(name)) for name in ("ann", "refused", "bob")]
        flush = feed.flush(
            *cells,
            snapshots=[msgspec.structs.replace(each.snapshot(), profile=("Name", None)) for each in students],
            notebooks=[("default", path, NotebookTotals(3)) for path in ("a.ipynb", "bad.ipynb", "c.ipynb")],
            floor=500,
        )
        mailboxes = Mailboxes()
        with pytest.raises(StoreDataError):
            await store.write(flush)
        bisection = Bisection(store, flush, 0, mailboxes, keeps_letters=True)
        await bisection.write()
        assert bisection.refused == {("default", "refused")}
        assert await store.offsets(feed.journal_id) == StoredOffsets(500, 500)
    assert await database.value("select count(*) from cell_executions") == 497
    letters = await database.query("select seq, error_type, place, event from dead_letters order by seq")
    assert [(row["seq"], row["error_type"], row["place"]) for row in letters] == [
        (seq, "CheckViolationError", "store:postgresql") for seq in (1, 251, 500)
    ]
    assert [row["event"]["event_id"] for row in letters] == [cells[n].event_id for n in (0, 250, 499)]
    assert await database.value("select count(*) from session_snapshots") == 2
    assert await database.value("select count(*) from learning_sessions") == 2
    assert {row["path"] for row in await database.query("select path from notebooks")} == {"a.ipynb", "c.ipynb"}
    assert list(mailboxes.ops.take_all()) == [("state could not be stored", "default", "refused")]
