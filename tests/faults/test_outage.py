"""PostgreSQL goes away: ingest does not notice, the journal keeps it all, and it gets there in the end.

``CLASSPULSE_OUTAGE_S`` says for how long (the full form is 60).
"""

import os

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import PostgresServer
from tests.e2e.reckoning import check_counters, check_rows, live_counters
from tests.e2e.waiting import eventually

OUTAGE_S = float(os.environ.get("CLASSPULSE_OUTAGE_S", "3"))
# What an outage may cost in memory. The load is some hundred events/s; holding them all would show in the full form.
GROWTH_BYTES = 30 * 2**20


@pytest.fixture
def server():
    with PostgresServer() as started:
        yield started


async def degraded(api: Api) -> bool:
    """Health says which store is away; it still is 200."""
    status, health = await api.health()
    assert status == 200, health
    away = health["checks"]["postgresql"]["status"] not in {"healthy", "not_configured"}
    assert (health["status"] == "degraded") == away, health
    return away


async def healthy(api: Api) -> bool:
    return not await degraded(api)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_an_outage_under_load(how, server, data_dir):
    database = server.create_database()
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        async with Load(daemon, seed=3) as load:
            await load.progress(500)
            before_bytes, before_events = daemon.rss_bytes(), len(load.acknowledged)

            await in_thread(server.kill if how == "kill" else server.pause)
            began = trio.current_time()
            lags = []
            await eventually(lambda: degraded(api), within=15, what="health is degraded")
            while trio.current_time() < began + OUTAGE_S:
                lags.append(await api.lag())
                assert await degraded(api)
                assert (await api.call("GET", "/readyz")).status == 200
                await load.progress(1, within=5)
                await trio.sleep(0.2)
            during_bytes, during_events = daemon.rss_bytes(), len(load.acknowledged)
            assert load.refusals == []
            assert during_events > before_events + 20 * OUTAGE_S  # it went on; how fast is not asked here
            lags.append(await api.lag())
            assert max(lags) >= (during_events - before_events) / 2
            assert during_bytes - before_bytes < GROWTH_BYTES

            await in_thread(server.start if how == "kill" else server.resume)
            await eventually(lambda: healthy(api), within=30, what="health is back")
            await load.finish()
            assert load.refusals == []
        await api.wait_flushed(within=60)
        await check_rows(database, load.acknowledged)
        await check_counters(api, database, load.acknowledged.values())
        assert load.faults == []


@pytest.mark.slow
async def test_postgresql_is_away_at_the_start(server, data_dir):
    database = server.create_database()
    server.stop()
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        await eventually(lambda: degraded(api), within=15, what="health is degraded")
        async with Load(daemon, seed=4) as load:
            await load.progress(300)
            await load.finish()
            assert load.refusals == []
        live = await live_counters(api)
        assert len(live) == 20
        assert await api.lag() == len(load.acknowledged)

        await in_thread(server.start)
        await eventually(lambda: healthy(api), within=30, what="health is back")
        await api.wait_flushed(within=60)
        await check_rows(database, load.acknowledged)
        await check_counters(api, database, load.acknowledged.values())
        assert await live_counters(api) == live


@pytest.mark.slow
async def test_a_stop_while_postgresql_is_away_keeps_it_all(server, data_dir):
    database = server.create_database()
    daemon = Daemon(data_dir, dsn=database.dsn)
    async with Load(daemon, seed=5) as load:
        async with daemon:
            await load.progress(200)
            await in_thread(server.kill)
            await load.progress(200, within=30)
        async with daemon:  # and a start, still without it
            await load.progress(200, within=30)
            await in_thread(server.start)
            await load.finish()
            await Api(daemon).wait_flushed(within=60)
            await check_rows(database, load.acknowledged)
            await check_counters(Api(daemon), database, load.acknowledged.values())


@pytest.mark.slow
async def test_lost_connections_are_made_anew(server, data_dir):
    """The server stays, each of its connections is ended again and again, as a proxy or an administrator does."""
    database = server.create_database()
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        async with Load(daemon, seed=6) as load:
            for _ in range(5):
                await load.progress(150)
                await in_thread(
                    server.execute,
                    f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.name}'",
                )
            await load.finish()
            assert load.refusals == []
        await Api(daemon).wait_flushed(within=60)
        await check_rows(database, load.acknowledged)
        await check_counters(Api(daemon), database, load.acknowledged.values())
