"""``kill -9`` at random moments under load: nothing acknowledged is lost, and nothing counts twice.

``CLASSPULSE_KILLS`` says how often (the full form is 30), ``CLASSPULSE_SEED`` repeats a run.
"""

import os
import random

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.reckoning import check_counters, check_rows

KILLS = int(os.environ.get("CLASSPULSE_KILLS", "4"))
# How long the daemon lives after it is ready: from in the middle of its recovery to some flushes and trims later.
LIFE_S = (0.0, 2.0)
# More students than one flush takes the states of, so that some states are stored ahead of others.
CROWD = 1500
# Some kills hit the start itself.
KILLED_AT_START = 0.25
STARTING_S = (0.0, 1.5)


@pytest.mark.slow
async def test_nothing_is_lost_or_counted_twice(database, data_dir):
    seed = int(os.environ.get("CLASSPULSE_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CLASSPULSE_SEED={seed} CLASSPULSE_KILLS={KILLS}")  # noqa: T201 - pytest shows it when the test fails
    moments = random.Random(seed)
    daemon = await in_thread(Daemon(data_dir, dsn=database.dsn).start)
    try:
        async with Load(daemon, seed=seed, crowd=CROWD) as load:
            for _ in range(KILLS):
                await trio.sleep(moments.uniform(*LIFE_S))
                await in_thread(daemon.kill)
                if moments.random() < KILLED_AT_START:
                    await in_thread(daemon.launch)
                    await trio.sleep(moments.uniform(*STARTING_S))
                    await in_thread(daemon.kill)
                await in_thread(daemon.start)
                await load.progress(1)
            await load.finish()
        api = Api(daemon)
        await api.wait_flushed()
        await check_rows(database, load.acknowledged)
        await check_counters(api, database, load.acknowledged.values())
        assert load.faults == []
        assert {refusal.status for refusal in load.refusals} <= {503}
        assert await in_thread(daemon.stop) == 0, daemon.stderr
        await check_rows(database, load.acknowledged)
    finally:
        daemon.kill()
