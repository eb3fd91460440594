"""What other programs are told of commits, and what they find about students."""

import json

import pytest
import trio

from actors.mirror import Mirror
from actors.publisher import Publisher
from adapters.memory import MemoryBus, MemoryCache
from engine.announcement import CHANNELS
from engine.event import Commit
from engine.keys import session_key
from tests.actors.world import THRESHOLDS, World
from tests.adapters.events import NOW, event, run


class Told:
    """A world whose commits are published, and what came of it."""

    def __init__(self, world):
        self.world = world
        self.cache = MemoryCache()
        bus = MemoryBus()
        self.heard = []
        for channel in CHANNELS:
            bus.listen(channel, lambda text, channel=channel: self.heard.append((channel, json.loads(text))))
        router = world.router
        self.mirror = Mirror(self.cache, router.users, router.cohorts, thresholds=THRESHOLDS, clock=world.clock)
        self.publisher = Publisher(bus, self.mirror)
        world.router.commit = self.publisher.beside(world.router.commit)

    async def seen(self, user_id="ann", class_id="default"):
        text = await self.cache.get(session_key(class_id, user_id))
        return None if text is None else json.loads(text)


@pytest.fixture
async def told(autojump_clock):
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        told = Told(world)
        await world.start()
        nursery.start_soon(told.publisher.run)
        nursery.start_soon(told.mirror.run)
        yield told
        nursery.cancel_scope.cancel()


async def test_every_event_is_told_once_on_its_channel(autojump_clock, told):
    await told.world.post(
        run(),
        run(has_error=True, error_message="KeyError: 'x'"),
        event(event_type="execution_error", notebook_path="a.ipynb"),
        event(event_type="session_start"),
        event(event_type="notebook_saved", notebook_path="a.ipynb"),
        event(event_type="help_requested"),
        event(event_type="help_resolved"),
        event(event_type="progress", total_cells=4),
        event(event_type="lesson_liked", data='{"stars":5}', metadata='{"ä":"☃"}'),
    )
    await trio.sleep(1)
    assert [(channel, message["event_type"]) for channel, message in told.heard] == [
        ("progress_events", "cell_executed"),
        ("error_events", "cell_executed"),
        ("error_events", "execution_error"),
        ("session_events", "session_start"),
        ("session_events", "notebook_saved"),
        ("session_events", "help_requested"),
        ("session_events", "help_resolved"),
        ("progress_events", "progress"),
        ("progress_events", "lesson_liked"),
    ]
    assert all(set(message) == {"event_type", "user_id", "class_id", "data"} for _, message in told.heard)
    assert told.heard[1][1]["data"]["error_message"] == "KeyError: 'x'"
    last = told.heard[-1][1]["data"]
    del last["event_id"]
    assert last == {"timestamp": "2026-11-18T11:06:40.000Z", "data": {"stars": 5}, "metadata": {"ä": "☃"}}


async def test_a_repeat_is_not_told_again(autojump_clock, told):
    liked = event()
    await told.world.post(liked)
    await told.world.post(liked)
    await trio.sleep(1)
    assert len(told.heard) == 1


async def test_a_student_is_mirrored_as_the_class_state_shows_it(autojump_clock, told):
    await told.world.post(run(cell_index=3, user_name="Ann"), run("bob:%☃", has_error=True))
    await trio.sleep(2)
    overview = told.world.broadcaster.overview("default")["state"]["users"]
    for user_id in ("ann", "bob:%☃"):
        assert await told.seen(user_id) == overview[user_id]
    assert (await told.seen("bob:%☃"))["status"] == "error"


async def test_time_alone_changes_the_mirror(autojump_clock, told):
    await told.world.post(run())
    await trio.sleep(2)
    assert (await told.seen())["status"] == "active"
    told.world.clock.now += THRESHOLDS.idle_after_ms
    await trio.sleep(2)
    assert (await told.seen())["status"] == "idle"
    told.world.clock.now += THRESHOLDS.offline_after_ms
    await trio.sleep(2)
    assert (await told.seen())["status"] == "offline"


async def test_an_event_that_is_not_applied_yet_is_not_missed(autojump_clock, told):
    """The commit comes to the publisher before its actor has had it."""
    told.mirror.note({("default", "ann"): 1})
    await told.mirror.look()
    await told.world.post(run())
    await trio.sleep(2)
    assert (await told.seen())["cell_executions"] == 1
    told.mirror.note({("default", "ann"): 99})
    await told.mirror.look()
    assert told.mirror._changed == {("default", "ann"): 99}
    told.mirror.note({("default", "never met"): 1})
    await told.mirror.look()
    assert ("default", "never met") not in told.mirror._changed


async def test_when_it_is_behind_the_oldest_commits_are_not_told_and_counted(autojump_clock, told):
    for n in range(100):
        told.publisher.offer(Commit(1000 + 2 * n, NOW, [event(), event(event_type=f"n{n}")]))
    assert told.publisher.dropped == 2 * 36
    await trio.sleep(1)
    assert [message["event_type"] for _, message in told.heard[1::2]] == [f"n{n}" for n in range(36, 100)]
