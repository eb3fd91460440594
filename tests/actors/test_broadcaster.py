"""Snapshots and deltas: conflated, in sequence, encoded once."""

import json
from itertools import pairwise

import pytest
import trio

from actors import topic as topic_module
from actors.subscriber import Frame, Subscriber
from engine.errors import UnknownTopicError
from tests.actors.world import INTERVAL_S, OUTBOX_FRAMES, Watcher
from tests.adapters.events import NOW, event, run


def overview(world):
    return world.broadcaster.overview("default")


async def test_a_snapshot_then_deltas_make_the_present_state(autojump_clock, world):
    await world.post(run(user_name="Ann"), run("bob", has_error=True))
    watcher = Watcher(world)
    frame = await watcher.take()
    assert (frame["type"], frame["topic"]) == ("snapshot", "class:default")
    assert watcher.state == overview(world)["state"]
    for batch in ([run()], [run("cid"), run("bob", time=NOW + 1)], [event(event_type="help_requested")]):
        await world.post(*batch)
        frame = await watcher.take()
        assert frame["type"] == "delta"
        assert watcher.state == overview(world)["state"]
        assert watcher.seq == overview(world)["seq"]
    assert watcher.state["users"]["ann"]["status"] == "help"
    assert len({frame["epoch"] for frame in watcher.frames}) == 1


async def test_a_delta_holds_only_what_changed(autojump_clock, world):
    await world.post(run(user_name="Ann"), run("bob"))
    watcher = Watcher(world)
    await watcher.take()
    await world.post(run(cell_index=4))
    await watcher.take()
    await world.post(run(cell_index=4, time=NOW + 1000))
    frame = await watcher.take()
    assert set(frame["changes"]["users"]) == {"ann"}
    assert "user_name" not in frame["changes"]["users"]["ann"]
    assert frame["changes"]["users"]["ann"]["cell_executions"] == 3


async def test_changes_within_an_interval_share_a_frame(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    for number in range(50):
        world.router.accept([run(cell_index=number)], lambda outcome: None)
        await trio.testing.wait_all_tasks_blocked()
    frame = await watcher.take()
    assert frame["changes"]["users"]["ann"]["cell_executions"] == 50
    await watcher.nothing_more()


async def test_frames_come_no_faster_than_the_interval(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    times = []
    for _ in range(5):
        await world.post(run())
        await watcher.take()
        times.append(trio.current_time())
    assert all(b - a == pytest.approx(INTERVAL_S) for a, b in pairwise(times))


async def test_a_frame_is_encoded_once_for_all(autojump_clock, world, monkeypatch):
    encoded = []
    encode = topic_module._encode
    monkeypatch.setattr(topic_module, "_encode", lambda body: encoded.append(body) or encode(body))
    await world.post(run())
    watchers = [Watcher(world) for _ in range(20)]
    for watcher in watchers:
        await watcher.take()
    assert len(encoded) == 1
    await world.post(run())
    for watcher in watchers:
        await watcher.take()
    assert len(encoded) == 2


async def test_a_late_subscriber_follows_on_from_its_snapshot(autojump_clock, world):
    first = Watcher(world)
    await world.post(run())
    await first.take()
    with trio.move_on_after(INTERVAL_S * 3):
        await first.take()
    late = Watcher(world)
    await late.take()
    assert late.seq == overview(world)["seq"]
    await world.post(run())
    await late.take()  # it fails where a seq is missing between
    assert late.state == overview(world)["state"]


async def test_nothing_is_sent_when_nothing_changed(autojump_clock, world):
    await world.post(run())
    watcher = Watcher(world)
    await watcher.take()
    await watcher.nothing_more()


async def test_time_alone_changes_a_status(autojump_clock, world):
    await world.post(run())
    watcher = Watcher(world)
    await watcher.take()
    assert watcher.state["users"]["ann"]["status"] == "active"
    for later, status in ((180_000, "idle"), (420_000, "offline")):
        world.clock.now += later
        frame = await watcher.take()
        assert frame["changes"]["users"]["ann"] == {"status": status}
        assert frame["changes"]["summary"][status] == 1


async def test_classes_are_topics_of_their_own(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    await world.post(run(class_id="other"))
    await watcher.nothing_more()
    assert world.broadcaster.overview("other")["state"]["summary"]["total_students"] == 1


async def test_an_unknown_topic_is_named(autojump_clock, world):
    outbox = world.broadcaster.connect()
    for name in (
        "nothing",
        "class:",
        "class:a b",
        "class:a/b",
        "user:x",
        "user:x/",
        "user:x/%ff",
        "notebook:a b/n",
        "ops:",
    ):
        with pytest.raises(UnknownTopicError, match="class:<class id>"):
            outbox.subscribe(name)


async def test_after_unsubscribing_nothing_comes(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    await world.post(run())
    watcher.outbox.unsubscribe("class:default")
    await watcher.nothing_more()
    watcher.outbox.subscribe("class:default")
    assert (await watcher.take())["type"] == "snapshot"
    assert watcher.state == overview(world)["state"]


async def test_a_slow_subscriber_gets_a_fresh_snapshot_and_delays_nobody(autojump_clock, world):
    slow, quick = Watcher(world), Watcher(world)
    await slow.take()
    await quick.take()
    for number in range(3 * OUTBOX_FRAMES):
        await world.post(run(cell_index=number))
        await quick.take()
        assert len(slow.outbox._frames) <= OUTBOX_FRAMES
    assert slow.outbox.conflated > 0
    frame = await slow.take()
    assert frame["type"] == "snapshot"
    assert slow.state == quick.state
    await world.post(run())
    await slow.take()
    await quick.take()
    assert slow.state == quick.state


async def test_operators_are_told_of_what_needs_them(autojump_clock, world):
    outbox = world.broadcaster.connect()
    outbox.subscribe("ops")
    assert json.loads(await outbox.next_frame())["state"]["students"] == 0
    world.mailboxes.alert("class is full", "default", "users", "20000 users")
    while (frame := json.loads(await outbox.next_frame()))["type"] != "alerts":
        assert frame["type"] == "delta"
    (alert,) = frame["alerts"]
    assert (alert["alert"], alert["class_id"], alert["subject"]) == ("class_is_full", "default", "users")
    assert alert["message"] == "20000 users"


async def test_an_alert_does_not_wait_for_the_interval(autojump_clock, world):
    watcher = Watcher(world)
    await watcher.take()
    await world.post(run(has_error=True))
    began = trio.current_time()
    assert json.loads(await watcher.outbox.next_frame())["type"] == "alerts"
    assert trio.current_time() - began <= 0.02


# --- the outbox alone


class Topics:
    """`actors.subscriber.Feed`."""

    def __init__(self):
        self.made = []
        self.members = set()

    def outbox(self, capacity=3):
        return Subscriber(capacity, self)

    def join(self, subscriber, topic):
        self.members.add(topic)

    def leave(self, subscriber, topic):
        self.members.discard(topic)

    def begin(self, topic, resume):
        self.made.append(("begin", topic, resume))
        return [Frame(1, f"{topic} begins")]

    def catch_up(self, topic, seq):
        self.made.append(("catch up", topic, seq))
        return [Frame(100, f"{topic} caught up"), Frame(101, f"alerts of {topic}")]


async def test_an_outbox_conflates_one_topic_and_keeps_the_others():
    topics = Topics()
    outbox = topics.outbox()
    for name in ("a", "b"):
        outbox.subscribe(name)
        await outbox.next_frame()
    outbox.offer("b", Frame(2, "b2"))
    for number in range(2, 12):
        outbox.offer("a", Frame(number, f"a{number}"))
    assert await outbox.next_frame() == "b2"
    assert await outbox.next_frame() == "a caught up"
    assert topics.made[-1] == ("catch up", "a", 1)
    outbox.offer("a", Frame(102, "a102"))
    assert [await outbox.next_frame() for _ in range(2)] == ["alerts of a", "a102"]


async def test_who_falls_behind_in_the_middle_of_catching_up_begins_again_from_there():
    topics = Topics()
    outbox = topics.outbox()
    outbox.subscribe("a")
    await outbox.next_frame()
    for number in range(2, 12):
        outbox.offer("a", Frame(number, f"a{number}"))
    assert await outbox.next_frame() == "a caught up"
    for number in range(102, 112):
        outbox.offer("a", Frame(number, f"a{number}"))
    await outbox.next_frame()
    assert topics.made[-1] == ("catch up", "a", 100)


async def test_what_a_subscription_begins_with_is_made_when_it_is_taken():
    topics = Topics()
    outbox = topics.outbox()
    outbox.subscribe("a", ("epoch", 7))
    outbox.offer("a", Frame(2, "the beginning will hold it"))
    assert topics.made == []
    assert await outbox.next_frame() == "a begins"
    assert topics.made == [("begin", "a", ("epoch", 7))]


async def test_a_reader_that_waits_is_woken(autojump_clock):
    topics = Topics()
    outbox = topics.outbox()
    taken = []

    async def read():
        while True:
            taken.append(await outbox.next_frame())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        outbox.subscribe("a")
        await trio.testing.wait_all_tasks_blocked()
        outbox.offer("a", Frame(2, "a2"))
        await trio.testing.wait_all_tasks_blocked()
        assert taken[1:] == ["a2"]
        for number in range(3, 13):
            outbox.offer("a", Frame(number, f"a{number}"))
        await trio.testing.wait_all_tasks_blocked()
        assert "a caught up" in taken
        nursery.cancel_scope.cancel()


async def test_who_waits_has_a_frame_written_at_once_and_what_cannot_be_written_is_queued(autojump_clock):
    """Nothing overtakes what is queued, and who falls behind then catches up from what was written last."""
    topics = Topics()
    outbox = topics.outbox()
    taken, written, room = [], [], [True]

    def write(text, received_at):
        if room[0]:
            written.append((text, received_at))
        return room[0]

    async def read():
        while True:
            taken.append(await outbox.next_frame())

    outbox.write_through(write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        outbox.subscribe("a")
        outbox.offer("a", Frame(1, "the beginning holds it"))
        await trio.testing.wait_all_tasks_blocked()
        outbox.offer("a", Frame(2, "a2", received_at=7))
        outbox.offer("a", Frame(3, "a3"))
        assert written == [("a2", 7), ("a3", 0)]
        room[0] = False
        outbox.offer("a", Frame(4, "a4"))
        room[0] = True
        outbox.offer("a", Frame(5, "a5"))
        await trio.testing.wait_all_tasks_blocked()
        outbox.offer("a", Frame(6, "a6"))
        assert written[2:] == [("a6", 0)]
        room[0] = False
        for number in range(7, 17):
            outbox.offer("a", Frame(number, f"a{number}"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert taken == ["a begins", "a4", "a5", "a caught up", "alerts of a"]
    assert topics.made[-1] == ("catch up", "a", 6)


async def test_a_reader_that_left_is_not_written_to():
    outbox = Topics().outbox()
    written = []
    outbox.write_through(lambda text, received_at: written.append(text) or True)
    outbox.subscribe("a")
    await outbox.next_frame()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.next_frame)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    outbox.offer("a", Frame(2, "a2"))
    assert written == []


def test_a_closed_outbox_leaves_every_topic():
    topics = Topics()
    outbox = topics.outbox()
    outbox.subscribe("a")
    outbox.subscribe("b")
    outbox.close()
    assert topics.members == set()
