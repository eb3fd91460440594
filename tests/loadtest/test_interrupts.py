"""What Ctrl-C does, at which moment of a run."""

import signal

import pytest
import trio
import trio.testing

from loadtest.interrupts import Interrupts, endings


@pytest.fixture
async def listening(nursery):
    found = Interrupts()
    run = trio.CancelScope()
    await nursery.start(found.listen, run)
    return found, run


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.parametrize("ignored", [False, True])
async def test_a_terminal_that_goes_ends_a_run_but_not_one_of_nohup(nursery, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert (signal.SIGHUP in endings()) != ignored
        if not ignored:
            run = trio.CancelScope()
            await nursery.start(Interrupts().listen, run)
            signal.raise_signal(signal.SIGHUP)
            await until(lambda: run.cancel_called)
    finally:
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        signal.signal(signal.SIGHUP, before)


async def test_before_there_is_anything_to_keep_the_first_ends_the_run(listening):
    interrupts, run = listening
    signal.raise_signal(signal.SIGINT)
    await until(lambda: run.cancel_called)
    assert not interrupts.came


async def test_within_a_block_the_first_stops_it_and_the_second_ends_the_run(listening):
    interrupts, run = listening
    stopped = []
    with interrupts.stopping_by(lambda: stopped.append(1)):
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: stopped)
        assert not run.cancel_called
        signal.raise_signal(signal.SIGINT)
        await until(lambda: run.cancel_called)
    assert (interrupts.came, stopped) == (True, [1])


async def test_between_two_blocks_the_first_stops_the_next(listening):
    interrupts, run = listening
    stopped = []
    with interrupts.stopping_by(lambda: stopped.append("load")):
        pass
    signal.raise_signal(signal.SIGINT)
    await until(lambda: interrupts.came)
    assert not run.cancel_called
    for name in ("wait", "compare"):
        with interrupts.stopping_by(lambda name=name: stopped.append(name)):
            pass
    assert stopped == ["wait"]
