"""Events that cannot be applied: dead letters, and a state as if they had never come."""

import random

import pytest
import trio

from actors import session as session_module
from actors.session import SessionActor
from engine.session import UserState
from tests.actors.test_recovery import assert_stored_once
from tests.actors.world import bare, folded, until
from tests.adapters.events import NOW, event, run


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Applying an event whose id begins with "early" raises at once, "late" when it is half applied."""
    original = UserState.apply

    def apply(self, event, received_at, idle_ms):
        if event.event_id.startswith("early"):
            raise KeyError("a secret of the student's")
        original(self, event, received_at, idle_ms)
        if event.event_id.startswith("late"):
            self.sessions.clear()
            raise ValueError("a secret of the student's")

    monkeypatch.setattr(UserState, "apply", apply)


def bad(kind="late", n=1, user_id="ann"):
    return run(user_id, event_id=f"{kind} {n}", has_error=True, notebook_path="bad.ipynb", cell_index=9)


def letters(world):
    return sorted((letter.seq, letter.error_type) for letter in world.store.dead_letters.values())


async def assert_as_without(world, events, poisonous):
    """Rows of all, state of the good ones, and a letter for each of the others."""
    await world.all_stored()
    await until(lambda: not len(world.mailboxes.dead_letters))
    assert world.stored_ids == [each.event_id for each in events]
    good = [each for each in events if each not in poisonous]
    assert bare(world.state()) == folded(*good)
    assert bare(await world.stored_state()) == folded(*good)
    assert sorted(letter.event.event_id for letter in world.store.dead_letters.values()) == sorted(
        each.event_id for each in poisonous
    )
    assert not world.mailboxes.unsettled.take_all()


@pytest.mark.parametrize("kind", ["early", "late"])
@pytest.mark.parametrize("stored_before", [False, True])
async def test_the_state_is_as_if_it_had_never_come(autojump_clock, world, kind, stored_before):
    before = [run(), run(has_error=True)]
    await world.post(*before)
    if stored_before:
        await world.all_stored()
    batch = [run(), bad(kind), run(cell_index=3)]
    await world.post(*batch, run("bob"))
    assert bare(world.state()) == folded(*before, batch[0], batch[2])
    assert world.state("bob").executions == 1
    await world.all_stored()
    ((seq, kind_of_error),) = letters(world)
    assert (seq, kind_of_error) == (4, "KeyError" if kind == "early" else "ValueError")
    (letter,) = world.store.dead_letters.values()
    assert letter.event == batch[1]
    assert "secret" not in repr((letter.error_type, letter.place))
    more = [run()]
    await world.post(*more)
    good = [*before, batch[0], batch[2], *more]
    await world.all_stored()
    assert bare(await world.stored_state()) == folded(*good)
    assert world.stored_sessions() == [(NOW, NOW, 5, 1)]


async def test_events_that_wait_meanwhile_keep_their_order_and_nothing_counts_twice(autojump_clock, world, monkeypatch):
    events = [run(), bad(), run()]
    await world.post(events[0])
    read, gate = world.journal.read, trio.Event()

    async def slow(*args):
        await gate.wait()
        return await read(*args)

    monkeypatch.setattr(world.journal, "read", slow)
    outcomes = []
    for each in events[1:]:
        world.router.accept([each], outcomes.append)
        await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [[True], [True]]
    assert not world.router.users["default", "ann"].settled
    assert world.state().executions == 0  # the last good one: nothing of it was stored yet
    assert world.watermark.value == 1
    world.router.finish()  # also what comes before the end of the mailbox
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await assert_as_without(world, events, [events[1]])


async def test_half_of_an_event_is_never_stored(autojump_clock, world, monkeypatch):
    """Between the fault, in the router's turn, and the moment that the student's task wakes to mend it."""
    deliver, seen = SessionActor.deliver, []

    def watched(self, delivery):
        deliver(self, delivery)
        if self._busy:
            seen.append(self.settled)

    monkeypatch.setattr(SessionActor, "deliver", watched)
    events = [run(), run(), bad()]
    await world.post(events[0])
    await world.all_stored()
    await world.post(*events[1:])
    assert seen == [False]
    await assert_as_without(world, events, [events[2]])


async def test_it_does_not_need_the_store(autojump_clock, world):
    events = [run()]
    await world.post(*events)
    await world.all_stored()
    world.store.away = "gone"
    events += [run(), bad(), run(), bad("early")]
    for each in events[1:]:
        await world.post(each)
    assert bare(world.state()) == folded(events[0], events[1], events[3])
    world.store.away = None
    await assert_as_without(world, events, [events[2], events[4]])


async def test_a_student_whose_past_is_not_read_yet(autojump_clock, world, monkeypatch):
    """A poison event comes before the past, and the past while the state is rebuilt."""
    events = [run(), run()]
    await world.post(*events)
    await world.all_stored()
    world.store.away = "gone"
    world = await world.restart()
    events += [run(), bad(), run()]
    await world.post(*events[2:])
    assert bare(world.state()) == folded(events[2], events[4])
    read, gate = world.journal.read, trio.Event()

    async def slow(*args):
        await gate.wait()
        return await read(*args)

    monkeypatch.setattr(world.journal, "read", slow)
    events.append(bad("early", 2))
    world.router.accept([events[-1]], lambda outcome: None)
    await trio.testing.wait_all_tasks_blocked()
    monkeypatch.setattr(world.journal, "read", read)
    world.store.away = None
    await until(world.recovery.done.is_set)
    assert not world.router.users["default", "ann"].settled
    gate.set()
    await assert_as_without(world, events, [events[3], events[5]])


@pytest.mark.parametrize("kinds", [["late"], ["early", "late", "late", "late", "early"]])
async def test_recovery_meets_it_too(autojump_clock, world, kinds):
    events = [run()]
    await world.post(*events)
    await world.all_stored()
    world.store.away = "gone"
    for n, kind in enumerate(kinds):
        batch = [run(), bad(kind, n), run(cell_index=n)]
        await world.post(*batch)
        events += batch
    await world.crash()
    world.store.away = None
    world = await world.restart()
    await assert_as_without(world, events, events[2::3])


async def test_an_error_that_does_not_come_again_costs_nothing(autojump_clock, world, monkeypatch):
    poisoned = UserState.apply
    failures = iter([MemoryError()])

    def once(self, event, received_at, idle_ms):
        poisoned(self, event, received_at, idle_ms)
        if event.event_id == "unlucky" and (error := next(failures, None)) is not None:
            raise error

    monkeypatch.setattr(UserState, "apply", once)
    events = [run(), run(event_id="unlucky"), run()]
    await world.post(*events)
    await assert_stored_once(world, events)
    assert letters(world) == []


async def test_a_journal_that_cannot_be_read_for_a_while(autojump_clock, world, monkeypatch):
    read, failures = world.journal.read, iter([OSError("the disk")] * 3)

    async def failing(*args):
        if (error := next(failures, None)) is not None:
            raise error
        return await read(*args)

    events = [run(), bad(), run()]
    await world.post(events[0])
    monkeypatch.setattr(world.journal, "read", failing)
    for each in events[1:]:
        await world.post(each)
    await assert_as_without(world, events, [events[1]])


# --- parking


async def test_three_in_a_minute_park_that_student_until_the_time_is_over(autojump_clock, world):
    first = [run(), bad(n=1), bad(n=2), bad(n=3), run()]
    await world.post(*first, run("bob"))
    parked = [run(), run(cell_index=5)]
    for each in parked:
        await world.post(each)
    await world.post(run("bob"))
    assert bare(world.state()) == folded(first[0])
    assert world.state("bob").executions == 2
    await world.all_stored()
    assert world.journal.trimmed_to == world.journal.last_seq  # it holds nobody back
    assert len(world.stored_ids) == 9
    await until(lambda: len(world.store.dead_letters) == 6)
    assert [kind for _, kind in letters(world)] == ["ValueError"] * 3 + ["Parked"] * 3
    ((what, class_id, user_id),) = world.mailboxes.told()
    assert (what, class_id, user_id) == ("student parked", "default", "ann")
    await trio.sleep(session_module.PARK_S)
    late = [run(), run()]
    await world.post(*late)
    assert bare(world.state()) == folded(first[0], *late)
    await world.all_stored()
    assert bare(await world.stored_state()) == folded(first[0], *late)
    assert len(world.store.dead_letters) == 6


async def test_three_in_more_than_a_minute_do_not(autojump_clock, world):
    events = []
    for n in range(5):
        batch = [bad(n=n), run()]
        await world.post(*batch)
        events += batch
        await trio.sleep(session_module.PARK_WITHIN_S / 2 + 1)
    await assert_as_without(world, events, events[::2])


async def test_a_restart_ends_it(autojump_clock, world):
    events = [bad(n=1), bad(n=2), bad(n=3), run()]
    await world.post(*events)
    assert world.state().executions == 0
    await world.all_stored()
    world = await world.restart()
    await world.post(run())
    assert world.state().executions == 1


@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_any_moment_with_poison_everything_is_there_once(autojump_clock, world, seed, monkeypatch):
    monkeypatch.setattr(session_module, "PARK_FAULTS", 10**6)
    chance = random.Random(seed)
    events, poisonous = [], []
    for turn in range(10):
        world.store.lose_answer = chance.random() < 0.4
        world.store.away = "gone" if chance.random() < 0.2 else None
        for n in range(chance.randrange(4)):
            batch = [run(), event("ann")]
            if chance.random() < 0.6:
                poisonous.append(bad(chance.choice(["early", "late"]), f"{turn}.{n}"))
                batch.insert(chance.randrange(3), poisonous[-1])
            await world.post(*batch)
            events += batch
            for _ in range(chance.randrange(30)):
                await trio.lowlevel.checkpoint()
            await trio.sleep(chance.random() / 2)
        world = await world.restart()
    world.store.lose_answer, world.store.away = False, None
    await assert_as_without(world, events, poisonous)
