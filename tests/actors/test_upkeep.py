"""Upkeep: rounds by the clock, whatever the store does."""

import trio

from actors.upkeep import Upkeep
from engine.ports import Retention
from tests.actors.world import until


async def test_a_round_at_start_and_every_hour_and_again_soon_after_one_that_failed(
    autojump_clock, world, nursery, monkeypatch
):
    rounds, tend = [], world.store.tend

    async def counted(now, retention):
        rounds.append(trio.current_time())
        await tend(now, retention)
        return 3

    monkeypatch.setattr(world.store, "tend", counted)
    upkeep = Upkeep(world.store, world.recovery, Retention(400, 1200), world.clock)
    assert upkeep.health == {}
    began = trio.current_time()
    nursery.start_soon(upkeep.run)
    await until(lambda: rounds)
    assert upkeep.health == {"stray_rows": 3}
    world.store.away = "gone"
    await trio.sleep(3750)
    assert [round(at - began) for at in rounds] == [0, 3600, 3660, 3720]


async def test_sums_go_on_until_all_is_in_them_with_rests_and_begin_again_soon(
    autojump_clock, world, nursery, monkeypatch
):
    steps, more = [], [True, True, False]

    async def counted():
        steps.append(trio.current_time())
        await trio.sleep(1)
        return more.pop(0) if more else False

    monkeypatch.setattr(world.store, "sum_up", counted)
    upkeep = Upkeep(world.store, world.recovery, Retention(400, 1200), world.clock)
    began = trio.current_time()
    nursery.start_soon(upkeep.run)
    await trio.sleep(45)
    assert [round(at - began) for at in steps] == [0, 4, 8, 39]
