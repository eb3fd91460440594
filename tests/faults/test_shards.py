"""Students spread over several PostgreSQL servers: one goes away and the others do not notice; nothing is lost."""

import json
from collections import Counter
from hashlib import md5

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.oracle import Counters, Oracle
from tests.e2e.postgres_server import PostgresServer
from tests.e2e.reckoning import live_counters
from tests.e2e.stored import EVENTS, event_ids, sessions
from tests.e2e.waiting import eventually

STATES = "select class_id, user_id from session_snapshots"


def shards(*databases):
    return {"POSTGRES__SHARDS": json.dumps([database.dsn for database in databases])}


def shard_of(user_id, count):
    """As the contract has it."""
    return int(md5(user_id.encode()).hexdigest()[:8], 16) % count


async def check_shards(databases, acknowledged, api):
    """Every event is stored once, on its student's shard; so are states and sessions. Notebooks are on all."""
    rows, stored, notebooks = Counter(), Counter(), []
    for place, database in enumerate(databases):
        for table in (f"select user_id from ({EVENTS}) e", STATES, "select username as user_id from users"):
            users = {row["user_id"] for row in await database.query(table)}
            assert users
            assert {shard_of(user, len(databases)) for user in users} == {place}, table
        rows += await event_ids(database)
        stored += await sessions(database)
        notebooks.append({row["path"] for row in await database.query("select path from notebooks")})
    assert rows == Counter(dict.fromkeys(acknowledged, 1))
    oracle = Oracle(acknowledged.values())
    assert stored == oracle.sessions()
    assert await live_counters(api) == {name: each for name, each in oracle.users().items() if each != Counters(0, 0)}
    assert all(each == notebooks[0] for each in notebooks)


@pytest.mark.slow
async def test_a_shard_that_is_away_holds_no_other_up_and_nothing_is_lost_or_doubled(postgres, database, data_dir):
    """Killed under load, then the daemon too: the shards go on from where each of them was."""
    with PostgresServer() as server:
        away = server.create_database()
        databases = [database, away]
        daemon = Daemon(data_dir, settings=shards(*databases))
        api = Api(daemon)
        async with Load(daemon, seed=11) as load:
            async with daemon:
                await load.progress(300)
                await in_thread(server.kill)

                async def one_is_away():
                    status, health = await api.health()
                    assert status == 200, health
                    first, second = health["checks"]["postgresql"]["shards"]
                    return health["status"] == "degraded" and (first["status"], second["status"]) == (
                        "healthy",
                        "unhealthy",
                    )

                await eventually(one_is_away, within=15, what="the second shard is away")
                await load.progress(300, within=30)

                async def lags():
                    return [shard["lag_events"] for shard in (await api.health())[1]["checks"]["postgresql"]["shards"]]

                async def first_keeps_up():
                    first, second = await lags()
                    return second > 200 and first < second / 2

                await eventually(first_keeps_up, within=20, what="only the second lags")
                await in_thread(daemon.kill)
            await in_thread(daemon.start)
            await load.progress(100, within=30)  # degraded from the start
            await in_thread(server.start)
            await load.finish()
            await api.wait_flushed(within=60)
            await check_shards(databases, load.acknowledged, api)
            assert load.refusals == []
            text = (await api.call("GET", "/metrics")).body.decode()
            for place in (0, 1):
                assert f'classpulse_store_lag_events{{store="postgresql.{place}"}} 0.0' in text
                assert f'database_connection_pool_size{{database="postgresql.{place}"}}' in text
            assert await in_thread(daemon.stop) == 0
        # From the databases alone: a journal that was trimmed knows nothing any more.
        async with daemon:
            await check_shards(databases, load.acknowledged, api)
            user = next(iter(load.acknowledged.values()))["user_id"]
            assert await api.sessions(user)
