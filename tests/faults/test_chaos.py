"""Random faults for a while: nothing acknowledged is lost or doubled, whatever happens to whom and in which order.

``CLASSPULSE_CHAOS_S`` says for how long (the full form, ``make chaos``, is 900), ``CLASSPULSE_SEED`` repeats a run.
"""

import os
import random

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import Database, PostgresServer
from tests.e2e.reckoning import check_counters, check_rows

from .chaos import Chaos

CHAOS_S = float(os.environ.get("CLASSPULSE_CHAOS_S", "10"))
# So small that an outage of seconds fills it.
JOURNAL_BYTES = 400_000


async def dead_letters(database: Database) -> set[str]:
    return {row["event_id"] for row in await database.query("select event_id from dead_letters")}


@pytest.mark.slow
async def test_nothing_is_lost_or_doubled_in_chaos(data_dir):
    seed = int(os.environ.get("CLASSPULSE_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CLASSPULSE_SEED={seed} CLASSPULSE_CHAOS_S={CHAOS_S:.0f}")  # noqa: T201 - pytest shows it when the test fails
    with PostgresServer() as server:
        database = server.create_database()
        settings = {"JOURNAL__MAX_BYTES": str(JOURNAL_BYTES)}
        daemon = Daemon(data_dir, dsn=database.dsn, settings=settings, program="tests.faults.poisoned")
        await in_thread(daemon.start)
        try:
            async with Load(daemon, seed=seed, crowd=200, pause_s=0.1) as load:
                chaos = Chaos(seed, daemon, database, load)
                await chaos.run(CHAOS_S)
                await load.finish()
            api = Api(daemon)
            await api.wait_flushed(within=60)
            print(f"{len(load.acknowledged)} events acknowledged, {len(load.refusals)} refused, {dict(chaos.done)}")  # noqa: T201
            kept = load.acknowledged | chaos.poison
            await check_rows(database, kept)
            assert await dead_letters(database) >= chaos.poison.keys()
            await check_counters(api, database, load.acknowledged.values())
            assert load.faults == []
            assert {refusal.status for refusal in load.refusals} <= {503}
            assert await in_thread(daemon.stop) == 0, daemon.stderr
            await check_rows(database, kept)
        finally:
            daemon.kill()
