"""From the edge to live state: router, session actors, watermark, retirement."""

import sys

import pytest
import trio

from actors import router as router_module
from actors import states as states_module
from actors.session import SessionActor
from engine.errors import UnavailableError
from engine.event import Commit
from engine.session import UserState
from tests.actors.world import RETIRE_MS, Watcher, bare, folded, until
from tests.adapters.events import NOW, event, run


@pytest.fixture
def gate(monkeypatch):
    """Actors of the user "slow" have something in hand until it is set."""
    made = trio.Event()
    original, deliver = SessionActor.run, SessionActor.deliver

    async def held(self):
        if self.key[1] == "slow":
            await made.wait()
        await original(self)

    def into_the_mailbox(self, delivery):
        if self.key[1] == "slow" and not made.is_set():
            self._busy = True
        deliver(self, delivery)

    monkeypatch.setattr(SessionActor, "run", held)
    monkeypatch.setattr(SessionActor, "deliver", into_the_mailbox)
    return made


async def accept(world, *events):
    """Accepted and durable, applied or not."""
    outcomes = []
    world.router.accept(list(events), outcomes.append)
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes
    return outcomes[0]


async def test_events_become_the_state_of_their_student(autojump_clock, world):
    mine = [run(), run(has_error=True), run("ann", notebook_path="b.ipynb")]
    others = [run("bob"), run("ann", class_id="other")]
    await world.post(*mine, *others)
    assert bare(world.state()) == folded(*mine)
    assert world.state("bob").executions == 1
    assert world.state("ann", "other").executions == 1


async def test_of_a_commit_that_is_applied_nothing_is_kept(autojump_clock, world):
    """Let go late, its events are freed when the processor's cache holds others (docs/performance.md)."""
    once = run()
    world.journal.last_seq += 1
    await world.router.commit(Commit(world.journal.last_seq, NOW, [once]))
    await trio.testing.wait_all_tasks_blocked()
    assert world.state().executions == 1
    assert sys.getrefcount(once) == 2  # ours, and the call's


async def test_a_repeat_is_not_applied(autojump_clock, world):
    once = run()
    assert await world.post(once, once) == [True, False]
    assert await world.post(once) == [False]
    assert world.state().executions == 1


async def test_the_watermark_moves_only_when_all_is_applied(autojump_clock, world, gate):
    await accept(world, run("ann"))
    assert world.watermark.value == 1
    await accept(world, run("ann"), run("slow"))
    await accept(world, run("ann"))
    assert world.state("ann").executions == 3
    assert world.watermark.value == 1
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.watermark.value == 4


async def test_while_rows_flow_a_state_is_stored_now_and_then_and_at_once_when_they_stop(autojump_clock, world):
    write, stored = world.store.write, []

    async def noted(flush):
        await write(flush)
        stored.extend((trio.current_time(), bool(flush.commits)) for _ in flush.snapshots)

    world.store.write = noted
    began = trio.current_time()
    while trio.current_time() < began + 20:
        await world.post(run())
        await trio.sleep(0.1)
    busy = [at for at, rows in stored if rows]
    assert 5 <= len(busy) <= 10  # of some forty flushes
    stopped = trio.current_time()
    await world.all_stored()
    assert trio.current_time() - stopped < 2 * 0.5  # the flush interval of this world
    assert (await world.stored_state()).executions == world.state().executions


async def test_under_a_steady_load_a_flush_waits_for_its_interval(autojump_clock, world, monkeypatch):
    """What comes while a flush is written is no reason for another at once, nor are states that it had no room for."""
    monkeypatch.setattr(states_module, "_MAX_SNAPSHOTS_BESIDE_ROWS", 2)
    write, began_at = world.store.write, []

    async def slow(flush):
        began_at.append(trio.current_time())
        await trio.sleep(0.05)
        await write(flush)

    world.store.write = slow
    for number in range(500):
        world.router.accept([run(f"student{number % 20}")], lambda outcome: None)
        await trio.sleep(0.01)
    assert 5 <= len(began_at) <= 12  # 5 s, one each 0.5 s
    await world.all_stored()
    assert len(world.stored_ids) == 500


async def test_rows_are_stored_up_to_the_watermark_only(autojump_clock, world, gate):
    await accept(world, run("ann"))
    await accept(world, run("slow"))
    await accept(world, run("ann"))
    await trio.sleep(5)
    assert len(world.stored_ids) == 1
    gate.set()
    await world.all_stored()
    assert len(world.stored_ids) == 3


async def test_a_full_mailbox_refuses_that_user_only(autojump_clock, world, gate):
    refused = None
    for _ in range(router_module.MAILBOX_DELIVERIES):
        try:
            await accept(world, run("slow"))
        except UnavailableError as error:
            refused = error
            break
    assert refused is not None
    assert "slow" in str(refused)
    before = world.journal.last_seq
    with pytest.raises(UnavailableError):
        world.router.accept([run("ann"), run("slow")], lambda outcome: None)
    assert await accept(world, run("ann")) == [True]
    assert world.journal.last_seq == before + 1
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.state("slow").executions == before
    assert await accept(world, run("slow")) == [True]


async def test_the_router_never_waits_for_a_mailbox_however_much_was_under_way(autojump_clock, world, gate):
    """Everything that was let in before the mailbox counted as full finds room in it."""
    outcomes = []
    for _ in range(20):
        world.router.accept([run("slow")], outcomes.append)
    await trio.testing.wait_all_tasks_blocked()
    assert len(outcomes) == 20
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.state("slow").executions == 20


# --- events that cannot be applied


@pytest.fixture
def poison(monkeypatch):
    """Applying an event of type "poison" raises."""
    original = UserState.apply

    def apply(self, event, received_at, idle_ms):
        if event.event_type == "poison":
            raise KeyError("a secret of the student's")
        original(self, event, received_at, idle_ms)

    monkeypatch.setattr(UserState, "apply", apply)


async def test_an_event_that_cannot_be_applied_is_a_dead_letter_and_nobody_waits_for_it(autojump_clock, world, poison):
    good = [run(), run()]
    bad = event(event_type="poison")
    await world.post(good[0], bad, good[1], run("bob"))
    assert bare(world.state()) == folded(*good)
    await world.all_stored()
    assert world.watermark.value == 4
    assert bad.event_id in world.stored_ids
    (letter,) = world.store.dead_letters.values()
    assert (letter.seq, letter.event, letter.error_type) == (2, bad, "KeyError")
    assert letter.place.startswith("tests.actors.test_live:") or "test_live" in letter.place
    assert "secret" not in letter.place
    await world.post(run())
    assert world.state().executions == 3


async def test_an_event_that_cannot_be_applied_does_not_stop_recovery(autojump_clock, world, poison):
    world.store.away = "gone"
    await world.post(run(), event(event_type="poison"), run())
    world.store.away = None
    world = await world.restart()
    await world.all_stored()
    assert world.state().executions == 2
    assert [letter.seq for letter in world.store.dead_letters.values()] == [2]


async def test_a_dead_letter_is_kept_while_the_store_is_away(autojump_clock, world, poison):
    world.store.away = "gone"
    await world.post(event(event_type="poison"))
    await trio.sleep(5)
    world.store.away = None
    await world.all_stored()
    assert len(world.store.dead_letters) == 1


# --- students who leave memory, and come back


async def test_a_student_who_is_long_gone_leaves_memory_once_stored(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    await world.post(run("ann"), run("bob"))
    while "bob" not in watcher.state["users"]:
        await watcher.take()
    await world.all_stored()
    world.clock.now += RETIRE_MS
    await world.post(run("bob"))
    await world.all_stored()
    world.clock.now += 1
    world.router.sweep(list(world.router.users))
    assert ("default", "ann") not in world.router.users
    assert ("default", "bob") in world.router.users
    while "ann" in watcher.state["users"]:
        frame = await watcher.take()
    assert frame["changes"]["users"]["ann"] is None
    assert frame["changes"]["summary"]["total_students"] == 1
    assert set(world.broadcaster.overview("default")["state"]["users"]) == {"bob"}


async def test_nobody_leaves_before_the_state_is_stored(autojump_clock, world):
    await world.post(run())
    await world.all_stored()
    world.store.away = "gone"
    await world.post(run())
    world.clock.now += RETIRE_MS + 1
    world.router.sweep(list(world.router.users))
    assert ("default", "ann") in world.router.users
    world.store.away = None
    await world.all_stored()
    world.router.sweep(list(world.router.users))
    assert ("default", "ann") not in world.router.users


async def test_the_sweep_comes_by_itself(autojump_clock, world):
    await world.post(run())
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    await until(lambda: not world.router.users)


async def test_many_students_are_looked_at_in_parts_of_one_period(autojump_clock, world, monkeypatch):
    monkeypatch.setattr("actors.router._SWEEP_USERS", 2)
    await world.post(*(run(f"student{number}") for number in range(5)))
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    began = trio.current_time()
    sizes = [5]
    while world.router.users:
        await until(lambda: len(world.router.users) < sizes[-1])
        sizes.append(len(world.router.users))
    assert sizes == [5, 3, 1, 0]
    assert trio.current_time() - began <= 2 * 30  # the period that was under way, and this one


async def test_a_student_who_comes_back_brings_the_past(autojump_clock, world):
    early, late = [run(), run(has_error=True)], [run(time=NOW + 1000)]
    await world.post(*early)
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    world.router.sweep(list(world.router.users))
    received = world.clock.now
    await world.post(*late)
    await until(lambda: world.router.users["default", "ann"].settled)
    assert world.state().executions == 3
    assert world.state().last_receipt == received
    await world.all_stored()
    assert world.stored_sessions() == [(NOW, NOW + 1000, 3, 1)]
    assert (await world.stored_state()).executions == 3


async def test_a_student_who_comes_back_while_the_store_is_away_is_shown_and_stored_later(autojump_clock, world):
    await world.post(run())
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    world.router.sweep(list(world.router.users))
    world.store.away = "gone"
    await world.post(run())
    assert world.broadcaster.overview("default")["state"]["users"]["ann"]["cell_executions"] == 1
    assert world.broadcaster.sessions("default", "ann") == ([], set())
    await trio.sleep(5)
    world.store.away = None
    await world.all_stored()
    assert world.broadcaster.overview("default")["state"]["users"]["ann"]["cell_executions"] == 2
    assert (await world.stored_state()).executions == 2


async def test_one_who_retired_and_came_back_between_two_frames_is_seen_whole(autojump_clock, world):
    watcher = Watcher(world)
    await world.post(run(user_name="Ann", total_cells=4))
    while not (watcher.state and watcher.state["users"]):
        await watcher.take()
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    world.router.sweep(list(world.router.users))
    await world.post(run())
    await until(lambda: world.router.users["default", "ann"].settled)
    while watcher.state != world.broadcaster.overview("default")["state"]:
        await watcher.take()
