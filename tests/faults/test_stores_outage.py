"""PostgreSQL, InfluxDB and Redis go away, one at a time and all at once: no answer but 202, and all is stored once.

``CLASSPULSE_OUTAGE_S`` says for how long each time (the full form is 60). With ``-s`` it prints how long each took to
catch up.
"""

import os

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.points import check_everywhere
from tests.e2e.postgres_server import PostgresServer
from tests.e2e.reckoning import check_counters
from tests.e2e.waiting import eventually
from tests.servers.influx_server import InfluxServer

OUTAGE_S = float(os.environ.get("CLASSPULSE_OUTAGE_S", "2"))
# What a store may take to get over an outage.
CAUGHT_UP_WITHIN_S = 60
# About 1,000 events/s: 30 students that send 3 events each 80 ms, some of them repeats.
STUDENTS, PAUSE_S = 30, 0.08
SEED = 21
# Which go away together, and how: killed and started, or stopped in their tracks.
OUTAGES = (
    {"postgresql": "pause"},
    {"influxdb": "kill"},
    {"redis": "pause"},
    {"postgresql": "kill", "influxdb": "pause", "redis": "kill"},
)


@pytest.fixture
def servers(require_tool, make_redis):
    with PostgresServer() as postgres, InfluxServer(require_tool("influxd")) as influx:
        yield {"postgresql": postgres, "influxdb": influx, "redis": make_redis()}


async def away(api: Api) -> set[str]:
    """The stores that health names; it is degraded if there are any, and 200 all the same."""
    status, health = await api.health()
    assert status == 200, health
    found = {name for name, check in health["checks"].items() if check["status"] not in {"healthy", "not_configured"}}
    assert (health["status"] == "degraded") == bool(found), health
    return found


async def positions(api: Api) -> tuple[int, int]:
    """Up to which event the journal has them, and every store."""
    _, health = await api.health()
    last, checks = health["checks"]["journal"]["last_seq"], health["checks"]
    return last, last - max(checks[name]["lag_events"] for name in ("postgresql", "influxdb"))


async def outage(api: Api, load: Load, servers, how: dict[str, str]) -> None:
    """Some stores are away under load, and come back; returns when they have all that was sent meanwhile."""
    for name, way in how.items():
        await in_thread(getattr(servers[name], way))
    began, before = trio.current_time(), len(load.acknowledged)

    async def named() -> bool:
        return await away(api) == how.keys()

    await eventually(named, within=20, what=f"{sorted(how)} are named")
    while trio.current_time() < began + OUTAGE_S:
        assert await away(api) == how.keys()
        assert (await api.call("GET", "/readyz")).status == 200
        await load.progress(100, within=5)
    during = len(load.acknowledged) - before
    lasted = trio.current_time() - began
    last, stored = await positions(api)
    for name, way in how.items():
        await in_thread(servers[name].start if way == "kill" else servers[name].resume)
    back = trio.current_time()

    async def caught_up() -> bool:
        return not await away(api) and (await positions(api))[1] >= last

    await eventually(caught_up, within=CAUGHT_UP_WITHIN_S, what=f"{sorted(how)} have caught up")
    print(  # noqa: T201 - shown with -s, and when the test fails
        f"{how}: away {lasted:.1f} s at {during / lasted:.0f} events/s, {last - stored} events behind, "
        f"caught up {trio.current_time() - back:.1f} s after the return"
    )


@pytest.mark.slow
async def test_each_store_and_then_all_go_away_under_load(servers, data_dir):
    postgres, influx, redis = servers["postgresql"], servers["influxdb"], servers["redis"]
    database, bucket = postgres.create_database(), influx.create_database()
    settings = {
        "INFLUXDB__URL": influx.url, "INFLUXDB__API": "v1", "INFLUXDB__BUCKET": bucket.name, "REDIS__URL": redis.url,
    }  # fmt: skip
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        api = Api(daemon)

        async def all_there() -> bool:
            return not await away(api)

        async with Load(daemon, seed=SEED, users=STUDENTS, pause_s=PAUSE_S) as load:
            await load.progress(300)
            await eventually(all_there, within=20)
            for how in OUTAGES:
                await outage(api, load, servers, how)
            await load.finish()
        # While the load runs there is always something that waits for the next flush.
        await api.wait_flushed(within=CAUGHT_UP_WITHIN_S)
        await api.wait_flushed(within=CAUGHT_UP_WITHIN_S, store="influxdb")
        print(f"seed {SEED}: {len(load.acknowledged)} events in {load.requests} requests")  # noqa: T201
        assert (load.refusals, load.failures, load.faults) == ([], [], [])
        await check_everywhere(bucket, database, load.acknowledged.values())
        await check_counters(api, database, load.acknowledged.values())
