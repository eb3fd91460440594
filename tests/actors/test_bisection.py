"""A flush that the store refuses for what is in it: the rest is stored, exactly once."""

import pytest
import trio

from actors import states as states_module
from tests.actors.test_recovery import assert_stored_once
from tests.actors.world import bare, folded, until
from tests.adapters.events import run


def refuse(world, *bad):
    """The store will not have these: ids of events, keys of students."""
    world.store.refuses = lambda item: getattr(item, "event_id", item) in bad


async def held_back(world, *batches):
    """Committed one by one while the store is away, so that one flush holds them all."""
    world.store.away = "gone"
    for batch in batches:
        await world.post(*batch)
    await trio.sleep(5)


@pytest.mark.parametrize("at", [{0}, {7}, {19}, {0, 1, 19}, set(range(20))], ids=str)
async def test_bad_rows_become_dead_letters_and_the_rest_is_stored(autojump_clock, world, at):
    events = [run("ab"[n % 2]) for n in range(20)]
    await held_back(world, events[:1], events[1:8], events[8:])
    refuse(world, *(events[n].event_id for n in at))
    world.store.away = None
    await world.all_stored()
    assert world.stored_ids == [each.event_id for n, each in enumerate(events) if n not in at]
    assert sorted(seq - 1 for _, seq in world.store.dead_letters) == sorted(at)
    for letter in world.store.dead_letters.values():
        assert (letter.event, letter.error_type, letter.place) == (events[letter.seq - 1], "ValueError", "store:memory")
    assert bare(await world.stored_state("a")) == folded(*events[::2], user_id="a")  # it was applied
    assert world.journal.trimmed_to == 20
    more = [run("a")]
    await world.post(*more)
    await world.all_stored()
    assert world.stored_ids[-1] == more[0].event_id


@pytest.mark.parametrize("how", ["away", "lose_answer", "crash"])
@pytest.mark.parametrize("writes", range(1, 12))
async def test_interrupted_at_any_write_it_goes_on_from_there(autojump_clock, world, how, writes):
    events = [run() for _ in range(9)]
    await held_back(world, events[:2], events[2:])
    refuse(world, events[4].event_id)
    write, count = world.store.write, 0

    async def interrupted(flush):
        nonlocal count
        count += 1
        if count == writes:
            if how == "lose_answer":
                world.store.lose_answer = True
            elif how == "away":
                world.store.away = "gone again"
            else:
                await trio.sleep_forever()
        await write(flush)

    world.store.write = interrupted
    world.store.away = None
    await trio.sleep(15)
    world.store.away = None
    if count >= writes and how == "crash":
        world = await world.restart()
    await world.all_stored()
    assert world.stored_ids == [each.event_id for n, each in enumerate(events) if n != 4]
    assert [letter.event for letter in world.store.dead_letters.values()] == [events[4]]
    assert bare(await world.stored_state()) == folded(*events)


async def test_a_state_that_is_refused_holds_nobody_back_and_is_tried_again_later(autojump_clock, world):
    refuse(world, ("default", "ann"))
    events = [run("ann"), run("bob")]
    await world.post(*events)
    await world.all_stored()
    assert len(world.stored_ids) == 2
    assert ("default", "ann") not in world.store.states
    assert world.journal.trimmed_to == 2
    assert ("state could not be stored", "default", "ann") in world.mailboxes.told()
    refuse(world)
    events.append(run("ann"))
    await world.post(events[-1])
    await trio.sleep(states_module._REFUSED_S)
    await assert_stored_once(world, events)


async def test_a_letter_that_is_refused_too_is_given_up(autojump_clock, world):
    bad = run()
    world.store.refuses = lambda item: bad.event_id in repr(item)
    await world.post(run(), bad, run())
    await until(lambda: len(world.stored_ids) == 2)
    assert world.store.dead_letters == {}
    await world.post(run())
    await until(lambda: len(world.stored_ids) == 3)
