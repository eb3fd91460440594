"""Reads over a real primary and its streaming standbys, of Debian's PostgreSQL."""

from functools import partial

import pytest
import trio

from adapters.asyncio_bridge import open_loop
from adapters.postgres.queries import PostgresQueries
from adapters.postgres.replicas import ReadPool
from engine.errors import StoreDataError, StoreUnavailableError
from tests.adapters.events import run
from tests.adapters.flushes import Feed, Student, make_store, opened
from tests.e2e.postgres_server import PostgresServer, psql
from tests.e2e.waiting import eventually
from tests.servers.standby import Standby

WHERE = "select pg_is_in_recovery(), current_setting('port')::int"
LAG_MS = 300


@pytest.fixture
async def loop():
    async with open_loop():
        yield


@pytest.fixture(scope="module")
def primary(debian_postgres):
    with PostgresServer(debian_postgres) as server:
        yield server


@pytest.fixture(scope="module")
def standby(primary, debian_postgres):
    with Standby(primary, debian_postgres) as server:
        yield server


class Bench:
    """A pool over a primary and standbys, looked after as in the daemon."""

    def __init__(self, primary, *standbys, max_lag_ms=LAG_MS):
        self.primary = primary
        self.standbys = standbys
        self.database = primary.create_database()
        dsns = [each.dsn(self.database.name) for each in standbys]
        self.pool = ReadPool(lambda: self.database.dsn, dsns, max_lag_ms=max_lag_ms)

    async def port(self):
        """Of the server that the next read goes to."""
        return (await self.pool.fetch(WHERE))[0][1]

    async def goes_to(self, *servers):
        """Wait until reads go to exactly these."""

        async def same():
            return {await self.port() for _ in range(2 * len(servers) + 2)} == {server.port for server in servers}

        await eventually(same, within=20, what=f"reads go to {len(servers)} servers; {self.pool.health}")

    def write(self):
        psql(self.database.dsn, "create table if not exists t (a int); insert into t values (1)")


@pytest.fixture
async def bench(loop, primary, standby, nursery):
    bench = Bench(primary, standby)
    nursery.start_soon(bench.pool.run)
    yield bench
    await bench.pool.close()


async def test_reads_go_to_the_primary_until_the_replica_was_looked_at(loop, primary, standby):
    bench = Bench(primary, standby)
    assert await bench.port() == primary.port
    await eventually(partial(_exists, standby, bench.database.name))
    await bench.pool.look()
    assert await bench.port() == standby.port
    (replica,) = bench.pool.replicas
    assert replica.connections == 2
    await bench.pool.close()
    assert replica.connections == 0


async def _exists(server, database):
    return server.execute(f"select 1 from pg_database where datname = '{database}'").strip()


async def test_a_paused_replay_falls_back_and_a_resumed_one_comes_back(bench, primary, standby):
    bench.write()
    await bench.goes_to(standby)
    standby.execute("select pg_wal_replay_pause()")
    try:
        bench.write()
        await bench.goes_to(primary)
        (replica,) = bench.pool.health["replicas"]
        assert replica["status"] == "unhealthy"
        assert replica["lag_ms"] >= LAG_MS
        assert "max_replica_lag_ms" in replica["error"]
    finally:
        standby.execute("select pg_wal_replay_resume()")
    await bench.goes_to(standby)
    assert bench.pool.health == {"replicas": [{"status": "healthy", "lag_ms": 0}]}


async def test_a_primary_that_rests_does_not_make_its_replica_late(bench, primary, standby):
    bench.write()
    await bench.goes_to(standby)
    with trio.move_on_after(5 * LAG_MS / 1000):
        while True:
            assert await bench.port() == standby.port
            await trio.sleep(0.02)
    late = "select extract(epoch from now() - pg_last_xact_replay_timestamp()) * 1000"
    assert float(psql(standby.dsn(bench.database.name), late)) > LAG_MS  # what it is not judged by


async def test_a_killed_or_frozen_replica_costs_its_clients_nothing(loop, primary, debian_postgres, nursery):
    """Clients ask without a pause; every answer is there, before, during and after."""
    with Standby(primary, debian_postgres) as first, Standby(primary, debian_postgres) as second:
        bench = Bench(primary, first, second, max_lag_ms=1000)
        nursery.start_soon(bench.pool.run)
        await bench.goes_to(first, second)
        answered = 0
        asking = True

        async def ask():
            nonlocal answered
            while asking:
                with trio.fail_after(10):
                    await bench.pool.fetch("select pg_sleep(0.01)")
                answered += 1

        for _ in range(6):
            nursery.start_soon(ask)
        await trio.to_thread.run_sync(first.kill)
        await bench.goes_to(second)
        await trio.to_thread.run_sync(first.start)
        await bench.goes_to(first, second)
        second.pause()
        try:
            await bench.goes_to(first)
        finally:
            second.resume()
        await bench.goes_to(first, second)
        await trio.to_thread.run_sync(first.kill)
        await trio.to_thread.run_sync(second.kill)
        await bench.goes_to(primary)
        asking = False
        assert answered > 50
        await bench.pool.close()


async def test_replicas_answer_while_the_primary_is_away(loop, debian_postgres, nursery):
    with PostgresServer(debian_postgres) as primary, Standby(primary, debian_postgres) as standby:
        bench = Bench(primary, standby)
        nursery.start_soon(bench.pool.run)
        await bench.goes_to(standby)
        await trio.to_thread.run_sync(primary.kill)
        for _ in range(3):
            await bench.pool.look()
            assert await bench.port() == standby.port
        await trio.to_thread.run_sync(standby.kill)
        with pytest.raises(StoreUnavailableError):
            await bench.port()
        await bench.pool.close()


async def test_a_server_that_is_no_replica_of_the_primary_is_not_asked(loop, primary, standby, postgres):
    async def faults(*dsns, of=primary):
        pool = ReadPool(lambda: of.dsn("postgres"), dsns)
        await pool.look()
        await pool.look()
        assert (await pool.fetch(WHERE))[0][1] == of.port
        await pool.close()
        return [replica.get("error") for replica in pool.health["replicas"]]

    itself, nobody = await faults(primary.dsn("postgres"), "postgresql://postgres@127.0.0.1:1/x")
    assert itself == "it is no replica: it takes writes of its own"
    assert "away" in nobody
    (stranger,) = await faults(standby.dsn("postgres"), of=postgres)
    assert stranger == "it is a replica of another server than the primary"


async def test_an_error_of_the_question_is_told_and_blames_no_replica(bench, standby):
    bench.write()
    await bench.goes_to(standby)
    with pytest.raises(StoreDataError):
        await bench.pool.fetch("select 1 / 0 + $1::int", 1)
    assert await bench.port() == standby.port


async def test_without_replicas_there_is_nothing_to_look_at(loop, primary):
    pool = ReadPool(lambda: primary.dsn("postgres"))
    await pool.run()
    assert (await pool.fetch(WHERE))[0][1] == primary.port
    assert (pool.connections, pool.health) == (1, {})
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(pool.fetch, "select pg_sleep(0.01)")
    assert pool.connections == 4
    await pool.close()
    assert pool.connections == 0


async def test_what_is_asked_while_the_pool_closes_leaves_no_connection_behind(loop, primary):
    pool = ReadPool(lambda: primary.dsn("postgres"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.fetch, "select pg_sleep(0.2)")
        while not pool.connections:
            await trio.sleep(0.001)
        await pool.close()
        assert pool.connections == 1
    assert pool.connections == 0


async def test_sessions_are_read_from_the_replica(bench, standby):
    """With PostgreSQL 15: migrations and roles too."""
    student = Student("ann").apply(run("ann"))
    async with opened(make_store(bench.database)) as store:
        await store.write(Feed().flush(run("ann"), snapshots=[student.snapshot()]))
    await bench.goes_to(standby)
    assert await PostgresQueries(bench.pool).user_sessions("ann", "default", None, 10, None)
