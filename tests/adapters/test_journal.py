"""The journal on SQLite: what only a file can do."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import attrs
import pytest
import trio

from adapters.journal import _MAX_QUEUED_EVENTS, SqliteJournal
from adapters.lock import DirectoryLock
from engine.errors import StartError, UnavailableError
from engine.event import Commit
from tests.adapters.events import NOW, Sink, append, event, kept

WINDOW_S = 600


@attrs.define
class Clock:
    now: int = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def start(tmp_path, clock, nursery):
    """Open the journal and run its commit loop; what was opened last is closed at the end."""
    opened = []

    def start(**settings):
        limits = {"max_bytes": 2**30, "min_free_bytes": 0, "dedupe_window_s": WINDOW_S, "dedupe_max_events": 10_000}
        journal = SqliteJournal(tmp_path, **limits | settings, clock=clock)
        journal.open()
        opened.append(journal)
        journal.sink = Sink()
        journal.ended = trio.Event()

        async def run():
            try:
                await journal.run(journal.sink)
            finally:
                journal.ended.set()

        nursery.start_soon(run)
        return journal

    yield start
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        for journal in opened:
            await journal.ended.wait()  # its thread must not be at work in what is closed
            journal.close()


async def stop(journal):
    journal.finish()
    with trio.fail_after(10):
        await journal.ended.wait()
    journal.close()


def file_of(tmp_path):
    return tmp_path / "journal.sqlite"


async def test_of_a_commit_that_is_told_nothing_is_kept(start):
    """Let go late, its events are freed when the processor's cache holds others (docs/performance.md)."""
    once = event()
    journal = start()
    await kept(journal, once)
    journal.sink.commits.clear()
    await trio.testing.wait_all_tasks_blocked()
    assert sys.getrefcount(once) == 2  # ours, and the call's


async def test_reopened_it_goes_on_where_it_was(start):
    journal = start()
    await kept(journal, event(event_id="x"), event(event_id="y"))
    await stop(journal)
    again = start()
    assert again.id == journal.id
    assert again.last_seq == 2
    assert again.payload_bytes == journal.payload_bytes > 0
    assert [item.event_id for commit in await again.read(0, 2, 10) for item in commit.unpack().events] == ["x", "y"]
    await kept(again, event())
    assert again.sink.seqs == [3]


async def test_a_commit_is_there_for_another_process_when_it_is_settled(start, tmp_path):
    journal = start()
    found = []

    def settle(outcome):
        with sqlite3.connect(file_of(tmp_path)) as other:
            found.extend(other.execute("select last_seq from commits").fetchall())
        other.close()

    journal.append([event(), event()], settle)
    await kept(journal, event())
    assert found[0] in [(2,), (3,)]


async def test_repeats_are_known_after_a_restart_though_their_payload_is_gone(start, clock):
    journal = start()
    await kept(journal, event(event_id="x"))
    await kept(journal, event(event_id="unnamed", named=False))
    await journal.trim({"store": 2}, 2)
    await stop(journal)
    clock.now += (WINDOW_S - 1) * 1000
    again = start()
    assert await again.read(0, 2, 10) == []
    assert await kept(again, event(event_id="x"), event(event_id="unnamed")) == [False, True]


async def test_repeats_older_than_the_window_are_not_kept_for_ever(start, clock, tmp_path):
    journal = start()
    await kept(journal, event(event_id="x"))
    clock.now += (WINDOW_S + 1) * 1000
    await kept(journal, event(event_id="y"))

    def stored():
        with closing(sqlite3.connect(file_of(tmp_path))) as other:
            return other.execute("select first_seq from digests order by first_seq").fetchall()

    await journal.trim({"store": 2}, 2)
    assert stored() == [(2,)]
    assert await kept(journal, event(event_id="x"), event(event_id="y")) == [True, False]
    clock.now += (WINDOW_S + 1) * 1000
    await journal.trim({"store": 2}, 2)
    assert stored() == [(3,)]  # not trimmed yet, so a restart would miss it
    await journal.trim({"store": 3}, 3)
    assert stored() == []


async def test_the_window_is_bounded_by_count(start):
    journal = start(dedupe_max_events=2)
    for name in "abc":
        await kept(journal, event(event_id=name))
    assert await kept(journal, event(event_id="c"), event(event_id="a")) == [False, True]


async def test_last_seq_outlives_everything_that_was_trimmed(start):
    journal = start()
    await kept(journal, event(), event(), event())
    await journal.trim({"store": 3, "store.snapshots": 3}, 3)
    await stop(journal)
    again = start()
    assert (again.last_seq, again.trimmed_to, again.payload_bytes) == (3, 3, 0)
    assert again.offsets() == {"store": 3, "store.snapshots": 3}
    await kept(again, event())
    assert again.sink.seqs == [4]


async def test_trimming_thousands_of_commits_goes_in_steps_that_let_commits_through(start):
    journal = start()
    journal._db.execute("begin")
    payload = Commit(1, NOW, [event()]).pack().payload
    journal._db.executemany(
        "insert into commits values (?, ?, ?, ?)", [(seq, seq, NOW, payload) for seq in range(1, 1302)]
    )
    journal._db.execute("commit")
    await stop(journal)
    again = start()
    assert again.last_seq == 1301
    await again.trim({"store": 1300}, 1300)
    assert (again.trimmed_to, again.payload_bytes) == (1300, len(payload))


async def test_a_trim_looks_at_little_of_what_stays(start):
    """It runs in line with the commits, some times a second: what waits for a store may be millions of events."""
    journal = start()
    payload = Commit(1, NOW, [event()]).pack().payload
    journal._db.execute("begin")
    seqs = range(1, 5001)
    journal._db.executemany("insert into commits values (?, ?, ?, ?)", [(seq, seq, NOW, payload) for seq in seqs])
    journal._db.executemany("insert into digests values (?, ?, ?)", [(seq, NOW, bytes(8)) for seq in seqs])
    journal._db.execute("commit")
    steps = []
    journal._db.set_progress_handler(lambda: steps.append(1), 100)  # each 100 instructions of SQLite's machine
    await journal.trim({"store": 2000}, 2000)
    removing = len(steps)
    steps.clear()
    await journal.trim({"store": 2000}, 2000)
    assert len(steps) < 20 < removing


async def test_past_its_bytes_it_refuses_until_it_is_trimmed(start):
    journal = start(max_bytes=1000)
    await kept(journal, event(data='{"text":"%s"}' % ("x" * 2000)))
    assert journal.health["status"] == "unhealthy"
    with pytest.raises(UnavailableError, match="max_bytes") as refused:
        append(journal, event())
    assert refused.value.retry_after_s > 0
    await journal.trim({"store": 1}, 1)
    assert journal.payload_bytes == 0
    assert journal.health["status"] == "healthy"
    assert await kept(journal, event()) == [True]


async def test_past_the_free_disk_it_refuses_until_there_is_room(start):
    journal = start(min_free_bytes=2**62)
    with pytest.raises(UnavailableError, match="min_free_bytes"):
        append(journal, event())
    journal.min_free_bytes = 0
    journal._disk_seen = -1e9  # it looks once a second
    assert await kept(journal, event()) == [True]


async def test_what_an_outage_took_of_the_disk_is_given_back_once_the_disk_is_low(start, tmp_path):
    """Free pages in the file do not help a disk that is low: it would stay so, and everything be refused."""

    def size():
        return sum(file.stat().st_size for file in tmp_path.iterdir())

    journal = start()
    for _ in range(40):
        await kept(journal, event(data='{"text":"%s"}' % ("x" * 100_000)))
    await journal.trim({"store": 20}, 20)
    assert size() > 4_000_000
    journal.min_free_bytes = 2**62
    journal._disk_seen = -1e9  # it looks once a second
    assert "min_free_bytes" in journal.fault
    await journal.trim({"store": 40}, 40)
    assert size() < 200_000
    journal.min_free_bytes = 0
    assert journal.fault is None  # it looks at once
    assert await kept(journal, event()) == [True]
    assert [commit.first_seq for commit in await journal.read(40, 41, 10)] == [41]


async def test_a_trim_does_not_write_what_it_removes(start, tmp_path):
    """SQLite may be built to write zeros over it: all that was ever journaled would be written a second time."""
    journal = start()
    for _ in range(20):
        await kept(journal, event(data='{"text":"%s"}' % ("x" * 100_000)))
    journal._db.execute("pragma wal_checkpoint(truncate)")
    wal = file_of(tmp_path).with_name("journal.sqlite-wal")
    assert wal.stat().st_size == 0
    await journal.trim({"store": 20}, 20)
    assert 0 < wal.stat().st_size < 200_000


async def test_a_journal_with_other_pages_goes_on(start, monkeypatch):
    monkeypatch.setattr("adapters.journal._PAGE_BYTES", 4096)
    older = start()
    await kept(older, *[event(data='{"text":"%s"}' % ("x" * 10_000)) for _ in range(3)])
    await stop(older)
    monkeypatch.undo()
    journal = start()
    await kept(journal, event())
    await journal.trim({"store": 3}, 3)
    assert [commit.first_seq for commit in await journal.read(3, 4, 10)] == [4]
    assert (journal._measure("page_size"), journal._measure("freelist_count") > 5) == (4096, True)


async def test_appends_during_one_commit_share_the_next(start):
    journal = start()
    journal.sink.hold()
    first = append(journal, event())
    with trio.fail_after(10):
        while not journal.sink.commits:
            await trio.sleep(0.001)
    rest = [append(journal, event()) for _ in range(300)]
    journal.sink.release()
    for receipt in (first, *rest):
        assert await receipt.outcome() == [True]
    assert [len(commit.events) for commit in journal.sink.commits] == [1, 300]


async def test_concurrent_clients_share_commits(start, nursery):
    journal = start()

    async def client():
        for _ in range(10):
            await kept(journal, event())

    async with trio.open_nursery() as clients:
        for _ in range(50):
            clients.start_soon(client)
    assert journal.last_seq == 500
    assert len(journal.sink.commits) < 100


async def test_one_commit_is_bounded(start):
    journal = start()
    receipts = [append(journal, *(event(named=False) for _ in range(1000))) for _ in range(12)]
    for receipt in receipts:
        await receipt.outcome()
    assert max(len(commit.events) for commit in journal.sink.commits) <= 6000
    assert journal.last_seq == 12_000


async def test_more_waiting_than_the_disk_can_take_is_refused(start):
    journal = start()
    receipts = [append(journal, *(event(named=False) for _ in range(1000))) for _ in range(_MAX_QUEUED_EVENTS // 1000)]
    with pytest.raises(UnavailableError, match="wait for the disk"):
        append(journal, event())
    for receipt in receipts:
        assert not isinstance(await receipt.outcome(), UnavailableError)
    assert await kept(journal, event()) == [True]


async def test_a_failed_commit_shows_in_health_until_one_goes_through(start):
    journal = start()
    await kept(journal, event())
    (pages,) = journal._db.execute("pragma page_count").fetchone()
    journal._db.execute(f"pragma max_page_count={pages}")
    outcome = await append(journal, event(data='{"text":"%s"}' % ("x" * 20_000))).outcome()
    assert isinstance(outcome, UnavailableError)
    assert "full" in str(outcome)
    assert outcome.retry_after_s > 0
    assert journal.health["status"] == "unhealthy"
    journal._db.execute("pragma max_page_count=1073741823")
    await kept(journal, event())
    assert journal.health["status"] == "healthy"


@pytest.mark.parametrize(
    "content", [b"not a database at all, whatever its name says" * 200, b"SQLite format 3\0" * 900]
)
async def test_a_foreign_file_is_a_start_error(start, tmp_path, content):
    file_of(tmp_path).write_bytes(content)
    with pytest.raises(StartError, match=r"journal.sqlite cannot be read"):
        start()
    assert file_of(tmp_path).read_bytes() == content


async def test_a_newer_format_is_a_start_error(start, tmp_path):
    await stop(start())
    with sqlite3.connect(file_of(tmp_path)) as other:
        other.execute("update meta set value = '2' where key = 'format'")
    other.close()
    with pytest.raises(StartError, match="upgrade"):
        start()


async def test_another_programs_database_is_a_start_error_and_stays_as_it_was(start, tmp_path):
    with sqlite3.connect(file_of(tmp_path)) as other:
        other.execute("create table meta (key text primary key, value text)")
        other.execute("insert into meta values ('owner', 'somebody else')")
    other.close()
    with pytest.raises(StartError):
        start()
    with sqlite3.connect(file_of(tmp_path)) as other:
        assert other.execute("select * from meta").fetchall() == [("owner", "somebody else")]
    other.close()


# --- the lock on the directory

HOLDER = """
import sys
from pathlib import Path
from adapters.lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StartError, match=f"pid {holder.pid}"), DirectoryLock(tmp_path / "data"):
            pass
        holder.kill()
        holder.wait()
        with DirectoryLock(tmp_path / "data"):
            pass


def test_a_directory_that_cannot_be_made_is_a_start_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="data_dir: cannot use"), DirectoryLock(tmp_path / "file" / "data"):
        pass
