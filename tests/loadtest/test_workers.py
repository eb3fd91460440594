"""Who makes the load, where one of them does not do as it should."""

import io
import os

import msgspec
import pytest
import trio
import trio.testing

from loadtest import runner
from loadtest.display import PlainDisplay
from loadtest.errors import LoadTestError
from loadtest.ledger import Tally
from loadtest.monitor import Monitor
from loadtest.plan import Plan, clock
from loadtest.runner import Run
from loadtest.workers import Lines, Message, Messages

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


async def test_a_tick_that_is_ended_while_the_pipe_is_full_does_not_spoil_the_account(nursery):
    reading, writing = os.pipe()
    said = [
        Message(tally=Tally(not_new=["x" * 100] * 10_000)),  # more than a pipe holds
        Message(tally=Tally(requests=7)),
    ]
    async with trio.lowlevel.FdStream(reading) as incoming, trio.lowlevel.FdStream(writing) as outgoing:
        messages, lines = Messages(outgoing), Lines(incoming)
        ticking = trio.CancelScope()

        async def say():
            with ticking:
                await messages.say(said[0])
            await messages.say(said[1])

        nursery.start_soon(say)
        await trio.testing.wait_all_tasks_blocked()
        ticking.cancel()
        assert [msgspec.json.decode(await lines.next(), type=Message) for _ in said] == said
