"""How many students and notebooks a class may hold."""

import pytest
import trio

from actors.admission import Limits
from engine.errors import OverLimitError, UnavailableError
from tests.actors.world import RETIRE_MS, World
from tests.adapters.events import event, run

USERS = "class default already has 3 users: limits.users_per_class"
NOTEBOOKS = "class default already has 2 notebooks: limits.notebooks_per_class"


@pytest.fixture
async def world(autojump_clock, nursery):
    return await World(nursery, limits=Limits(3, 2)).start()


def refused(world, *events):
    with pytest.raises(OverLimitError) as fault:
        world.router.accept(list(events), lambda outcome: None)
    return fault.value.refused


async def test_students_past_the_limit_are_named_and_none_of_the_batch_is_kept(autojump_clock, world):
    batch = [event(user) for user in ("ann", "bob", "ann", "cid", "dan", "bob", "eve")]
    assert refused(world, *batch) == {4: USERS, 6: USERS}
    assert world.journal.last_seq == 0
    await world.post(*(each for at, each in enumerate(batch) if at not in {4, 6}))
    assert refused(world, event("dan")) == {0: USERS}
    await world.post(event("bob"), event("dan", class_id="other"))
    assert set(world.router.users) == {("default", user) for user in ("ann", "bob", "cid")} | {("other", "dan")}


async def test_those_who_are_under_way_count_and_only_until_it_is_known_what_became_of_them(autojump_clock, world):
    """Requests that come before the first is committed."""
    world.journal.broken = "the disk"
    outcomes = []
    for user in ("ann", "bob", "bob", "cid"):
        world.router.accept([event(user)], outcomes.append)
    assert refused(world, event("dan")) == {0: USERS}
    await trio.testing.wait_all_tasks_blocked()
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 4
    world.journal.broken = None
    world.journal.full = "full"
    for user in ("dan", "eve", "fay", "gus"):
        with pytest.raises(UnavailableError):
            world.router.accept([event(user)], outcomes.append)
    world.journal.full = None
    await world.post(event("dan"), event("eve"), event("fay"))
    assert refused(world, event("ann")) == {0: USERS}


async def test_one_who_retires_makes_room_and_a_repeat_of_a_retired_takes_none(autojump_clock, world):
    once = event("ann")
    await world.post(once, event("bob"), event("cid"))
    await world.all_stored()
    world.clock.now += RETIRE_MS + 1
    await world.post(event("bob"))
    await world.all_stored()
    world.router.sweep(list(world.router.users))
    assert set(world.router.users) == {("default", "bob")}
    assert await world.post(once) == [False]
    await world.post(event("dan"), event("eve"))
    assert refused(world, event("fay")) == {0: USERS}


async def test_students_who_were_there_before_a_restart_count(autojump_clock, world):
    await world.post(event("ann"), event("bob"), event("cid"))
    await world.all_stored()
    world = await world.restart(limits=Limits(3, 2))
    assert refused(world, event("dan")) == {0: USERS}


async def test_notebooks_past_the_limit(autojump_clock, world):
    batch = [run(notebook_path=path) for path in ("a", "b", "a", "c")] + [event()]
    assert refused(world, *batch) == {3: NOTEBOOKS}
    await world.post(batch[0])
    outcomes = []
    world.router.accept([run("bob", notebook_path="b")], outcomes.append)
    assert refused(world, run("cid", notebook_path="c")) == {0: NOTEBOOKS}
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [[True]]
    assert refused(world, run(notebook_path="c"), run(notebook_path="b")) == {0: NOTEBOOKS}
    await world.post(run(notebook_path="c", class_id="other"))
    await world.all_stored()
    world = await world.restart(limits=Limits(3, 2))
    assert refused(world, run(notebook_path="c")) == {0: NOTEBOOKS}
    await world.post(run(notebook_path="b"))


async def test_a_class_far_from_its_limit_is_not_looked_at_and_one_near_it_is(autojump_clock, nursery):
    world = await World(nursery, limits=Limits(10, 1002)).start()
    await world.post(run(notebook_path="0"))
    assert not world.router._admission.strained
    for n in range(1, 1002):
        world.router.observe(run(notebook_path=str(n)))
    message = "class default already has 1002 notebooks: limits.notebooks_per_class"
    assert refused(world, run(notebook_path="x")) == {0: message}
    await world.post(run(notebook_path="1001"))


async def test_operators_hear_of_it_once_a_minute(autojump_clock, world):
    await world.post(event("ann"), event("bob"), event("cid"))
    for expected in (1, 0):
        refused(world, event("dan"))
        assert len(world.mailboxes.told()) == expected
    await trio.sleep(61)
    refused(world, event("dan"))
    assert world.mailboxes.told() == {("class is full", "default", "limits.users_per_class"): USERS}
