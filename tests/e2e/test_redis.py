"""A daemon beside a real Redis, as other programs see it; and starts with a store that is not as it should be."""

import json
from urllib.parse import quote

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.postgres_server import PostgresServer, free_port, psql
from tests.e2e.samples import activity, failed_run, run
from tests.e2e.subscriber import Subscriber
from tests.e2e.test_lifecycle import check_locked_out, is_log
from tests.e2e.test_metrics import scrape
from tests.e2e.waiting import eventually
from tests.servers.redis_server import Listener

CHANNELS = ("progress_events", "error_events", "session_events")
ODD = "ann:b%3A ☃/*"


def beside(redis_server, data_dir, dsn, **settings):
    return Daemon(data_dir, dsn=dsn, settings={"REDIS__URL": redis_server.url, **settings})


async def test_other_programs_are_told_and_find_what_the_contract_says(redis_server, database, data_dir):
    async with beside(redis_server, data_dir, database.dsn) as daemon, Listener(redis_server, *CHANNELS) as listener:
        api = Api(daemon)
        sent = [
            run(ODD, cell_index=3, metadata={"ä": [1]}),
            failed_run(ODD, error_message="KeyError: 'ä'"),
            activity(ODD, event_type="session_start", session_id="s1"),
            activity("bob", event_type="help"),
            activity("bob", class_id="c.2", data={"stars": 5}),
        ]
        await api.accept(sent)
        await api.accept(sent[0])  # a repeat is no news
        heard = [(channel, json.loads(text)) for channel, text in await listener.hears(5)]
        assert [(channel, message["event_type"], message["user_id"], message["class_id"]) for channel, message in heard] == [
            ("progress_events", "cell_executed", ODD, "default"),
            ("error_events", "cell_executed", ODD, "default"),
            ("session_events", "session_start", ODD, "default"),
            ("session_events", "help_requested", "bob", "default"),
            ("progress_events", "lesson_liked", "bob", "c.2"),
        ]  # fmt: skip
        assert [message["data"]["event_id"] for _, message in heard] == [event["event_id"] for event in sent]
        assert heard[0][1]["data"]["metadata"] == {"ä": [1]}
        assert heard[1][1]["data"]["error_message"] == "KeyError: 'ä'"
        assert heard[4][1]["data"]["data"] == {"stars": 5}

        key = f"session:default:{quote(ODD, safe='')}"
        text = await redis_server.until(lambda client: client.get(key), what=key)
        assert json.loads(text) == await api.user(ODD)
        assert 3_590_000 < redis_server.do("PTTL", key) <= 3_600_000
        await redis_server.until(lambda client: client.get("session:c.2:bob"), what="the other class")

        async with trio.open_nursery() as nursery:
            subscriber = await Subscriber.connect(nursery, daemon.port, "class:default")
            (entry,) = await redis_server.until(
                lambda client: client.keys("websocket_connections:*"), what="the connection"
            )
            assert redis_server.fields(entry).keys() == {"user_id", "last_activity"}
            assert 0 < redis_server.do("PTTL", entry) <= 60_000
            await subscriber.close()
        await redis_server.until(lambda client: not client.keys("websocket_connections:*"), what="it is gone")

        _, health = await api.health()
        assert health["status"] == "healthy"
        assert health["checks"]["redis"].keys() == {"status", "response_time_ms", "dropped"}
        seen = await scrape(api)
        assert 1 <= seen.of("database_connection_pool_size", database="redis") <= 20
        assert seen.of("database_query_duration_seconds_count", database="redis", query_type="pipeline") >= 1
        assert seen["classpulse_bus_dropped_total"] == 0

        checked = await in_thread(daemon.command, "check")
        assert checked.returncode == 0, checked
        assert "redis: ok, Redis 7." in checked.stdout


async def test_what_waits_at_the_stop_still_goes_out(redis_server, database, data_dir):
    async with Listener(redis_server, *CHANNELS) as listener:
        async with beside(redis_server, data_dir, database.dsn) as daemon:
            await Api(daemon).accept([run(cell_index=n) for n in range(100)])
        await listener.hears(100)
        assert len(listener.heard) == 100


async def test_nothing_is_said_where_no_redis_is_configured(shared_daemon):
    _, health = await Api(shared_daemon).health()
    assert health["checks"]["redis"] == {"status": "not_configured"}
    checked = await in_thread(shared_daemon.command, "check")
    assert checked.stdout.splitlines()[-1] == "redis: not configured"


# --- starts


def lines_about(daemon, event):
    logs = [json.loads(line) for line in daemon.stderr.splitlines() if is_log(line)]
    return [line for line in logs if line["event"] == event]


async def test_a_redis_that_is_of_another_kind_degrades_and_is_named(database, data_dir):
    url = f"redis://:s3cret@127.0.0.1:{database.server.port}"
    daemon = Daemon(data_dir, dsn=database.dsn, settings={"REDIS__URL": url})
    async with daemon:
        api = Api(daemon)
        await api.accept(run())
        await api.wait_flushed()

        async def degraded():
            status, health = await api.health()
            assert status == 200
            return health["status"] == "degraded" and "PostgreSQL answers there" in health["checks"]["redis"]["error"]

        await eventually(degraded)
        checked = await in_thread(daemon.command, "check")
        assert checked.returncode == 1
        (fault,) = [line for line in checked.stdout.splitlines() if line.startswith("redis: ")]
        assert fault.endswith("PostgreSQL answers there: correct redis.url")
    (told,) = lines_about(daemon, "redis is away; what it is told meanwhile may be lost")
    assert "PostgreSQL answers there" in told["reason"]
    assert "s3cret" not in daemon.stderr + checked.stdout


@pytest.mark.slow
async def test_a_wrong_password_degrades_the_start_and_mending_it_is_enough(data_dir):
    with PostgresServer() as server:
        database = server.create_database()
        server.execute("create role pulse login password 'right' superuser")
        file = server._base / "data" / "pg_hba.conf"
        file.write_text(f"host {database.name} pulse all scram-sha-256\n{file.read_text()}")
        server.execute("select pg_reload_conf()")
        daemon = Daemon(data_dir, dsn=database.dsn.replace("postgres@", "pulse:wr0ng@"))
        async with daemon:
            api = Api(daemon)
            await api.accept(run())
            status, health = await api.health()
            assert (status, health["status"]) == (200, "degraded")
            assert "password" in health["checks"]["postgresql"]["error"]
            assert "correct the user or the password" in health["checks"]["postgresql"]["error"]
            checked = await in_thread(daemon.command, "check")
            assert checked.returncode == 1
            assert "password authentication failed" in checked.stdout
            server.execute("alter role pulse password 'wr0ng'")
            await api.wait_flushed()
            assert await database.value("select count(*) from cell_executions") == 1
        (told,) = lines_about(daemon, "store is away; live state goes on without the past")
        assert "password" in told["reason"]
        assert "wr0ng" not in daemon.stderr + checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "nobody", "no database"])
async def test_a_database_that_cannot_be_used_degrades_the_start(redis_server, database, data_dir, kind):
    dsn, named = {
        "redis": (f"postgresql://127.0.0.1:{redis_server.port}/x", "Redis answers there: correct postgres.dsn"),
        "nobody": (f"postgresql://127.0.0.1:{free_port()}/x", "is away"),
        "no database": (database.server.dsn("nowhere"), "create it, or correct postgres.dsn"),
    }[kind]
    async with Daemon(data_dir, dsn=dsn) as daemon:
        await Api(daemon).accept(run())
        status, health = await Api(daemon).health()
        assert (status, health["status"]) == (200, "degraded")
        assert named in health["checks"]["postgresql"]["error"]
    (told,) = lines_about(daemon, "store is away; live state goes on without the past")
    assert named in told["reason"]


async def test_a_newer_schema_refuses_the_start(database, data_dir):
    daemon = Daemon(data_dir, dsn=database.dsn)
    assert (await in_thread(daemon.command, "migrate")).returncode == 0
    await in_thread(psql, database.dsn, "insert into schema_migrations values (9999, 'future', 'x')")
    await check_locked_out(daemon, "9999")
    assert "upgrade classpulse" in daemon.stderr
    checked = await in_thread(daemon.command, "check")
    assert checked.returncode == 1
    assert "upgrade classpulse" in checked.stdout
