"""The backlog of the bus: bounded, in order, and every message is either taken once or counted as dropped."""

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.bus.backlog import Backlog, Write

LATER = float("inf")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.lists(st.integers(0, 40), min_size=1, max_size=5)),
        st.tuples(st.just("write"), st.sampled_from("abcdef"), st.integers(0, 40)),
        st.tuples(st.just("take"), st.booleans()),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 8), st.integers(30, 100))
def test_nothing_is_lost_uncounted_and_nothing_is_past_the_bounds(steps, max_items, max_bytes):
    async def play():
        backlog = Backlog(max_items, max_bytes)
        published, arrived = 0, []
        stored, wanted = {}, {}
        for step in steps:
            match step:
                case "publish", sizes:
                    backlog.publish([(str(published + n), b"x" * size) for n, size in enumerate(sizes)])
                    published += len(sizes)
                case "write", key, size:
                    wanted[key] = Write(LATER, b"%d:" % len(wanted) + b"x" * size)
                    backlog.write(key, wanted[key])
                case "take", fails:
                    batch = backlog.take()
                    if fails:
                        backlog.failed(batch)
                    else:
                        arrived += [int(channel) for channel, _ in batch.messages]
                        stored |= batch.writes
            waiting = [text for piece in backlog._messages for _, text in piece.messages]
            assert backlog._message_count == len(waiting) <= max_items
            assert backlog._message_bytes == sum(map(len, waiting)) <= max_bytes
            assert len(backlog._writes) <= max_items
            assert backlog._write_bytes == sum(write.size for write in backlog._writes.values()) <= max_bytes
        while len(backlog):
            batch = backlog.take()
            arrived += [int(channel) for channel, _ in batch.messages]
            stored |= batch.writes
        assert arrived == sorted(set(arrived))  # in order, none twice
        assert published - len(arrived) <= backlog.dropped
        if not backlog.dropped:
            assert stored == wanted

    trio.run(play)


def test_an_expired_write_does_not_go_out():
    async def play():
        backlog = Backlog()
        backlog.write("short", Write(trio.current_time() + 1, b"x"))
        backlog.write("long", Write(trio.current_time() + 10, b"y"))
        await trio.sleep(2)
        assert list(backlog.take().writes) == ["long"]
        assert backlog.dropped == 0

    trio.run(play, clock=MockClock(autojump_threshold=0))


def test_the_reader_sleeps_until_there_is_something():
    async def play():
        backlog = Backlog()
        woken = []

        async def read():
            for _ in range(2):
                await backlog.wait_filled()
                woken.append(backlog.take())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            assert woken == []
            backlog.publish([("c", b"1")])
            await wait_all_tasks_blocked()
            assert len(woken) == 1
            backlog.write("k", Write(LATER))
        assert len(woken) == 2

    trio.run(play)
