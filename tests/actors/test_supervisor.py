"""Restarts, with backoff."""

import pytest
import trio

from actors.supervisor import supervise
from engine.errors import StartError, StoreUnavailableError


class Failing:
    """Fails ``times`` times, each after ``lasting`` seconds, then returns."""

    def __init__(self, times, error=None, lasting=0.0):
        self.left = times
        self.error = error or RuntimeError("the test wants it")
        self.lasting = lasting
        self.began = []

    async def __call__(self):
        self.began.append(trio.current_time())
        await trio.sleep(self.lasting)
        if self.left:
            self.left -= 1
            raise self.error

    @property
    def pauses(self):
        return [round(b - a - self.lasting, 3) for a, b in zip(self.began, self.began[1:], strict=False)]


@pytest.mark.parametrize("error", [RuntimeError("x"), StoreUnavailableError("x")])
async def test_it_waits_longer_after_each_failure_up_to_a_bound(autojump_clock, error):
    actor = Failing(9, error)
    await supervise("actor", actor)
    assert len(actor.pauses) == 9
    for pause, longest in zip(actor.pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0], strict=True):
        assert longest / 2 <= pause <= longest
    assert len({pause / longest for pause, longest in zip(actor.pauses[-3:], [5.0] * 3, strict=True)}) > 1


async def test_one_that_held_out_for_a_while_begins_anew(autojump_clock):
    actor = Failing(5, lasting=61)
    await supervise("actor", actor)
    assert len(actor.pauses) == 5
    assert all(0.05 <= pause <= 0.1 for pause in actor.pauses)


async def test_one_that_returns_is_done(autojump_clock):
    actor = Failing(0)
    await supervise("actor", actor)
    assert len(actor.began) == 1


async def test_a_start_error_passes(autojump_clock):
    actor = Failing(1, StartError("no"))
    with pytest.raises(StartError):
        await supervise("actor", actor)


async def test_it_never_takes_its_siblings_down_and_can_be_cancelled(autojump_clock):
    actor = Failing(1_000_000)
    with trio.move_on_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, "failing", actor)
            nursery.start_soon(supervise, "well", trio.sleep_forever)
    assert len(actor.began) > 10
