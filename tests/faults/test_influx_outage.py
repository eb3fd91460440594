"""InfluxDB goes away, or the daemon is killed behind it: every cell event is a point in the end, exactly once.

``CLASSPULSE_OUTAGE_S`` says for how long (the full form is 60), ``CLASSPULSE_BEHIND`` how many events InfluxDB lacks
when the daemon is killed behind it (the full form is 360000: an hour at 100 events/s).
"""

import os

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.points import check_everywhere
from tests.e2e.postgres_server import PostgresServer
from tests.e2e.reckoning import live_counters
from tests.e2e.waiting import eventually
from tests.servers.influx_server import InfluxServer

OUTAGE_S = float(os.environ.get("CLASSPULSE_OUTAGE_S", "3"))
BEHIND = int(os.environ.get("CLASSPULSE_BEHIND", "3000"))
# What may be posted or written in a second at least, on a machine that does other things too.
SLOWEST = 500
BEHIND_WITHIN_S = 30 + BEHIND / SLOWEST


@pytest.fixture
def server(require_tool):
    with InfluxServer(require_tool("influxd"), password="s3cret") as started:
        yield started


def settings(server, bucket, **more):
    return {
        "INFLUXDB__URL": server.url,
        "INFLUXDB__API": "v1",
        "INFLUXDB__BUCKET": bucket.name,
        "INFLUXDB__TOKEN": f"admin:{server.password}",
        "INFLUXDB__FLUSH_INTERVAL_MS": "200",
        **more,
    }


async def status_of(api, store="influxdb"):
    status, health = await api.health()
    assert status == 200, health
    assert health["status"] == (
        "healthy" if all(each["status"] in {"healthy", "not_configured"} for each in health["checks"].values()) else
        "degraded"
    )  # fmt: skip
    return health["checks"][store]["status"]


async def until_status(api, wanted, within=30):
    async def reached():
        return await status_of(api) == wanted

    await eventually(reached, within=within, what=f"influxdb is {wanted}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_an_outage_under_load(how, server, database, data_dir):
    bucket = server.create_database()
    async with Daemon(data_dir, dsn=database.dsn, settings=settings(server, bucket)) as daemon:
        api = Api(daemon)
        async with Load(daemon, seed=11) as load:
            await load.progress(300)
            await in_thread(server.kill if how == "kill" else server.pause)
            began, before = trio.current_time(), len(load.acknowledged)
            await until_status(api, "unhealthy", within=20)
            while trio.current_time() < began + OUTAGE_S:
                await load.progress(1, within=5)
                await trio.sleep(0.2)
                assert await status_of(api) == "unhealthy"
                assert await status_of(api, "postgresql") == "healthy"
            assert await api.lag("influxdb") >= (len(load.acknowledged) - before) / 2

            await in_thread(server.start if how == "kill" else server.resume)
            await until_status(api, "healthy")
            await load.finish()
            assert load.refusals == []
        await api.wait_flushed(within=60)
        await api.wait_flushed(within=60, store="influxdb")
        await check_everywhere(bucket, database, load.acknowledged.values())
        assert load.faults == []


@pytest.mark.slow
async def test_the_daemon_is_killed_while_influx_lags(server, database, data_dir):
    """PostgreSQL has it all and the journal keeps what InfluxDB lacks; a start without it serves, and then it comes."""
    bucket = server.create_database()
    daemon = await in_thread(Daemon(data_dir, dsn=database.dsn, settings=settings(server, bucket)).start)
    try:
        api = Api(daemon)
        async with Load(daemon, seed=12, crowd=500) as load:
            await load.progress(300)
            await in_thread(server.kill)
            for _ in range(3):
                await load.progress(BEHIND // 3, within=BEHIND_WITHIN_S)
                await in_thread(daemon.kill)
                await in_thread(daemon.start)
            await until_status(api, "unhealthy", within=20)
            await load.finish()
        await api.wait_flushed(within=BEHIND_WITHIN_S)
        counters = await live_counters(api)
        lag = await api.lag("influxdb")
        assert lag >= BEHIND
        await in_thread(daemon.kill)
        await in_thread(server.start)
        began = trio.current_time()
        await in_thread(daemon.start)
        await api.wait_flushed(within=BEHIND_WITHIN_S, store="influxdb")
        took = trio.current_time() - began
        print(f"seed 12: InfluxDB was {lag} events behind and caught up in {took:.1f} s with the start")  # noqa: T201
        await check_everywhere(bucket, database, load.acknowledged.values())
        assert await live_counters(api) == counters
        assert await in_thread(daemon.stop) == 0, daemon.stderr
        offsets = {row["store"]: row["seq"] for row in await database.query("select store, seq from sink_offsets")}
        assert offsets["influxdb"] == offsets["postgresql"] == len(load.acknowledged)
    finally:
        daemon.kill()


@pytest.mark.slow
async def test_postgresql_is_away_and_influx_goes_on(server, data_dir):
    bucket = server.create_database()
    with PostgresServer() as postgres:
        database = postgres.create_database()
        async with Daemon(data_dir, dsn=database.dsn, settings=settings(server, bucket)) as daemon:
            api = Api(daemon)
            async with Load(daemon, seed=13) as load:
                await load.progress(200)
                await in_thread(postgres.kill)
                await load.progress(200)
                await load.finish()
            await api.wait_flushed(within=20, store="influxdb")
            assert await status_of(api) == "healthy"
            assert await api.lag() > 0
            daemon.kill()  # the offset of InfluxDB could not be kept: the same points are written again
            await in_thread(postgres.start)
            await in_thread(daemon.start)
            await api.wait_flushed(within=30)
            await api.wait_flushed(within=30, store="influxdb")
            await check_everywhere(bucket, database, load.acknowledged.values())


@pytest.mark.slow
async def test_influx_is_taken_up_and_left_again(server, database, data_dir):
    """Each cell event is in the store that held the series when PostgreSQL wrote its row; none is in both or none."""
    bucket = server.create_database()
    plain, series = Daemon(data_dir, dsn=database.dsn), settings(server, bucket)
    async with plain:
        async with Load(plain, seed=14) as load:
            await load.progress(100)
            await load.finish()
        await Api(plain).wait_flushed()
    before = dict(load.acknowledged)
    async with Daemon(data_dir, dsn=database.dsn, settings=series) as daemon:
        async with Load(daemon, seed=15) as load:
            await load.progress(100)
            await load.finish()
        await Api(daemon).wait_flushed(store="influxdb")
    during = dict(load.acknowledged)
    await check_everywhere(bucket, database, during.values(), possible=set(before))
    server.kill()
    async with Daemon(data_dir, dsn=database.dsn, settings=series) as daemon:
        async with Load(daemon, seed=16) as load:
            await load.progress(100)
            await load.finish()
        await Api(daemon).wait_flushed()
    refused = Daemon(data_dir, dsn=database.dsn)
    await in_thread(refused.launch)
    assert await in_thread(refused.wait) == 1
    assert "influxdb is no longer configured and lacks cell events" in refused.stderr
    await in_thread(server.start)
    async with Daemon(data_dir, dsn=database.dsn, settings=series) as daemon:
        await Api(daemon).wait_flushed(store="influxdb")
    async with Daemon(data_dir, dsn=database.dsn) as daemon:  # and left for good: PostgreSQL has the series again
        async with Load(daemon, seed=17) as after:
            await after.progress(50)
            await after.finish()
        await Api(daemon).wait_flushed()
    rows = await database.query("select store from sink_offsets")
    assert {row["store"] for row in rows} == {"postgresql", "postgresql.snapshots"}
    async with Daemon(data_dir, dsn=database.dsn, settings=series) as daemon:  # and again, without a gap
        await Api(daemon).wait_flushed(store="influxdb")
