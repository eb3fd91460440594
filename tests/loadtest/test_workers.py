"""Who makes the load, where one of them does not do as it should."""

import io

import pytest
import trio

from loadtest import runner
from loadtest.display import PlainDisplay
from loadtest.errors import LoadTestError
from loadtest.ledger import Tally
from loadtest.monitor import Monitor
from loadtest.plan import Plan, clock
from loadtest.runner import Run

PLAN = Plan(
    "classroom-200", "abcd1234", "1", "http://127.0.0.1:1", None, 1, 1, 0, 1.0, ((0.0, 1.0), (0.1, 1.0)), grace_s=0.0
)


class Fake:
    """A worker that plays nothing."""

    def __init__(self, *, hangs):
        self.tally, self.entries = Tally(), []
        self.hangs = hangs

    async def prepare(self):
        pass

    async def run(self, clock, told):
        if self.hangs:
            await trio.sleep_forever()

    def stop(self):
        pass


async def test_a_worker_that_hangs_is_named_in_a_line(monkeypatch):
    monkeypatch.setattr(runner, "ACCOUNT_WITHIN_S", 0.2)
    run = Run(PLAN, PlainDisplay(io.StringIO()), promises=(), workers=3)
    workers = [Fake(hangs=False), Fake(hangs=True), Fake(hangs=True)]
    timer = clock(0)
    with trio.fail_after(10), pytest.raises(ExceptionGroup) as told:
        await run._load(workers, timer, Monitor(PLAN.target, timer, None), [])
    (error,) = told.value.exceptions
    assert isinstance(error, LoadTestError)
    assert str(error) == "worker 1, 2 told no account within 1 s"
