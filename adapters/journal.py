"""The journal on SQLite: WAL, synchronous=FULL, one row a commit.

Format 1, tables:

* ``meta(key, value)``: ``format``, ``id`` (UUID, hex), ``key`` (of the digests, hex), ``trimmed_to``.
* ``commits(first_seq, last_seq, received_at, payload)``: ``payload`` is a msgpack array of `engine.event.Event`.
* ``digests(first_seq, received_at, ids)``: 64-bit digests of the commit's client-given event ids. They outlive the
  payload, for as long as a repeat must be known, so they have rows of their own: trimming frees whole rows.
* ``offsets(store, seq)``: what each store had committed when it was last told; the store itself knows better.

While one commit is on its way to the disk, arrivals queue; the next takes them all (group commit).
"""

import os
import secrets
import sqlite3
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID, uuid4

import msgspec
import structlog
import trio

from engine.clock import WallClock
from engine.dedupe import DEDUPE_PARTS, DedupeWindow, Digester
from engine.errors import StartError, UnavailableError
from engine.event import Commit, Event, PackedCommit
from engine.measures import Histogram
from engine.ports import CommitSink, Settle

_FORMAT: Final = "1"
_SCHEMA: Final = """
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists commits (
    first_seq integer primary key, last_seq integer not null, received_at integer not null, payload blob not null);
create table if not exists digests (first_seq integer primary key, received_at integer not null, ids blob not null);
create table if not exists offsets (store text primary key, seq integer not null) without rowid;
"""
# Events in one transaction. Bounds how long one commit can take, and so how long the next waits.
_MAX_COMMIT_EVENTS: Final = 5000
# Events that may wait for a commit. Past it the disk is hopelessly behind, and 503 is the honest answer.
_MAX_QUEUED_EVENTS: Final = 20_000
# How long one look at the free disk counts, in seconds.
_DISK_CHECK_S: Final = 1.0
# Payload that one `read` may bring into memory.
_MAX_READ_BYTES: Final = 8 * 1024 * 1024
# Bytes of a page, of a new journal: a commit under load fills several, and each costs calls of its own to write, copy,
# read and free. Larger ones cost a commit of one event more than they save (docs/performance.md).
_PAGE_BYTES: Final = 8192
# Bytes of WAL after which a commit itself checkpoints. Trims have done most of it in the background by then, so what
# is left is short: done whole in line, 16 MB stalled the commits for 100 ms (docs/performance.md).
_CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
# Commits that one trim removes, so that it stays short: it runs in line with the commits.
_TRIM_COMMITS: Final = 500
# Bytes of free pages that the files may keep for the next commits; past it they go back to the disk, and while the
# disk is low nearly all do. What is left is rewritten for that, in line with the commits, so it may not be much.
_SLACK_BYTES: Final = 64 * 1024 * 1024
_SLACK_LOW_BYTES: Final = 256 * 1024
_MAX_REWRITE_BYTES: Final = 16 * 1024 * 1024

log = structlog.get_logger("journal")


class _Batch:
    """Events that will share a commit, and who waits for it."""

    __slots__ = ("digests", "error", "events", "waiters")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.digests: array[int] = array("Q")
        self.waiters: list[_Waiter] = []
        self.error: UnavailableError | None = None


# One `append` that waits for its last batch: which of its events are new, and whom to tell.
_Waiter: TypeAlias = tuple[list[bool], Settle]


class SqliteJournal:
    """`engine.ports.Journal` in ``directory``. Construct, `open`, then `run` in a nursery, then `close`."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        min_free_bytes: int,
        dedupe_window_s: float,
        dedupe_max_events: int,
        clock: WallClock,
    ) -> None:
        self._path = directory / "journal.sqlite"
        self.max_bytes = max_bytes  # this and the next may be changed while it runs
        self.min_free_bytes = min_free_bytes
        self._window_ms = int(dedupe_window_s * 1000)
        self._window = DedupeWindow(max_events=dedupe_max_events, window_ms=self._window_ms)
        self._clock = clock
        self._batches: deque[_Batch] = deque()
        self._committing: list[_Batch] = []  # at most one
        self._pending: dict[int, _Batch] = {}  # digest -> the batch it waits in
        self._queued = 0
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)  # one worker thread: commits and trims never meet
        self._read_limiter = trio.CapacityLimiter(1)
        self._finishing = False
        self._disk_seen = -_DISK_CHECK_S
        self._disk_fault: str | None = None
        self._commit_fault: str | None = None
        self.id = UUID(int=0)
        self.last_seq = 0
        self.trimmed_to = 0
        self.payload_bytes = 0
        self.accepted = self.duplicates = 0  # events, since the start
        self.commit_times = Histogram()

    def open(self) -> None:
        """Create or recover it. Raises StartError when the file is not a journal that this version can read."""
        try:
            self._db = _connect(self._path)
            self._reader = _connect(self._path)
            self._db.execute(f"pragma page_size={_PAGE_BYTES}")  # one that is there keeps its own
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            # Debian builds SQLite to write zeros over all that is deleted: a trim wrote the events a second time.
            self._db.execute("pragma secure_delete=fast")
            self._db.execute(f"pragma wal_autocheckpoint={_CHECKPOINT_BYTES // self._measure('page_size')}")
            with _transaction(self._db):
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._load_meta()
            self._recover()
            self._look_at_disk()
        except sqlite3.Error as error:
            raise StartError(
                f"journal: {self._path} cannot be read ({error}); restore it, or move it away to start a new journal"
            ) from None

    def _load_meta(self) -> None:
        meta = dict(self._db.execute("select key, value from meta").fetchall())
        if not meta:
            meta = {"format": _FORMAT, "id": uuid4().hex, "key": secrets.token_hex(16), "trimmed_to": "0"}
            self._db.executemany("insert into meta values (?, ?)", meta.items())
        if not meta.keys() >= {"format", "id", "key", "trimmed_to"}:
            raise StartError(f"journal: {self._path} is not a journal; move it away to start a new one")
        if meta["format"] != _FORMAT:
            raise StartError(
                f"journal: {self._path} has format {meta['format']}, this version reads {_FORMAT}: upgrade classpulse"
            )
        self.id = UUID(meta["id"])
        self._digest = Digester(bytes.fromhex(meta["key"]))
        self.trimmed_to = int(meta["trimmed_to"])

    def _recover(self) -> None:
        started = time.monotonic()
        last, size = self._db.execute("select max(last_seq), total(length(payload)) from commits").fetchone()
        self.last_seq = max(last or 0, self.trimmed_to)
        self.payload_bytes = int(size)
        since = self._clock() - self._window_ms
        rows = self._db.execute(
            "select received_at, ids from digests where received_at >= ? order by first_seq", (since,)
        )
        for received_at, ids in rows:
            self._window.add(received_at, array("Q", ids))
        took = time.monotonic() - started
        log.info(
            "journal open",
            id=str(self.id),
            last_seq=self.last_seq,
            trimmed_to=self.trimmed_to,
            payload_bytes=self.payload_bytes,
            dedupe_events=len(self._window),
            stored=self.offsets(),
            seconds=round(took, 3),
        )

    def close(self) -> None:
        """Let go of the files. What was committed is on the disk already."""
        self._reader.close()
        self._db.close()

    # --- writing

    @property
    def fault(self) -> str | None:
        """Why events cannot be made durable now; None when they can, as far as is known."""
        if self.payload_bytes > self.max_bytes:
            return f"{self.payload_bytes} bytes wait for the stores, over journal.max_bytes ({self.max_bytes})"
        self._look_at_disk()
        return self._disk_fault

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._disk_seen < _DISK_CHECK_S:
            return
        self._disk_seen = now
        disk = os.statvfs(self._path.parent)
        free = disk.f_bavail * disk.f_frsize
        self._disk_fault = None
        if free < self.min_free_bytes:
            self._disk_fault = f"{free} bytes of disk are free, under journal.min_free_bytes ({self.min_free_bytes})"

    @property
    def health(self) -> dict[str, object]:
        """For `/api/v1/health`: ``status`` is healthy or unhealthy, and what an operator wants to know beside it."""
        fault = self.fault or self._commit_fault
        facts: dict[str, object] = {
            "status": "healthy" if fault is None else "unhealthy",
            "last_seq": self.last_seq,
            "trimmed_to": self.trimmed_to,
            "payload_bytes": self.payload_bytes,
        }
        return facts if fault is None else facts | {"error": fault}

    def append(self, events: list[Event], settle: Settle) -> None:
        """See `engine.ports.Journal.append`."""
        # The commit loop keeps an eye on the disk; while something is wrong, every append looks again.
        if (self._disk_fault or self.payload_bytes > self.max_bytes) and (fault := self.fault) is not None:
            raise UnavailableError(fault, retry_after_s=5)
        if self._queued >= _MAX_QUEUED_EVENTS:
            raise UnavailableError("too many events wait for the disk")
        fresh, batches = self._enqueue(events)
        if batches:
            # Batches commit in order, and the newest of them is the open one or holds a repeat's first.
            batches[-1].waiters.append((fresh, settle))
        else:
            settle(fresh)

    def _enqueue(self, events: list[Event]) -> tuple[list[bool], list[_Batch]]:
        """Put new events into one batch; tells which are new, and the batches that hold ``events``, oldest first."""
        batch = self._batches[-1] if self._batches else _Batch()
        if len(batch.events) >= _MAX_COMMIT_EVENTS:
            batch = _Batch()
        digest, pending, parts = self._digest, self._pending, self._window.parts
        waits: list[_Batch] = []
        fresh: list[bool] = []
        before = len(batch.events)
        for event in events:
            holder: _Batch | None = batch
            is_new = True
            if event.named:
                value = digest(event.class_id, event.user_id, event.event_id)
                holder = pending.get(value)
                if holder is None and value not in parts[value % DEDUPE_PARTS]:
                    pending[value] = holder = batch
                    batch.digests.append(value)
                else:
                    is_new = False
                    self.duplicates += 1
            fresh.append(is_new)
            if is_new:
                batch.events.append(event)
            if holder is not None and holder not in waits:
                waits.append(holder)
        if len(waits) > 1:
            order = [*self._committing, *self._batches, batch]
            waits.sort(key=order.index)
        added = len(batch.events) - before
        if added:
            self._queued += added
            if not before:  # a batch of which nobody knows yet
                self._batches.append(batch)
                self._wake.set()
        return fresh, waits

    async def run(self, sink: CommitSink) -> None:
        """The commit loop. After `finish` it commits what is queued, and returns."""
        while True:
            if not self._batches:
                if self._finishing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            await self._commit_next(sink)

    async def _commit_next(self, sink: CommitSink) -> None:
        """Commit the oldest batch, and tell those who wait. Nothing of it is kept for the next."""
        batch = self._batches.popleft()
        self._committing = [batch]
        ended = [batch]
        commit = Commit(self.last_seq + 1, self._clock(), batch.events)
        began = time.monotonic()
        try:
            size = await trio.to_thread.run_sync(self._commit, commit, batch.digests, limiter=self._limiter)
        except sqlite3.Error as error:
            self._commit_fault = f"the journal cannot commit: {error}"
            log.warning("commit failed", error=str(error), events=len(batch.events), path=str(self._path))
            # A refusal means that nothing was kept. What waits may share a request with what failed: it goes too.
            ended += self._batches
            self._batches.clear()
            for lost in ended:
                lost.error = UnavailableError(self._commit_fault, retry_after_s=5)
        else:
            self._commit_fault = None
            self.commit_times.observe(time.monotonic() - began)
            self.accepted += len(batch.events)
            self.last_seq += len(batch.events)
            self.payload_bytes += size
            self._window.add(commit.received_at, batch.digests)
        self._committing = []
        self._forget(ended)
        self._look_at_disk()
        if batch.error is None:
            await sink(commit)
        for over in ended:
            for fresh, settle in over.waiters:
                # Whatever else it waited for was committed before, or failed with this.
                settle(fresh if over.error is None else over.error)

    def _forget(self, ended: list[_Batch]) -> None:
        """These batches wait no longer."""
        for batch in ended:
            self._queued -= len(batch.events)
            for value in batch.digests:
                del self._pending[value]

    def finish(self) -> None:
        """Let `run` return once all that was appended is committed."""
        self._finishing = True
        self._wake.set()

    def _commit(self, commit: Commit, digests: "array[int]") -> int:
        """In the worker thread: one transaction. Returns the bytes of its payload."""
        packed = commit.pack()
        with _transaction(self._db):
            self._db.execute("insert into commits values (?, ?, ?, ?)", msgspec.structs.astuple(packed))
            if digests:
                ids = (packed.first_seq, packed.received_at, digests.tobytes())
                self._db.execute("insert into digests values (?, ?, ?)", ids)
        return len(packed.payload)

    # --- reading and trimming

    async def read(self, after: int, upto: int, max_events: int) -> list[PackedCommit]:
        """See `engine.ports.Journal.read`."""
        return await trio.to_thread.run_sync(self._read, after, upto, max_events, limiter=self._read_limiter)

    def _read(self, after: int, upto: int, max_events: int) -> list[PackedCommit]:
        commits: list[PackedCommit] = []
        events = size = 0
        rows = self._reader.execute(
            "select first_seq, last_seq, received_at, payload from commits where last_seq > ? and first_seq <= ? "
            # A store's snapshots may end within a commit: then it begins with the commit that holds the next event.
            "and first_seq >= coalesce((select max(first_seq) from commits where first_seq <= ? + 1), 0) "
            "order by first_seq",
            (after, upto, after),
        )
        for row in rows:
            commits.append(PackedCommit(*row))
            events += len(commits[-1])
            size += len(commits[-1].payload)
            if events >= max_events or size >= _MAX_READ_BYTES:
                break
        rows.close()
        return commits

    def offsets(self) -> dict[str, int]:
        """What each store had committed when it was last told: never ahead of the store itself."""
        return dict(self._db.execute("select store, seq from offsets").fetchall())

    async def trim(self, offsets: dict[str, int], floor: int) -> None:
        """See `engine.ports.Journal.trim`."""
        count = _TRIM_COMMITS
        while count == _TRIM_COMMITS:
            count, last, size = await trio.to_thread.run_sync(self._trim, offsets, floor, limiter=self._limiter)
            if count:
                self.trimmed_to = last
                self.payload_bytes -= size
        # Passive: it copies what it can from the WAL into the database and never makes a commit wait.
        await trio.to_thread.run_sync(
            self._reader.execute, "pragma wal_checkpoint(passive)", limiter=self._read_limiter
        )
        await trio.to_thread.run_sync(self._shrink, limiter=self._limiter)

    def _trim(self, offsets: dict[str, int], floor: int) -> tuple[int, int, int]:
        """In the worker thread: trim up to `_TRIM_COMMITS`; how many, the last seq of them, and their bytes."""
        with _transaction(self._db):
            self._db.executemany("insert or replace into offsets values (?, ?)", offsets.items())
            count, last, size = self._db.execute(
                # Asked for inside, the length is known from the row's head; outside, SQLite reads the payload first.
                # `first_seq` ends the search: while a store is behind, all that it lacks would be looked at each time.
                "select count(*), max(last_seq), total(size) from (select last_seq, length(payload) as size "
                "from commits where first_seq <= ?1 and last_seq <= ?1 order by first_seq limit ?2)",
                (floor, _TRIM_COMMITS),
            ).fetchone()
            if count:
                self._db.execute("delete from commits where first_seq <= ?", (last,))
                self._db.execute("update meta set value = ? where key = 'trimmed_to'", (str(last),))
            self._db.execute(
                # Up to the first that is young enough, as the window does: a look at all takes longer than a commit.
                "delete from digests where first_seq < coalesce((select first_seq from digests "
                "where first_seq <= ?1 and received_at >= ?2 order by first_seq limit 1), ?1 + 1)",
                (max(last or 0, self.trimmed_to), self._clock() - self._window_ms),
            )
        return int(count), last or 0, int(size)

    def _measure(self, name: str) -> int:
        """One of SQLite's numbers about the file, by the name of its pragma."""
        return int(self._db.execute(f"pragma {name}").fetchone()[0])

    def _shrink(self) -> None:
        """In the worker thread: give space back to the disk that an outage took, once the stores have what it held.

        Free pages alone would be used again, but the disk would stay low, and events refused, for good.
        """
        low = self._disk_fault is not None
        pages, free, page_bytes = map(self._measure, ("page_count", "freelist_count", "page_size"))
        slack, rest = free * page_bytes, (pages - free) * page_bytes
        if slack <= (_SLACK_LOW_BYTES if low else _SLACK_BYTES) or rest > min(slack, _MAX_REWRITE_BYTES):
            return
        try:
            self._db.execute("vacuum")
            self._db.execute("pragma wal_checkpoint(truncate)")
        except sqlite3.Error as error:  # as it was, only larger; the next trim tries again
            log.warning("the journal's file could not be made smaller", error=str(error), path=str(self._path))
            return
        self._disk_seen = -_DISK_CHECK_S
        log.info("the journal's file was made smaller", freed_bytes=slack)


def _connect(path: Path) -> sqlite3.Connection:
    # Used from one worker thread at a time, as its limiter holds.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise
