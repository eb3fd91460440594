"""Crashes, gaps, and stores that are away: exactly once, whatever happens."""

import random

import pytest
import trio

from actors import states as states_module
from actors.recovery import Resume, resume_from
from adapters.memory import MemoryJournal, MemoryStore
from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.ports import StoredOffsets
from tests.actors.world import Clock, World, bare, folded, until
from tests.adapters.events import NOW, run


async def assert_stored_once(world, events):
    """Every row once, in order, and the state and sessions as one clean run makes them."""
    await world.all_stored()
    assert world.stored_ids == [event.event_id for event in events]
    for user_id in {event.user_id for event in events}:
        mine = [event for event in events if event.user_id == user_id]
        expected = folded(*mine, user_id=user_id)
        stored = await world.stored_state(user_id)
        assert bare(stored) == expected
        last = max(seq for seq, event in enumerate(events, 1) if event.user_id == user_id)
        assert stored.position(world.journal.id.hex) == last, "or a crash now would apply some of them again"
        assert world.stored_sessions(user_id) == sorted(
            (session.start, session.end, session.executions, session.errors)
            for session in expected["sessions"].values()
        )
        if ("default", user_id) in world.router.users:
            assert bare(world.state(user_id)) == expected


async def test_state_is_whole_after_a_restart(autojump_clock, world):
    events = [run(), run("bob"), run(has_error=True)]
    await world.post(*events)
    await world.all_stored()
    world = await world.restart()
    assert bare(world.state()) == folded(events[0], events[2])
    assert world.broadcaster.overview("default")["state"]["summary"]["total_students"] == 2
    more = [run()]
    await world.post(*more)
    await assert_stored_once(world, events + more)


async def test_what_was_not_stored_is_replayed_over_the_snapshots(autojump_clock, world):
    stored = [run(), run("bob")]
    await world.post(*stored)
    await world.all_stored()
    world.store.away = "gone"
    lost = [run(), run("bob"), run("new"), run(has_error=True)]
    await world.post(*lost)
    await world.crash()
    world.store.away = None
    world = await world.restart()
    await assert_stored_once(world, stored + lost)


async def test_what_a_snapshot_holds_is_not_applied_again(autojump_clock, world):
    """The commit went through and its answer was lost, and then the daemon was killed."""
    events = [run(), run()]
    world.store.lose_answer = True
    await world.post(*events)
    await until(lambda: not world.store.lose_answer)
    await world.crash()
    world = await world.restart()
    await assert_stored_once(world, events)


async def test_a_snapshots_offset_within_a_commit(autojump_clock, world, monkeypatch):
    """The flush of a commit's rows holds the states of some of its students only; then the daemon is killed."""
    monkeypatch.setattr(states_module, "_MAX_SNAPSHOTS_BESIDE_ROWS", 1)
    events = [run("ann"), run("bob"), run("bob"), run("cid")]
    write = world.store.write
    waiting = world.dirty.waiting
    monkeypatch.setattr(world.dirty, "waiting", lambda due: sorted(waiting(due), key=lambda item: item[0]))

    async def write_once(flush):
        await write(flush)
        world.store.away = "gone"

    monkeypatch.setattr(world.store, "write", write_once)
    await world.post(*events)
    await until(lambda: world.store.away)
    await world.crash()
    offsets = world.store._offsets[world.journal.id]
    assert (offsets.rows, offsets.snapshots) == (4, 1)
    monkeypatch.undo()
    world.store.away = None
    world = await world.restart()
    await assert_stored_once(world, events)


async def test_a_notebook_whose_size_only_the_replay_saw_is_stored(autojump_clock, world):
    world.store.away = "gone"
    await world.post(run(cell_index=7, total_cells=12))
    await world.crash()
    world.store.away = None
    world = await world.restart()
    await world.all_stored()
    await until(lambda: not len(world.mailboxes.notebooks))
    assert world.store.totals["default", "a.ipynb"].total_cells == 12
    assert world.store.totals["default", "a.ipynb"].highest_index == 7


async def test_live_state_goes_on_without_the_past_and_joins_it_later(autojump_clock, nursery, world):
    early = [run(), run(has_error=True)]
    await world.post(*early)
    await world.all_stored()
    world.store.away = "gone"
    world = await world.restart()
    late = [run(), run("bob")]
    await world.post(*late)
    assert bare(world.state()) == folded(late[0])
    assert not world.router.users["default", "ann"].settled
    await trio.sleep(30)
    assert world.watermark.value == 0  # the past is not applied yet
    world.store.away = None
    await assert_stored_once(world, early + late)


async def test_a_store_that_comes_and_goes_has_everything_once(autojump_clock, world):
    events = []
    chance = random.Random(7)
    for turn in range(60):
        world.store.away = "gone" if chance.random() < 0.3 else None
        world.store.lose_answer = chance.random() < 0.3
        batch = [run(chance.choice("abc"), cell_index=chance.randrange(5)) for _ in range(chance.randrange(1, 4))]
        await world.post(*batch)
        events += batch
        await trio.sleep(chance.random() * 2)
        if turn % 15 == 14:
            world = await world.restart()
    world.store.away, world.store.lose_answer = None, False
    await assert_stored_once(world, events)
    assert world.journal.trimmed_to == len(events)


@pytest.mark.parametrize("seed", range(5))
async def test_killed_at_any_moment_everything_is_there_once(autojump_clock, world, seed):
    chance = random.Random(seed)
    events = []
    for _ in range(12):
        world.store.lose_answer = chance.random() < 0.4
        for _ in range(chance.randrange(4)):
            batch = [
                run(chance.choice("ab"), time=NOW + chance.randrange(10_000_000), session_id=chance.choice([None, "s"]))
                for _ in range(chance.randrange(1, 4))
            ]
            await world.post(*batch)
            events += batch
            for _ in range(chance.randrange(30)):
                await trio.lowlevel.checkpoint()
            await trio.sleep(chance.random() / 2)
        world = await world.restart()
    world.store.lose_answer = False
    await assert_stored_once(world, events)


async def test_health_tells_of_a_store_that_is_away(autojump_clock, world):
    await world.post(run())
    await world.all_stored()
    world.store.away = "the plug was pulled"
    await world.post(run())
    await until(lambda: world.writer.health["status"] == "unhealthy")
    assert "the plug was pulled" in world.writer.health["error"]
    assert world.writer.health["lag_events"] == 1
    world.store.away = None
    await world.all_stored()
    assert "error" not in world.writer.health


@pytest.mark.parametrize("error", [RuntimeError("unforeseen"), StoreRefusedError("permission denied")], ids=repr)
async def test_a_store_that_fails_in_a_way_nobody_foresaw_loses_nothing(autojump_clock, world, monkeypatch, error):
    """Also what the flush had taken out of mailboxes, and the students whose states it held."""
    write = world.store.write
    failures = []

    async def fail_once(flush):
        if not failures:
            failures.append(flush)
            raise error
        await write(flush)

    await world.post(run("bob"))
    await world.all_stored()
    monkeypatch.setattr(world.store, "write", fail_once)
    events = [run("ann", cell_index=5), run("bob", cell_index=2)]
    await world.post(*events)
    await until(lambda: failures and len(world.stored_ids) == 3)
    await world.all_stored()
    assert (await world.stored_state("ann")).executions == 1
    assert (await world.stored_state("bob")).executions == 2
    assert world.store.totals["default", "a.ipynb"].highest_index == 5


async def test_a_load_that_is_refused_for_a_while_loses_no_student(autojump_clock, world, monkeypatch):
    snapshots = world.store.snapshots
    refused = []

    async def refuse_once(keys):
        if not refused:
            refused.append(list(keys))
            raise StoreRefusedError("permission denied")
        return await snapshots(keys)

    monkeypatch.setattr(world.store, "snapshots", refuse_once)
    await world.post(run())
    await until(lambda: refused)
    await world.all_stored()
    assert (await world.stored_state()).executions == 1


# --- gaps


@pytest.fixture
async def trimmed(autojump_clock, world):
    """A journal whose first events are trimmed, and one that is not stored yet."""
    await world.post(run(), run())
    await world.all_stored()
    assert world.journal.trimmed_to == 2
    world.store.away = "gone"
    await world.post(run())
    await world.crash()
    world.store.away = None
    return world


async def test_a_fresh_database_that_lacks_trimmed_events_is_refused(autojump_clock, trimmed):
    world = await trimmed.restart(store=MemoryStore())
    assert "events 1 to 2" in str(world.recovery.refused)
    assert "--accept-gap" in str(world.recovery.refused)
    assert world.store.rows == {}
    assert world.writer.health["status"] == "unhealthy"


async def test_an_accepted_gap_is_gone_over_and_not_asked_about_again(autojump_clock, trimmed):
    world = await trimmed.restart(store=MemoryStore(), accept_gap=True)
    assert world.recovery.refused is None
    await world.post(run())
    await world.all_stored()
    assert [seq for _, seq in sorted(world.store.rows)] == [3, 4]
    world = await world.restart()
    assert world.recovery.refused is None
    assert world.state().executions == 2


async def test_a_database_that_is_ahead_of_the_journal_is_refused(autojump_clock, trimmed):
    journal = MemoryJournal(clock=Clock())
    journal.id = trimmed.journal.id
    world = await trimmed.restart(journal=journal)
    assert "older than the database" in str(world.recovery.refused)


async def test_an_old_database_takes_a_new_journal_from_its_first_event(autojump_clock, trimmed):
    world = await trimmed.restart(journal=MemoryJournal(clock=trimmed.clock))
    assert world.recovery.refused is None
    assert world.state().executions == 2
    await world.post(run())
    await world.all_stored()
    assert (await world.stored_state()).executions == 3
    assert len(world.store.rows) == 3


def test_where_to_go_on():
    journal = MemoryJournal(clock=Clock())
    journal.last_seq, journal.trimmed_to = 10, 4
    assert resume_from(journal, StoredOffsets(7, 5), accept_gap=False) == Resume(7, 5)
    assert resume_from(journal, StoredOffsets(4, 4), accept_gap=False) == Resume(4, 4)
    assert resume_from(journal, StoredOffsets(0, 0), accept_gap=True) == Resume(4, 4)
    assert resume_from(journal, StoredOffsets(7, 2), accept_gap=True) == Resume(7, 4)
    for behind in (StoredOffsets(3, 4), StoredOffsets(7, 3)):
        with pytest.raises(StoreRefusedError, match="events 4 to 4"):
            resume_from(journal, behind, accept_gap=False)
    with pytest.raises(StoreRefusedError, match="seq 11"):
        resume_from(journal, StoredOffsets(11, 5), accept_gap=True)


async def test_two_worlds_do_not_share_anything(autojump_clock, nursery):
    one, other = await World(nursery).start(), await World(nursery).start()
    await one.post(run())
    await one.all_stored()
    assert other.store.rows == {}
    assert other.router.users == {}


class Halves(MemoryStore):
    """As two shards: students with an initial up to "m", of whom one may be away, and the others."""

    half_away = False
    failures = ()

    def groups(self, keys):
        keys = list(keys)
        return [half for half in ([k for k in keys if k[1] <= "m"], [k for k in keys if k[1] > "m"]) if half]

    async def snapshots(self, keys):
        keys = list(keys)
        if self.half_away and any(user_id <= "m" for _, user_id in keys):
            raise StoreUnavailableError("half is away")
        if self.failures:
            error, *self.failures = self.failures
            raise error
        return await super().snapshots(keys)


async def test_a_keeper_that_is_away_keeps_only_its_own_students_waiting(autojump_clock, nursery):
    store = Halves()
    world = await World(nursery, store=store).start()
    store.half_away = True
    events = [run("ann"), run("zoe")]
    await world.post(*events)
    await until(lambda: world.router.users["default", "zoe"].settled)
    assert not world.router.users["default", "ann"].settled
    await until(lambda: ("default", "zoe") in store.states)
    store.half_away = False
    await until(lambda: world.router.users["default", "ann"].settled)
    await assert_stored_once(world, events)


@pytest.mark.parametrize("error", [RuntimeError("unforeseen"), StoreRefusedError("a state cannot be read")], ids=repr)
async def test_a_keeper_that_fails_loses_no_student_of_the_others(autojump_clock, nursery, error):
    store = Halves()
    world = await World(nursery, store=store).start()
    store.failures = [error]
    events = [run("ann"), run("zoe")]
    await world.post(*events)
    await assert_stored_once(world, events)


async def test_a_past_that_cannot_be_read_is_told_of_until_it_can(autojump_clock, world, monkeypatch):
    snapshots = world.store.snapshots
    mended = False

    async def refuse(keys):
        if not mended:
            raise StoreRefusedError("the state of 'ann' cannot be read")
        return await snapshots(keys)

    monkeypatch.setattr(world.store, "snapshots", refuse)
    await world.post(run())
    await until(lambda: "the state of 'ann' cannot be read" in world.writer.health.get("error", ""))
    mended = True
    await world.all_stored()
    assert "error" not in world.writer.health
    assert (await world.stored_state()).executions == 1
