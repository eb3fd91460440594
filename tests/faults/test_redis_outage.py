"""Redis goes away under load: nothing else notices, and it is told again when it is back.

``CLASSPULSE_OUTAGE_S`` says for how long (the full form is 60).
"""

import os

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.reckoning import check_counters, check_rows
from tests.e2e.test_metrics import scrape
from tests.e2e.waiting import eventually
from tests.servers.redis_server import Listener

OUTAGE_S = float(os.environ.get("CLASSPULSE_OUTAGE_S", "3"))
CHANNELS = ("progress_events", "error_events", "session_events")


async def redis_is(api, status):
    code, health = await api.health()
    assert code == 200, health
    found = health["checks"]["redis"]["status"]
    assert health["status"] == ("healthy" if found == "healthy" else "degraded"), health
    return found == status


async def all_healthy(api):
    _, health = await api.health()
    return health["status"] == "healthy"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_an_outage_of_redis_under_load(how, make_redis, database, data_dir):
    server = make_redis()
    async with Daemon(data_dir, dsn=database.dsn, settings={"REDIS__URL": server.url}) as daemon:
        api = Api(daemon)
        async with Load(daemon, seed=7) as load:
            async with Listener(server, *CHANNELS) as listener:
                await load.progress(300)
                await listener.hears(200)
            await in_thread(getattr(server, how))
            began = trio.current_time()
            await eventually(lambda: redis_is(api, "unhealthy"), within=15, what="redis is named")
            while trio.current_time() < began + OUTAGE_S:
                assert await redis_is(api, "unhealthy")
                await load.progress(50, within=5)
                assert await api.lag() < 5000  # PostgreSQL is served all the while
            await in_thread(server.start if how == "kill" else server.resume)
            await eventually(lambda: redis_is(api, "healthy"), within=15, what="redis is back")
            async with Listener(server, *CHANNELS) as listener:
                await load.progress(300)
                await listener.hears(200)
            await load.finish()
            assert load.refusals == []
        await api.wait_flushed()
        await check_rows(database, load.acknowledged)
        await check_counters(api, database, load.acknowledged.values())
        assert load.faults == []


@pytest.mark.slow
async def test_drops_are_counted_when_it_is_away_for_long(make_redis, database, data_dir):
    server = make_redis()
    async with Daemon(data_dir, dsn=database.dsn, settings={"REDIS__URL": server.url}) as daemon:
        api = Api(daemon)
        await eventually(lambda: all_healthy(api))  # at first PostgreSQL may not have been reached
        await in_thread(server.kill)
        async with Load(daemon, seed=8, crowd=500, pause_s=0.005) as load:
            await load.progress(15_000, within=60)
            await load.finish()
            assert load.refusals == []
        seen = await scrape(api)
        assert seen["classpulse_bus_dropped_total"] >= 4000
        _, health = await api.health()
        assert health["checks"]["redis"]["dropped"] == seen["classpulse_bus_dropped_total"]
        await in_thread(server.start)
        await eventually(lambda: redis_is(api, "healthy"), within=15)
        name = load.names[0]
        await server.until(
            lambda client: client.exists(f"session:default:{name.replace('@', '%40')}"), what="a session"
        )


@pytest.mark.slow
async def test_cut_connections_cost_redis_little_and_others_nothing(make_redis, database, data_dir):
    server = make_redis()

    def cut(client):
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return True

    async with Daemon(data_dir, dsn=database.dsn, settings={"REDIS__URL": server.url}) as daemon:
        api = Api(daemon)
        async with Listener(server, *CHANNELS) as listener, Load(daemon, seed=9) as load:
            for _ in range(100):
                await server.until(cut, what="connections are cut")
                await load.progress(10)
            await load.finish()
            assert load.refusals == []
        await api.wait_flushed()
        await check_rows(database, load.acknowledged)
        await eventually(lambda: redis_is(api, "healthy"))
        dropped = (await scrape(api))["classpulse_bus_dropped_total"]
        told = len(listener.heard)
        assert told + dropped >= len(load.acknowledged)
        assert told >= 0.5 * len(load.acknowledged)
