"""Every actor is made to fail, at each of its points, more than once: nothing is lost or doubled, and all goes on."""

from functools import partial

import pytest
import trio

from actors.session import SessionActor
from actors.supervisor import supervise
from actors.upkeep import Upkeep
from engine import faults
from engine.ports import Retention
from tests.actors.test_recovery import assert_stored_once
from tests.actors.world import RETIRE_MS, Watcher, bare, folded, until
from tests.adapters.events import run

LIVE = [
    "router.dispatch", "router.deliver", "router.sweep", "recovery.settle", "writer.write", "writer.written",
    "writer.trim", "broadcaster.publish", "broadcaster.alerts", "upkeep.tend",
    "upkeep.sum_up",
]  # fmt: skip
AT_START = ["recovery.load", "recovery.replay", "recovery.adopt"]


class Fault:
    """Fails when a point is reached for these times."""

    def __init__(self, point, times):
        self._point = point
        self._times = times
        self.reached = 0

    def __call__(self, point):
        if point == self._point:
            self.reached += 1
            if self.reached in self._times:
                raise RuntimeError(f"the test makes {point} fail")

    @property
    def over(self):
        return self.reached > max(self._times)


@pytest.mark.parametrize("times", [{1}, {2}, {1, 2, 4}], ids=str)
@pytest.mark.parametrize("point", LIVE)
async def test_an_actor_that_fails_loses_nothing_and_goes_on(autojump_clock, world, nursery, point, times):
    upkeep = Upkeep(world.store, world.recovery, Retention(400, 1200), world.clock)
    nursery.start_soon(partial(supervise, "upkeep", upkeep.run))
    watcher = Watcher(world)
    events = []
    fault = Fault(point, times)
    with faults.installed(fault):
        for turn in range(100):
            batch = [run(user, cell_index=turn, has_error=user == "ann") for user in ("ann", "bob", f"new {turn}")]
            await world.post(*batch)
            events += batch
            if turn % 10 == 9:
                await trio.sleep({"upkeep.tend": 4000, "upkeep.sum_up": 32, "router.sweep": 40}.get(point, 3))
            if fault.over:
                break
        assert fault.over
        await assert_stored_once(world, events)
    while watcher.state != world.broadcaster.overview("default")["state"]:
        await watcher.take()
    world = await world.restart()
    await assert_stored_once(world, events)


@pytest.mark.parametrize("times", [{1}, {1, 2, 3}], ids=str)
@pytest.mark.parametrize("point", AT_START)
async def test_a_recovery_that_fails_begins_again(autojump_clock, world, point, times):
    events = [run(user) for user in ("ann", "bob", "cid")]
    await world.post(*events)
    await world.all_stored()
    world.store.away = "gone"
    for user in ("ann", "bob", "dan", "eve"):
        events.append(run(user))
        await world.post(events[-1])
    await world.crash()
    world.store.away = None
    fault = Fault(point, times)
    with faults.installed(fault):
        world = await world.restart()
        events += [run("ann"), run("fay")]
        await world.post(*events[-2:])
        await until(world.recovery.done.is_set)
        assert fault.over
        await assert_stored_once(world, events)


@pytest.mark.parametrize("failures", [1, 3])
async def test_a_router_that_fails_between_two_students_of_a_commit(autojump_clock, world, monkeypatch, failures):
    deliver, left = SessionActor.deliver, failures

    def failing(self, delivery):
        nonlocal left
        if self.key[1] == "bob" and left:
            left -= 1
            raise RuntimeError("the test wants it")
        deliver(self, delivery)

    monkeypatch.setattr(SessionActor, "deliver", failing)
    events = [run(user) for user in ("ann", "bob", "cid", "ann", "bob")]
    world.router.accept(events, lambda outcome: None)
    later = [run("ann"), run("bob")]
    world.router.accept(later, lambda outcome: None)
    await until(lambda: world.watermark.value == 7)
    assert not left
    await assert_stored_once(world, events + later)


async def test_a_student_whose_actor_fails_elsewhere_than_in_an_event(autojump_clock, world, monkeypatch):
    """After the events of a delivery were applied, and before it counts as done."""
    events = [run(), run("bob")]
    await world.post(*events)
    put, left = world.mailboxes.changed.put, 3

    def failing(key, actor):
        nonlocal left
        if key[1] == "ann" and left:
            left -= 1
            raise RuntimeError("the test wants it")
        put(key, actor)

    world.router.users["default", "ann"].announced = False
    monkeypatch.setattr(world.mailboxes.changed, "put", failing)
    events += [run(), run(), run("bob")]
    world.router.accept(events[2:], lambda outcome: None)
    await until(lambda: not left and world.watermark.value == 5)
    assert bare(world.state()) == folded(events[0], events[2], events[3])
    await assert_stored_once(world, events)
    assert world.store.dead_letters == {}


async def test_a_bisection_that_fails_goes_on_from_there(autojump_clock, world):
    for nth in range(1, 8):
        events = [run() for _ in range(5)]
        world.store.refuses = lambda item, bad=events[2]: item == bad
        world.store.away = "gone"
        await world.post(*events)
        with faults.installed(Fault("bisection.write", {nth})):
            world.store.away = None
            await world.all_stored()
        kept = [each.event_id for at, each in enumerate(events) if at != 2]
        assert world.stored_ids[-4:] == kept
        assert [letter.event for letter in world.store.dead_letters.values()][-1] == events[2]
    assert world.state().executions == 35
    assert (await world.stored_state()).executions == 35


async def test_production_has_no_hook():
    assert faults._hook is None
    faults.reach("anywhere")


async def test_one_who_comes_back_while_the_sweep_fails(autojump_clock, world):
    await world.post(run("ann"), run("bob"))
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    fault = Fault("router.sweep", {1})
    with faults.installed(fault):
        await until(lambda: not world.router.users)
    assert fault.over
    await world.post(run("ann"))
    await until(lambda: world.router.users["default", "ann"].settled)
    assert world.state().executions == 2


async def test_a_subscriber_that_fails_ends_alone(autojump_clock, world):
    """It has no task but its connection's, which closes the outbox and is logged with its trace."""
    failing, other = Watcher(world), Watcher(world)
    with faults.installed(Fault("subscriber.frame", {1})):
        with pytest.raises(RuntimeError, match="the test makes"):
            await failing.take()
        failing.outbox.close()
        await world.post(run("ann"))
        while other.state != world.broadcaster.overview("default")["state"] or not other.state["users"]:
            await other.take()
    again = Watcher(world)
    await again.take()
    assert again.state == other.state
