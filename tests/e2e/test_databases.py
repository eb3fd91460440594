"""PostgreSQL in its larger forms, seen from the daemon: logins of their own, replicas, shards."""

import json
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.postgres_server import PostgresServer, psql
from tests.e2e.samples import failed_run, run
from tests.e2e.waiting import eventually
from tests.servers.standby import Standby

FAST = {"POSTGRES__FLUSH_INTERVAL_MS": "20"}
# At the next start nobody is loaded into memory, so what queries answer comes from the database.
FORGETFUL = {f"SESSION__{key}_AFTER_S": "0.1" for key in ("IDLE", "OFFLINE", "RETIRE")}


@pytest.fixture
def databases(postgres):
    """Three empty databases."""
    made = [postgres.create_database() for _ in range(3)]
    yield made
    for database in made:
        database.drop()


def shards(*databases, **more):
    return FAST | {"POSTGRES__SHARDS": json.dumps([database.dsn for database in databases])} | more


def login(dsn, name):
    return dsn.replace("//postgres@", f"//{name}@")


def make_logins(server):
    """Idempotent: roles are the cluster's."""
    for name, role in (("daemon", "app_writer"), ("pupil", "app_user")):
        server.execute(
            f"do $$ begin if to_regrole('{name}') is null then create role {name} login; end if; end $$; "
            f"grant {role} to {name}"
        )


async def test_a_daemon_with_a_login_for_each_purpose(database, data_dir):
    """The first `classpulse migrate` makes the roles; then its own login needs no more than app_writer."""
    settings = FAST | {
        "POSTGRES__ADMIN_DSN": database.dsn,
        "POSTGRES__STUDENT_DSN": login(database.dsn, "pupil"),
    }
    daemon = Daemon(data_dir, dsn=login(database.dsn, "daemon"), settings=settings)
    migrated = await in_thread(daemon.command, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    make_logins(database.server)
    checked = await in_thread(daemon.command, "check")
    assert checked.returncode == 0, checked.stdout
    assert [line for line in checked.stdout.splitlines() if "pupil@" in line or "daemon@" in line]
    async with daemon:
        api = Api(daemon)
        await api.accept([run("ann"), run("bob")])
        await api.wait_flushed()
    daemon = Daemon(data_dir, dsn=login(database.dsn, "daemon"), settings=settings | FORGETFUL)
    async with daemon:
        api = Api(daemon)
        assert len(await api.sessions("ann")) == 1
        rows = await database.query("select distinct usename from pg_stat_activity where datname = current_database()")
        assert {row["usename"] for row in rows} >= {"daemon", "pupil"}
        # Policies are what limits it, and not only the query's own condition.
        psql(database.dsn, "drop policy app_user on learning_sessions")
        assert await api.sessions("ann") == []


async def test_reads_survive_their_replica(debian_postgres, data_dir):
    with PostgresServer(debian_postgres) as primary, Standby(primary, debian_postgres) as standby:
        database = primary.create_database()
        settings = FAST | {"POSTGRES__READ_DSNS": json.dumps([standby.dsn(database.name)])}
        async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
            api = Api(daemon)
            await api.accept(run("ann"))
            await api.wait_flushed()

            async def replica():
                status, health = await api.health()
                assert (status, health["status"]) == (200, "healthy")
                (found,) = health["checks"]["postgresql"]["replicas"]
                return found

            async def asked():
                assert len(await api.sessions("ann")) == 1
                return await replica() == {"status": "healthy", "lag_ms": 0}

            await eventually(asked, what="the replica keeps up")
            reads = (
                "select query from pg_stat_activity where query like '%learning_sessions%' and pid <> pg_backend_pid()"
            )
            assert await in_thread(psql, standby.dsn(database.name), reads)
            await in_thread(standby.kill)
            for _ in range(20):
                assert len(await api.sessions("ann")) == 1
            assert (await replica())["status"] == "unhealthy"
            text = (await api.call("GET", "/metrics")).body.decode()
            assert 'database_connection_pool_size{database="postgresql.replica.0"}' in text
            await in_thread(standby.start)
            await eventually(asked, within=20, what="the replica is asked again")


async def test_shards_keep_their_students_over_restarts(databases, data_dir):
    users = [f"user{number}" for number in range(40)]
    async with Daemon(data_dir, settings=shards(*databases)) as daemon:
        api = Api(daemon)
        for user in users:
            await api.accept([run(user), run(user, cell_index=1)])
        await api.wait_flushed()
        before = (await api.overview())["state"]
        counts = [await database.value("select count(distinct user_id) from cell_executions") for database in databases]
        assert sum(counts) == 40
        assert min(counts) > 0
        identities = [
            await database.query("select set_id, position, count from shard_identity") for database in databases
        ]
        assert [rows[0]["position"] for rows in identities] == [0, 1, 2]
        assert len({rows[0]["set_id"] for rows in identities}) == 1
    daemon = Daemon(data_dir, settings=shards(*databases))
    migrated = await in_thread(daemon.command, "migrate")
    assert migrated.stdout.count("schema version") == 3, migrated.stderr
    checked = await in_thread(daemon.command, "check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("postgresql: ok") == 3
    async with daemon:
        assert (await Api(daemon).overview())["state"]["users"] == before["users"]
    async with Daemon(data_dir, settings=shards(*databases, **FORGETFUL)) as daemon:
        api = Api(daemon)
        assert (await api.overview())["state"]["users"] == {}
        for user in users[:5]:
            (session,) = await api.sessions(user)
            assert session["cell_executions"] == 2


async def test_another_list_of_shards_is_refused_with_the_reason(databases, postgres, make_data_dir, data_dir):
    first, second, third = databases
    async with Daemon(data_dir, settings=shards(first, second)) as daemon:
        await Api(daemon).accept([run(f"user{number}") for number in range(20)])
        await Api(daemon).wait_flushed()
    others = [postgres.create_database() for _ in range(2)]
    async with Daemon(make_data_dir(), settings=shards(*others)):
        pass

    async def refusal(*, directory=data_dir, **how):
        daemon = Daemon(directory, **how)
        await in_thread(daemon.launch)
        assert await in_thread(daemon.wait) == 1
        (line,) = [line for line in daemon.stderr.splitlines() if line.startswith("serve: ")]
        return line

    assert "at place 1 of 2 was at place 2 before" in await refusal(settings=shards(second, first))
    assert "at place 1 of 3 was one of 2" in await refusal(settings=shards(first, second, third))
    assert "is number 1 of 2 shards: name them all" in await refusal(dsn=first.dsn)
    assert "belong to different sets" in await refusal(settings=shards(first, others[1]))
    # A database in the place of one that held events: the journal tells.
    assert "lacks events 1 to " in await refusal(settings=shards(first, third))
    async with Daemon(data_dir, settings=shards(first, second)) as daemon:  # nothing of it did harm
        assert len(await Api(daemon).sessions("user3")) == 1


async def test_a_database_that_served_alone_is_no_shard(databases, data_dir):
    first, second, _ = databases
    async with Daemon(data_dir, dsn=first.dsn, settings=FAST) as daemon:
        await Api(daemon).accept(run("ann"))
        await Api(daemon).wait_flushed()
    daemon = Daemon(data_dir, settings=shards(first, second))
    await in_thread(daemon.launch)
    assert await in_thread(daemon.wait) == 1
    assert "at place 1 of 2 holds events of a daemon without shards" in daemon.stderr
    async with Daemon(data_dir, settings=shards(first)) as daemon:  # alone in the list it is what it was
        assert len(await Api(daemon).sessions("ann")) == 1


async def test_logins_are_the_same_on_every_shard(databases, data_dir):
    daemons = [login(database.dsn, "daemon") for database in databases[:2]]
    settings = FAST | {
        "POSTGRES__SHARDS": json.dumps(daemons),
        "POSTGRES__ADMIN_DSN": "postgresql://postgres@elsewhere.invalid/whatever",
        "POSTGRES__STUDENT_DSN": "postgresql://pupil@elsewhere.invalid/whatever",
    }
    daemon = Daemon(data_dir, settings=settings)
    migrated = await in_thread(daemon.command, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    make_logins(databases[0].server)
    async with daemon:
        api = Api(daemon)
        await api.accept([run(f"user{number}") for number in range(10)])
        await api.wait_flushed()
    async with Daemon(data_dir, settings=settings | FORGETFUL) as daemon:
        api = Api(daemon)
        for number in range(10):
            assert len(await api.sessions(f"user{number}")) == 1


async def summed(databases):
    """Whether every stored run is in a sum."""
    runs = [await database.value("select count(*) from cell_executions") for database in databases]
    sums = [await database.value("select coalesce(sum(executions), 0) from cell_sums") for database in databases]
    return min(runs) > 0 and runs == sums


async def test_a_class_over_shards_answers_as_one_in_one_database(databases, database, make_data_dir):
    rng = random.Random(5)
    moment = datetime.now(UTC)
    events = [
        sample(
            f"user{rng.randrange(12)}",
            session_id=f"s{rng.randrange(3)}",
            cell_index=rng.randrange(5),
            notebook_path=rng.choice(["a.ipynb", "b.ipynb"]),
            timestamp=(moment - timedelta(seconds=rng.randrange(7200))).isoformat(),
            **({"execution_duration_ms": float(rng.randrange(40))} if rng.random() < 0.9 else {}),
        )
        for sample in rng.choices([run, failed_run], [3, 1], k=400)
    ]
    paths = [
        f"/api/v1/series/{kind}?class=default&since=3h&every=10m&by={by}"
        for kind in ("activity", "errors")
        for by in ("user_id", "notebook_path")
    ]
    paths += ["/api/v1/notebooks/summary?class=default&path=a.ipynb"]
    answers = []
    for settings in ({"POSTGRES__DSN": database.dsn, **FAST}, shards(*databases)):
        directory = make_data_dir()
        async with Daemon(directory, settings=settings) as daemon:
            await Api(daemon).accept(events)
            await Api(daemon).wait_flushed()
            of_rows = await Api(daemon).get(paths[-1])
        async with Daemon(directory, settings=settings | FORGETFUL) as daemon:
            kept = databases if answers else [database]
            await eventually(partial(summed, kept), what="what was stored before this start is in the sums")
            found = [await Api(daemon).get(path) for path in paths]
            assert found[-1] == of_rows
            sessions, cursor = [], ""
            while cursor is not None:
                page = await Api(daemon).get(f"/api/v1/classes/default/sessions?since=3h&limit=7{cursor}")
                sessions += page["sessions"]
                cursor = f"&cursor={quote(page['next_cursor'])}" if page.get("next_cursor") else None
            assert len(sessions) > 20
            answers.append([*found, sessions])
    for path, one, several in zip([*paths, "sessions"], *answers, strict=True):
        assert one == several, path
    assert answers[0][4]["cells"][0]["median_duration_ms"] is not None
