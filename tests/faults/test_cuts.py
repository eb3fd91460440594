"""Connections to the stores are cut in the middle of their work, again and again: nothing is lost or doubled.

``CLASSPULSE_CUTS`` says how often in all (the full form is 100), ``CLASSPULSE_SEED`` repeats a run.
"""

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.points import check_everywhere
from tests.e2e.postgres_server import Database
from tests.e2e.reckoning import check_counters
from tests.servers.proxy import Proxy
from tests.servers.redis_server import RedisServer

CUTS = int(os.environ.get("CLASSPULSE_CUTS", "10"))
# Events between two cuts, that the daemon must get on with.
BETWEEN = 100
# A cut comes after so many bytes: within the rows of a flush, or within the answers to it.
AFTER_BYTES = {"up": 30_000, "down": 300}
STALL_S = (0.1, 2.0)
CUT_WITHIN_S = 60

# Ends a backend that is in the middle of a transaction that has written: `backend_xid` is set from then on.
TERMINATE = """
do $$ begin
    for n in 1..40000 loop
        perform pg_stat_clear_snapshot();
        perform pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'
            and backend_type = 'client backend' and backend_xid is not null;
        if found then return; end if;
        perform pg_sleep(0.0005);
    end loop;
    raise exception 'no transaction was seen';
end $$
"""


class Cuts:
    """Each method cuts connections of one store once; `done` counts them."""

    def __init__(self, seed: int, database: Database, redis: RedisServer, proxies: dict[str, Proxy]) -> None:
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._database = database
        self._redis = redis
        self._proxies = proxies

    async def strike(self, number: int) -> None:
        """One of each kind, in turn."""
        kinds: tuple[Callable[[], Awaitable[None]], ...] = (self.terminate, self.reset, self.stall, self.client_kill)
        kind = kinds[number % len(kinds)]
        with trio.fail_after(CUT_WITHIN_S):
            await kind()

    async def terminate(self) -> None:
        """`pg_terminate_backend`, within a transaction."""
        await in_thread(self._database.server.execute, TERMINATE.format(name=self._database.name))
        self.done["pg_terminate_backend"] += 1

    async def client_kill(self) -> None:
        await in_thread(self._redis.do, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.done["CLIENT KILL"] += 1

    async def reset(self) -> None:
        """A reset within a request, or before its answer arrives."""
        name, proxy = self._random.choice(list(self._proxies.items()))
        direction = self._random.choice(("up", "down"))
        await proxy.reset(direction, self._random.randrange(AFTER_BYTES[direction]))
        self.done[f"{name} reset {direction}"] += 1

    async def stall(self) -> None:
        """Nothing moves for a while; then it goes on, or ends in a reset."""
        name, proxy = self._random.choice(list(self._proxies.items()))
        direction = self._random.choice(("up", "down"))
        await proxy.stall(direction, self._random.randrange(AFTER_BYTES[direction]))
        await trio.sleep(self._random.uniform(*STALL_S))  # how long it lasts is what is tried
        if self._random.random() < 0.5:
            proxy.resume()
        else:
            proxy.reset_now()
        self.done[f"{name} stall {direction}"] += 1


@pytest.mark.slow
async def test_nothing_is_lost_or_doubled_by_cuts(database, influx_database, redis_server, data_dir):
    seed = int(os.environ.get("CLASSPULSE_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CLASSPULSE_SEED={seed} CLASSPULSE_CUTS={CUTS}")  # noqa: T201 - pytest shows it when the test fails
    async with trio.open_nursery() as nursery:
        proxies = {"postgresql": Proxy(database.server.port), "influxdb": Proxy(influx_database.server.port)}
        for proxy in proxies.values():
            await nursery.start(proxy.run)
        settings = {
            "INFLUXDB__URL": f"http://127.0.0.1:{proxies['influxdb'].port}",
            "INFLUXDB__API": "v1",
            "INFLUXDB__BUCKET": influx_database.name,
            "INFLUXDB__FLUSH_INTERVAL_MS": "200",
            "REDIS__URL": redis_server.url,
        }
        dsn = database.dsn.replace(f":{database.server.port}/", f":{proxies['postgresql'].port}/")
        async with Daemon(data_dir, dsn=dsn, settings=settings) as daemon:
            api = Api(daemon)
            cuts = Cuts(seed, database, redis_server, proxies)
            async with Load(daemon, seed=seed, users=30, pause_s=0.08) as load:
                await load.progress(300)
                for number in range(CUTS):
                    await cuts.strike(number)
                    try:
                        await load.progress(BETWEEN)
                    except AssertionError as slow:
                        slow.add_note(f"after {dict(cuts.done)}: {load.refusals[-1:]}, {load.failures[-1:]}")
                        slow.add_note(f"the daemon {'runs' if daemon.running else 'is gone'}:\n{daemon.stderr[-4000:]}")
                        raise
                await load.finish()
            await api.wait_flushed(within=60)
            await api.wait_flushed(within=60, store="influxdb")
            print(f"{dict(cuts.done)}, {len(load.acknowledged)} events acknowledged")  # noqa: T201
            assert (load.refusals, load.failures, load.faults) == ([], [], [])
            await check_everywhere(influx_database, database, load.acknowledged.values())
            await check_counters(api, database, load.acknowledged.values())
            assert cuts.done.total() == CUTS
        nursery.cancel_scope.cancel()
