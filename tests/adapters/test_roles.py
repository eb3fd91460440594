"""Roles and row-level policies, by connecting as each role to a real PostgreSQL."""

from contextlib import asynccontextmanager

import pytest
import trio

from adapters.asyncio_bridge import Connection, open_loop
from adapters.postgres.partitions import make_months
from adapters.postgres.probe import migrate_database
from adapters.postgres.roles import ROLES, fetch_as_student, missing_roles
from adapters.postgres.store import PostgresStore
from engine.errors import StoreMisconfiguredError, StoreRefusedError
from engine.ports import DeadLetter, Retention
from tests.adapters.events import DAY, NOW, event, run
from tests.adapters.flushes import Feed, Student, make_store, opened
from tests.e2e.postgres_server import PostgresServer, psql

# What a student may see: own rows only. The rest of the tables is the daemon's.
STUDENTS = {"users", "classes", "notebooks", "learning_sessions", "cell_executions", "activity_events"} | {
    "learning_progress",
    "performance_metrics",
}
LOGINS = {"reader": "app_reader", "writer": "app_writer", "student": "app_user"}


@pytest.fixture
async def loop():
    async with open_loop():
        yield


def login_dsn(database, login):
    return database.dsn.replace("//postgres@", f"//{login}@")


@pytest.fixture
async def school(loop, database):
    """A database with rows of two students in every table, this month and last, and a login for each role."""
    feed = Feed()
    async with opened(make_store(database)) as store:
        for name in ("ann", "bob"):
            old = NOW - 20 * DAY
            here = {"notebook_path": f"{name}.ipynb", "class_id": f"class-{name}"}
            events = [
                run(name, **here),
                run(name, time=old, **here),
                event(name, **here),
                event(name, time=old, **here),
            ]
            student = Student(name, f"class-{name}").apply(*events)
            letter = DeadLetter(feed.seq + 1, events[0], "KeyError", "x:1")
            await store.write(feed.flush(*events, snapshots=[student.snapshot()], dead_letters=[letter]))
    for login, role in LOGINS.items():
        psql(
            database.dsn,
            f"do $$ begin if to_regrole('{login}') is null then create role {login} login; end if; end $$; "
            f"grant {role} to {login}",
        )
    return database


def tables(database):
    """Every table by name, and whether it is a partition."""
    rows = database.rows(
        "select relname, relispartition from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
    )
    return {row["relname"]: row["relispartition"] for row in rows}


@asynccontextmanager
async def connected(dsn):
    connection = await Connection.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def seen(connection, table, user=None):
    """All that a bare select shows, or None when it is refused."""
    query = f"select t.*, t::text from {table} t"
    try:
        return await (connection.fetch(query) if user is None else fetch_as_student(connection, user, query))
    except StoreMisconfiguredError:
        return None


async def test_every_table_is_guarded_and_no_partition_has_a_policy_or_a_grant(school):
    rows = await school.query(
        "select relname, relrowsecurity, relispartition, (select count(*) from pg_policy where polrelid = c.oid) as policies, "
        "(select array_agg(polname order by polname) from pg_policy where polrelid = c.oid) as names, "
        "exists (select from unnest(array['app_reader', 'app_writer', 'app_user', 'public']) r "
        "where has_table_privilege(r, c.oid, 'select, insert, update, delete, truncate')) as granted "
        "from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
    )
    assert len(rows) > 12
    for row in rows:
        assert row["relrowsecurity"], row
        if row["relispartition"]:
            assert row["policies"] == 0, row
            assert not row["granted"], row
        else:
            roles = ["app_reader", *(["app_user"] if row["relname"] in STUDENTS else []), "app_writer"]
            assert row["names"] == roles, f"{row['relname']}: a migration that adds a table lists it in guard_tables"


async def test_a_student_sees_own_rows_of_every_table_and_only_while_the_setting_holds(school):
    async with connected(login_dsn(school, "student")) as connection:
        for table, partition in tables(school).items():
            assert not await seen(connection, table), table  # no setting yet
            for user, other in (("ann", "bob"), ("bob", "ann")):
                rows = await seen(connection, table, user)
                if partition or table not in STUDENTS:
                    assert rows is None, table
                elif table not in ("learning_progress", "performance_metrics"):  # which no flush of these fills
                    assert rows, table
                    assert all(user in row[-1] for row in rows), table
                    assert not any(other in row[-1] for row in rows), table
                # The same connection after COMMIT: the setting is '' now, and was never set before.
                assert not await seen(connection, table), table
        assert await seen(connection, "users", "nobody") == []
        assert await seen(connection, "users", "") == []
        assert len(await seen(connection, "learning_sessions", "ann")) * 2 == await school.value(
            "select count(*) from learning_sessions"
        )


async def test_a_student_changes_nothing(school):
    async with connected(login_dsn(school, "student")) as connection:
        for table in tables(school):
            for statement in (f"delete from {table}", f"insert into {table} default values", f"truncate {table}"):
                with pytest.raises(StoreMisconfiguredError):
                    await connection.execute(statement)
        for statement in (
            "update users set role = 'instructor'",
            "select forget_sessions('{}', '{}')",
            "call guard_tables()",
            "set role app_reader",
            "alter table users disable row level security",
        ):
            with pytest.raises(StoreMisconfiguredError):
                await connection.execute(statement)


async def test_a_setting_for_the_session_ends_with_it_and_a_rolled_back_one_is_gone(school):
    async with connected(login_dsn(school, "student")) as connection:
        await connection.execute("begin")
        await connection.fetch("select set_config('app.current_user_id', 'ann', true)")
        assert len(await connection.fetch("select * from users")) == 1
        with pytest.raises(StoreMisconfiguredError):
            await connection.fetch("select * from dead_letters")
        await connection.execute("rollback")
        assert await connection.fetch("select * from users") == []


async def test_a_reader_sees_every_row_and_changes_none(school):
    async with connected(login_dsn(school, "reader")) as connection:
        for table, partition in tables(school).items():
            rows = await seen(connection, table)
            assert (rows is None) == partition, table
            with pytest.raises(StoreMisconfiguredError):
                await connection.execute(f"delete from {table}")
        assert len(await seen(connection, "cell_executions")) == 4
        assert len(await seen(connection, "session_snapshots")) == 2


async def test_a_writer_has_no_delete_and_no_way_into_partitions(school):
    async with connected(login_dsn(school, "writer")) as connection:
        await connection.execute("set role app_writer")
        for table, partition in tables(school).items():
            assert ((await seen(connection, table)) is None) == partition, table
            with pytest.raises(StoreMisconfiguredError):
                await connection.execute(f"delete from {table}")
        for statement in ("drop table cell_executions", "create table mine (a int)", "call guard_tables()"):
            with pytest.raises(StoreMisconfiguredError):
                await connection.execute(statement)
        assert await connection.execute("update users set team = 'x'") == "UPDATE 2"


async def test_partitions_stay_shut_although_somebody_grants_all_tables(school):
    """Also a month that is made afterwards, by rows in DEFAULT too, with default privileges that grant it."""
    psql(
        school.dsn,
        "grant select on all tables in schema public to app_user; "
        "alter default privileges in schema public grant select on tables to app_user",
    )
    async with connected(school.dsn) as owner:
        await make_months(owner, {(2031, 5)})
        await owner.execute(
            "insert into activity_events select event_id, user_id, class_id, notebook_path, event_type, "
            "'2033-03-03', data, metadata, session_id, clock_skewed, received_at, seq, journal_id from activity_events"
        )
    async with opened(make_store(school)) as store:
        await store.tend(NOW, Retention(400, 1200))
    found = tables(school)
    assert {"cell_executions_2031_05", "activity_events_2033_03"} <= found.keys()
    async with connected(login_dsn(school, "student")) as connection:
        for table, partition in found.items():
            if partition or table not in STUDENTS:
                assert await seen(connection, table, "ann") == [], table


# --- the daemon as `app_writer`


@pytest.mark.parametrize("login", ["postgres", "writer"])
async def test_the_store_works_as_app_writer(school, login):
    """Rows, states, a session that moves across months, dead letters, upkeep: with no right to delete or create."""
    dsn = login_dsn(school, login)
    feed = Feed()
    store = PostgresStore(lambda: dsn, apply_migrations=True, clock=lambda: NOW, admin_dsn=lambda: school.dsn)
    async with opened(store):
        assert (await store._writer.fetch("select current_user"))[0][0] == "app_writer"
        eve = Student("eve").apply(run("eve", session_id="s"))
        await store.write(feed.flush(run("eve", session_id="s"), event("eve"), snapshots=[eve.snapshot()]))
        earlier = run("eve", session_id="s", time=NOW - 25 * DAY)
        eve.apply(earlier)
        letters = [DeadLetter(3, earlier, "KeyError", "x:1")]
        await store.write(feed.flush(earlier, snapshots=[eve.snapshot()], dead_letters=letters))
        await store.tend(NOW + 60 * DAY, Retention(400, 1200))
        store._clock = lambda: NOW + 100 * DAY
        await store.write(feed.flush(run("eve", time=NOW + 99 * DAY)))
    rows = await school.query(
        "select started_at from learning_sessions join users u on u.id = user_id where username = 'eve'"
    )
    assert len(rows) == 1
    assert await school.value("select count(*) from cell_executions where user_id = 'eve'") == 3


async def test_a_member_of_app_writer_that_cannot_bypass_policies_is_refused_with_what_to_do(loop):
    """A server of its own: roles are the cluster's."""
    with PostgresServer() as server:
        database = server.create_database()
        await migrate_database(database.dsn)
        server.execute(
            "alter role app_writer nobypassrls; create role writer login in role app_writer; "
            "create role owner login createdb"
        )
        # guard_tables, called by a superuser, would put it right: the admin here is none.
        store = PostgresStore(
            lambda: login_dsn(database, "writer"),
            apply_migrations=False,
            clock=lambda: NOW,
            admin_dsn=lambda: database.dsn,
        )
        with pytest.raises(StoreRefusedError, match="alter role app_writer bypassrls"):
            await store.open()
        await migrate_database(database.dsn)
        async with opened(store):
            await store.write(Feed().flush(run()))


async def test_an_owner_who_may_not_make_roles_goes_on_without_and_gets_them_later(loop):
    with PostgresServer() as server:
        server.execute("create role plain login")
        server.execute("create database plain owner plain")
        dsn = server.dsn("plain").replace("//postgres@", "//plain@")
        await migrate_database(dsn)
        async with connected(dsn) as connection:
            assert await missing_roles(connection) == sorted(ROLES)
        store = PostgresStore(lambda: dsn, apply_migrations=True, clock=lambda: NOW)
        async with opened(store):
            student = Student("ann").apply(run("ann"))
            await store.write(Feed().flush(run("ann"), snapshots=[student.snapshot()]))
            assert (await store._writer.fetch("select current_user"))[0][0] == "plain"
        for role in ROLES:
            server.execute(f"create role {role}")
        server.execute("create role student login in role app_user")
        await migrate_database(dsn)
        async with connected(dsn.replace("plain@", "student@")) as connection:
            assert await connection.fetch("select * from cell_executions") == []
            assert len(await fetch_as_student(connection, "ann", "select * from cell_executions")) == 1
        async with opened(store):  # app_writer is there, but the owner is not one
            await store.write(Feed().flush(run("ann")))


async def test_databases_of_one_cluster_can_be_migrated_at_once(loop):
    with PostgresServer() as server:
        databases = [server.create_database() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for database in databases:
                nursery.start_soon(migrate_database, database.dsn)
        for database in databases:
            assert await database.value("select count(*) from pg_policy where polname = 'app_user'") >= 6
