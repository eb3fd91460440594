"""Two stores behind one journal: PostgreSQL's twin keeps states and offsets, the other takes cell events and samples."""

from itertools import pairwise

import pytest
import trio

from adapters.memory import MemorySeries, MemoryStore
from engine.errors import StoreRefusedError, StoreUnavailableError
from tests.actors.world import World, until
from tests.adapters.events import event, run

AWAY = StoreUnavailableError("series: the plug was pulled")


@pytest.fixture
async def world(nursery):
    return await World(nursery, store=MemoryStore(holds_series=False), series=MemorySeries()).start()


async def all_stored(world):
    await world.all_stored()
    await until(lambda: world.follower.lag == 0 and world.follower.health["status"] == "healthy")
    # Its offset goes with the next flush of the other.
    await until(lambda: world.journal.trimmed_to == world.journal.last_seq)


def point_ids(world):
    return [event.event_id for _, event in sorted(world.series.points.items())]


async def offset(world):
    return (await world.store.offsets(world.journal.id)).others.get("series")


async def test_cell_events_go_one_way_and_all_others_the_other(autojump_clock, world):
    cells, others = [run(), run("bob")], [event(), event("bob", event_type="notebook_opened", notebook_path="a.ipynb")]
    await world.post(cells[0], *others)
    await world.post(cells[1])
    await all_stored(world)
    assert point_ids(world) == [each.event_id for each in cells]
    assert world.stored_ids == [each.event_id for each in others]
    assert await offset(world) == 4
    assert world.series.written == 2


async def test_one_that_is_away_does_not_hold_back_the_other(autojump_clock, world):
    world.series.away = AWAY
    for _ in range(3):
        await world.post(run(), event())
    await world.all_stored()
    assert len(world.stored_ids) == 3
    assert world.journal.trimmed_to == 0  # it still lacks them
    await until(lambda: world.follower.health["status"] == "unhealthy")
    assert "the plug was pulled" in world.follower.health["error"]
    assert (world.follower.lag, world.writer.lag) == (6, 0)
    world.series.away = None
    await all_stored(world)
    assert len(point_ids(world)) == 3

    world.store.away = "gone"
    await world.post(run(), event())
    await until(lambda: world.follower.lag == 0)
    assert len(point_ids(world)) == 4
    assert world.follower.health["status"] == "healthy"
    assert world.writer.lag == 2
    assert world.journal.trimmed_to == 6
    world.store.away = None
    await all_stored(world)


@pytest.mark.parametrize("moment", ["before", "lost answer", "before the offset is kept"])
async def test_killed_at_any_moment_no_point_is_missing(autojump_clock, world, moment):
    await world.post(run())
    await all_stored(world)
    if moment == "before":
        world.series.away = AWAY
    elif moment == "lost answer":
        world.series.lose_answer = True
    else:
        world.store.away = "gone"
    sent = [run(), run("bob"), event()]
    await world.post(*sent)
    if moment == "before the offset is kept":
        await until(lambda: world.follower.lag == 0)
    else:
        await until(lambda: world.follower.health["status"] == "unhealthy")
    world.series.away = world.store.away = None
    world = await world.restart()
    await all_stored(world)
    assert len(point_ids(world)) == 3
    assert await offset(world) == 4


async def test_a_bad_point_is_a_dead_letter_and_the_rest_is_written(autojump_clock, world):
    world.series.away = AWAY
    events = [run("ab"[n % 2]) for n in range(9)]
    await world.post(*events[:4])
    await world.post(*events[4:])
    world.series.refuses = lambda each: each in (events[2], events[7])
    world.series.away = None
    await all_stored(world)
    assert point_ids(world) == [each.event_id for n, each in enumerate(events) if n not in {2, 7}]
    letters = {letter.seq: letter for letter in world.store.dead_letters.values()}
    assert {seq: letter.event for seq, letter in letters.items()} == {3: events[2], 8: events[7]}
    assert {(letter.error_type, letter.place) for letter in letters.values()} == {("MalformedLine", "store:series")}


async def test_a_dead_letter_is_kept_no_later_than_the_offset_that_passes_it(autojump_clock, world):
    world.store.away = "gone"
    bad = run()
    world.series.refuses = lambda each: each == bad
    await world.post(bad, run())
    await until(lambda: world.follower.lag == 0)
    world.store.away = None
    world = await world.restart()  # neither was kept: it is refused again
    await all_stored(world)
    assert [letter.event for letter in world.store.dead_letters.values()] == [bad]


async def test_it_is_left_alone_for_as_long_as_it_asks(autojump_clock, world):
    tries = []
    world.series.away = StoreUnavailableError("series: slower", retry_after_s=40)
    reach = world.series._reach

    async def noted():
        tries.append(trio.current_time())
        await reach()

    world.series._reach = noted
    await world.post(run())
    await trio.sleep(100)
    world.series.away = None
    await all_stored(world)
    waits = [later - earlier for earlier, later in pairwise(tries[:-1])]
    assert waits
    assert all(40 <= wait < 50 for wait in waits[:2]), waits


async def test_without_a_wish_the_pauses_grow_and_end_with_success(autojump_clock, world):
    tries = []
    world.series.away = AWAY
    reach = world.series._reach

    async def noted():
        tries.append(trio.current_time())
        await reach()

    world.series._reach = noted
    await world.post(run())
    await trio.sleep(120)
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert waits[1] <= 2  # the writer may have been at the second pause by then
    assert max(waits) <= 5
    assert 2 < sum(waits[-10:]) / 10 < 5
    assert len(set(waits[-10:])) > 5  # by chance
    world.series.away = None
    await all_stored(world)
    tries.clear()
    world.series.away = AWAY
    await world.post(run())
    await until(lambda: len(tries) >= 3)
    assert tries[1] - tries[0] <= 0.5


async def test_samples_go_to_it_latest_first_served_and_a_few_at_a_time(autojump_clock, world):
    world.series.away = AWAY
    for n in range(3):
        await world.post(*(run(f"student{user}", cell_index=n) for user in range(7)))
        await world.all_stored()
    world.series.away = None
    await until(lambda: len(world.series.samples) == 7)
    assert {sample.user_id for sample in world.series.samples} == {f"student{user}" for user in range(7)}
    assert {sample.completed_cells for sample in world.series.samples} == {3}
    assert world.store.samples == []


async def test_a_lost_answer_costs_no_sample(autojump_clock, world):
    await world.post(run())
    await until(lambda: world.series.samples)
    world.series.lose_answer = True
    await world.post(run(cell_index=1))
    await until(lambda: {sample.completed_cells for sample in world.series.samples} == {1, 2})


# --- taken up, left


async def test_taken_up_where_the_rows_of_the_other_end(autojump_clock, nursery):
    world = await World(nursery).start()
    await world.post(run(), event())
    await world.all_stored()
    await world.crash()
    world.store._holds_series = False
    world = await World(
        nursery, journal=world.journal, store=world.store, series=MemorySeries(), clock=world.clock
    ).start()
    world.series.away = AWAY
    new = [run(), run()]
    await world.post(*new)
    await world.all_stored()
    assert await offset(world) == 2
    world = await world.restart()
    world.series.away = None
    await all_stored(world)
    assert point_ids(world) == [each.event_id for each in new]


async def test_left_only_when_it_has_everything(autojump_clock, nursery, world):
    await world.post(run())
    world.series.away = AWAY
    await world.post(run(), event())
    await world.all_stored()
    world = await world.restart(series=None)
    assert isinstance(world.recovery.refused, StoreRefusedError)
    assert "lacks cell events of seq" in str(world.recovery.refused)
    world.series = MemorySeries()
    world = await world.restart()
    await all_stored(world)
    world = await world.restart(series=None)
    assert world.recovery.refused is None
    await world.post(run())
    await world.all_stored()
    assert await offset(world) is None
    world = await world.restart(series=MemorySeries())  # taken up anew: no gap
    assert world.recovery.refused is None


async def test_left_with_an_accepted_gap(autojump_clock, world):
    world.series.away = AWAY
    await world.post(run())
    await world.all_stored()
    world = await world.restart(series=None, accept_gap=True)
    assert world.recovery.refused is None
    await world.post(run())
    await until(lambda: world.journal.trimmed_to == 2)


async def test_a_gap_is_refused_and_can_be_accepted(autojump_clock, world):
    await world.post(run(), run())
    await all_stored(world)
    stored = world.store._offsets[world.journal.id]
    stored.others["series"] = 1  # as an older database has it
    world = await world.restart()
    assert "series lacks events 2 to 2" in str(world.recovery.refused)
    world = await world.restart(accept_gap=True)
    assert world.recovery.refused is None
    await world.post(run())
    await all_stored(world)
    assert await offset(world) == 3


async def test_an_offset_past_the_journal_is_refused(autojump_clock, world):
    await world.post(run(), run())
    await all_stored(world)
    world.store._offsets[world.journal.id].others["series"] = 7
    world = await world.restart()
    assert "data_dir is older" in str(world.recovery.refused)
