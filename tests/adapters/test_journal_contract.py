"""`engine.ports.Journal`: one suite for the real one and its twin."""

import pytest
import trio

from adapters.journal import SqliteJournal
from adapters.memory import MemoryJournal
from engine.errors import UnavailableError
from tests.adapters.events import NOW, Sink, append, event, kept


class Sqlite:
    def __init__(self, directory):
        self.journal = SqliteJournal(
            directory,
            max_bytes=2**30,
            min_free_bytes=0,
            dedupe_window_s=600,
            dedupe_max_events=10_000,
            clock=lambda: NOW,
        )
        self.journal.open()

    def break_commits(self):
        """The file may not grow by another page; `big` needs some."""
        (pages,) = self.journal._db.execute("pragma page_count").fetchone()
        self.journal._db.execute(f"pragma max_page_count={pages}")

    def mend(self):
        self.journal._db.execute("pragma max_page_count=1073741823")

    def close(self):
        self.journal.close()


class Memory:
    def __init__(self, directory):
        self.journal = MemoryJournal(clock=lambda: NOW)

    def break_commits(self):
        self.journal.broken = "no room"

    def mend(self):
        self.journal.broken = None

    def close(self):
        pass


@pytest.fixture(params=[Sqlite, Memory])
def harness(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def journal(harness):
    return harness.journal


@pytest.fixture
async def sink(journal, nursery):
    """The commit loop runs into it."""
    made = Sink()
    nursery.start_soon(journal.run, made)
    return made


def big(**fields):
    return event(data='{"text":"%s"}' % ("x" * 12_000), **fields)


async def test_nothing_is_settled_before_its_commit(journal):
    receipt = append(journal, event())
    repeat = append(journal, event(event_id="twice"), event(event_id="twice"))
    await trio.testing.wait_all_tasks_blocked()
    assert not receipt.settled
    assert not repeat.settled
    assert journal.last_seq == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run, Sink())
        journal.finish()
    assert await receipt.outcome() == [True]
    assert await repeat.outcome() == [True, False]


async def test_what_is_settled_can_be_read(journal, sink):
    seen = []

    def settle(outcome):
        seen.append((outcome, journal.last_seq))

    journal.append([event(), event()], settle)
    await kept(journal, event())
    assert seen[0][0] == [True, True]
    assert seen[0][1] >= 2
    commits = await journal.read(0, 3, 100)
    assert sum(len(commit) for commit in commits) == 3


async def test_a_repeat_is_known_in_the_batch_while_it_waits_and_when_it_is_stored(journal, sink):
    assert await kept(journal, event(event_id="x"), event(event_id="x"), event(event_id="y")) == [True, False, True]
    assert await kept(journal, event(event_id="x"), event(event_id="z")) == [False, True]
    first = append(journal, event(event_id="w"))
    second = append(journal, event(event_id="w"))
    assert not second.settled  # its first is not on the disk yet
    assert await first.outcome() == [True]
    assert await second.outcome() == [False]
    assert [stored.event_id for stored in sink.events] == ["x", "y", "z", "w"]


async def test_a_stored_repeat_is_settled_at_once(journal, sink):
    await kept(journal, event(event_id="x"))
    assert append(journal, event(event_id="x"), event(event_id="x")).outcomes == [[False, False]]


async def test_a_repeat_of_what_is_being_committed_waits_for_it(journal, nursery):
    sink = Sink()
    sink.hold()
    nursery.start_soon(journal.run, sink)
    first = append(journal, event(event_id="x"))
    second = append(journal, event(event_id="x"), event(event_id="y"))
    with trio.fail_after(10):
        while not sink.commits:
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.001)
    third = append(journal, event(event_id="y"))
    sink.release()
    assert await first.outcome() == [True]
    assert await second.outcome() == [False, True]
    assert await third.outcome() == [False]


async def test_an_event_id_belongs_to_a_class_and_a_user(journal, sink):
    same = [event("ann"), event("bob"), event("ann", class_id="other")]
    for item in same:
        item.event_id = "same"
    assert await kept(journal, *same) == [True, True, True]
    assert await kept(journal, *same) == [False, False, False]


async def test_an_event_without_an_id_of_the_client_is_never_a_repeat(journal, sink):
    unnamed = event(event_id="made", named=False)
    assert await kept(journal, unnamed, unnamed) == [True, True]
    assert await kept(journal, unnamed) == [True]
    assert await kept(journal, event(event_id="made")) == [True]


async def test_commits_reach_the_sink_in_seq_order_without_a_gap(journal, sink):
    receipts = []
    for size in (1, 3, 2, 7, 1):
        receipts.append(append(journal, *(event(cell_index=n) for n in range(size))))
        await trio.lowlevel.checkpoint()
    for receipt in receipts:
        await receipt.outcome()
    assert sink.seqs == list(range(1, 15))
    assert journal.last_seq == 14
    assert [item.cell_index for item in sink.events] == [0, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0]
    assert all(commit.received_at == NOW for commit in sink.commits)


async def test_what_is_queued_at_the_end_is_committed(journal):
    receipts = [append(journal, event()) for _ in range(3)]
    journal.finish()
    await journal.run(Sink())
    assert [await receipt.outcome() for receipt in receipts] == [[True]] * 3


async def four_commits(journal):
    """Of seqs 1 and 2, 3 and 4, 5 and 6, 7 and 8."""
    for _ in range(4):
        await kept(journal, event(), event())


async def test_read_gives_whole_commits_after_an_offset(journal, sink):
    await four_commits(journal)
    assert [commit.first_seq for commit in await journal.read(0, 8, 100)] == [1, 3, 5, 7]
    assert [commit.first_seq for commit in await journal.read(2, 8, 100)] == [3, 5, 7]
    assert [commit.first_seq for commit in await journal.read(2, 6, 100)] == [3, 5]
    assert [commit.first_seq for commit in await journal.read(4, 8, 2)] == [5]
    assert [commit.first_seq for commit in await journal.read(2, 8, 3)] == [3, 5]
    assert [commit.first_seq for commit in await journal.read(2, 8, 1)] == [3]
    assert await journal.read(8, 8, 100) == []
    (commit,) = await journal.read(6, 8, 100)
    assert commit.unpack() == sink.commits[-1]


async def test_read_from_the_middle_of_a_commit_gives_that_commit(journal, sink):
    await four_commits(journal)
    assert [commit.first_seq for commit in await journal.read(1, 8, 100)] == [1, 3, 5, 7]
    assert [commit.first_seq for commit in await journal.read(3, 7, 100)] == [3, 5, 7]
    await journal.trim({"store": 8}, 3)
    assert [commit.first_seq for commit in await journal.read(3, 8, 100)] == [3, 5, 7]
    assert [commit.first_seq for commit in await journal.read(0, 8, 100)] == [3, 5, 7]


async def test_trim_lets_go_of_whole_commits_up_to_the_floor(journal, sink):
    await four_commits(journal)
    await journal.trim({"store": 5}, 5)
    assert journal.trimmed_to == 4
    assert [commit.first_seq for commit in await journal.read(0, 8, 100)] == [5, 7]
    await journal.trim({"store": 5}, 5)
    await journal.trim({"store": 5}, 0)
    assert journal.trimmed_to == 4
    await journal.trim({"store": 8}, 8)
    assert journal.trimmed_to == 8
    assert await journal.read(0, 8, 100) == []
    await kept(journal, event())
    assert journal.last_seq == 9


async def test_a_repeat_of_what_was_trimmed_is_known(journal, sink):
    await kept(journal, event(event_id="x"))
    await journal.trim({"store": 1}, 1)
    assert await kept(journal, event(event_id="x")) == [False]


async def test_a_commit_that_fails_keeps_nothing_and_tells_everybody(journal, harness, sink):
    await kept(journal, event())
    harness.break_commits()
    first = append(journal, big(event_id="x"))
    repeat = append(journal, event(event_id="x"))
    assert isinstance(await first.outcome(), UnavailableError)
    assert isinstance(await repeat.outcome(), UnavailableError)
    assert journal.last_seq == 1
    harness.mend()
    assert await kept(journal, big(event_id="x")) == [True]
    assert journal.last_seq == 2
    assert sink.seqs == [1, 2]


async def test_of_a_refused_batch_nothing_is_kept_though_part_of_it_waited_for_the_next_commit(journal, harness):
    """One event repeats what is being committed, the other is new: if that commit fails, the new one goes too."""
    sink = Sink()
    harness.break_commits()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run, sink)
        append(journal, big(event_id="x"))
        await trio.lowlevel.checkpoint()  # the loop has begun on it, in its thread
        mixed = append(journal, event(event_id="x"), event(event_id="y", named=False))
        outcome = await mixed.outcome()
        harness.mend()
        assert await kept(journal, event(event_id="z")) == [True]
        journal.finish()
    assert isinstance(outcome, UnavailableError)
    assert "y" not in [item.event_id for item in sink.events]
