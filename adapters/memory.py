"""In-memory twins of the ports, under the same contract suites as the real ones. Nothing here outlives the process.

Journal, stores and bus are for tests: they are not bounded, and the first two break on purpose when they are told to.
The cache serves where no Redis is configured, too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from uuid import UUID, uuid4

import msgspec
import trio

from engine.clock import WallClock
from engine.cohort import NotebookTotals
from engine.errors import StoreDataError, StoreUnavailableError, UnavailableError
from engine.event import CELL_TYPES, Commit, Event, PackedCommit, UserKey
from engine.ports import (
    ClassSession,
    CommitSink,
    DeadLetter,
    Flush,
    Retention,
    Sample,
    SessionRow,
    Settle,
    Snapshot,
    StoredOffsets,
)
from engine.rows import decode_state
from engine.session import UserState

# Values in the cache; past it the one that was put first goes. A notebook's summary is some kilobytes.
_MAX_CACHED: Final = 1000

# What a repeat is known by: (class, user, event_id).
_Name = tuple[str, str, str]


class MemoryJournal:
    """`engine.ports.Journal`: what was appended while one commit went into the sink shares the next."""

    def __init__(self, *, clock: WallClock) -> None:
        self._clock = clock
        self._commits: list[Commit] = []
        self._events: list[Event] = []  # the next commit
        self._waiters: list[tuple[list[bool], Settle]] = []
        self._known: set[_Name] = set()
        self._pending: set[_Name] = set()
        self._wake = trio.Event()
        self._finishing = False
        self.id = uuid4()
        self.last_seq = 0
        self.trimmed_to = 0
        self.offsets: dict[str, int] = {}
        self.full: str | None = None  # set: `append` refuses with this
        self.broken: str | None = None  # set: commits fail with this

    def append(self, events: list[Event], settle: Settle) -> None:
        """See `engine.ports.Journal.append`."""
        if self.full is not None:
            raise UnavailableError(self.full)
        fresh: list[bool] = []
        waits = False
        for event in events:
            name = (event.class_id, event.user_id, event.event_id)
            repeat = event.named and (name in self._known or name in self._pending)
            waits = waits or not repeat or name in self._pending
            fresh.append(not repeat)
            if not repeat:
                self._events.append(event)
                if event.named:
                    self._pending.add(name)
        if waits:
            self._waiters.append((fresh, settle))
            self._wake.set()
        else:
            settle(fresh)

    async def run(self, sink: CommitSink) -> None:
        """The commit loop. After `finish` it commits what is queued, and returns."""
        while True:
            if not self._waiters:
                if self._finishing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            events, self._events = self._events, []
            waiters, self._waiters = self._waiters, []
            names, self._pending = self._pending, set()
            if self.broken is not None:
                for _, settle in waiters:
                    settle(UnavailableError(self.broken))
                continue
            commit = Commit(self.last_seq + 1, self._clock(), events)
            self._commits.append(commit)
            self._known |= names
            self.last_seq = commit.last_seq
            await sink(commit)
            for fresh, settle in waiters:
                settle(fresh)

    def finish(self) -> None:
        """Let `run` return once all that was appended is committed."""
        self._finishing = True
        self._wake.set()

    async def read(self, after: int, upto: int, max_events: int) -> list[PackedCommit]:
        """See `engine.ports.Journal.read`."""
        await trio.lowlevel.checkpoint()
        found: list[PackedCommit] = []
        events = 0
        for commit in self._commits:
            if commit.last_seq > after and commit.first_seq <= upto and events < max_events:
                found.append(commit.pack())
                events += len(commit.events)
        return found

    async def trim(self, offsets: dict[str, int], floor: int) -> None:
        """See `engine.ports.Journal.trim`."""
        await trio.lowlevel.checkpoint()
        self.offsets |= offsets
        while self._commits and self._commits[0].last_seq <= floor:
            self.trimmed_to = self._commits.pop(0).last_seq


class MemoryStore:
    """`engine.ports.Store` and `engine.ports.SessionQueries`. After a failed `write` it must be opened again."""

    name = "memory"

    def __init__(self, *, holds_series: bool = True) -> None:
        self._holds_series = holds_series
        self._opened = False
        self.away: str | None = None  # set: every call fails with this
        self.refuses: Callable[[object], bool] = lambda _: False  # of an event, a user's key or a dead letter
        self.lose_answer = False  # set: the next `write` commits, and fails
        self.rows: dict[tuple[UUID, int], Event] = {}  # by (journal, seq)
        self.states: dict[UserKey, Snapshot] = {}
        self.sessions: dict[tuple[UUID, int], tuple[UserKey, SessionRow]] = {}  # by (id, started_at)
        self.names: dict[str, str] = {}  # by user
        self.totals: dict[tuple[str, str], NotebookTotals] = {}  # by (class, path)
        self.dead_letters: dict[tuple[UUID, int], DeadLetter] = {}  # by (journal, seq)
        self.samples: list[Sample] = []
        self._offsets: dict[UUID, StoredOffsets] = {}

    async def open(self) -> None:
        """See `engine.ports.Store`."""
        await self._reach()
        self._opened = True

    async def close(self) -> None:
        """Let go of it; what it holds stays."""
        await trio.lowlevel.checkpoint()
        self._opened = False

    async def ping(self) -> None:
        """See `engine.ports.Store`."""
        await self._reach()

    def groups(self, keys: Iterable[UserKey]) -> list[list[UserKey]]:
        """See `engine.ports.StateKeeper`."""
        return [list(keys)]

    async def offsets(self, journal_id: UUID) -> StoredOffsets:
        """See `engine.ports.Store`."""
        await self._reach()
        return self._offsets.get(journal_id, StoredOffsets(0, 0))

    async def write(self, flush: Flush) -> None:
        """See `engine.ports.Store`."""
        opened, self._opened = self._opened, False
        await self._reach()
        if not opened:
            raise StoreUnavailableError("memory: not open")
        stored = self._offsets.get(flush.journal_id, StoredOffsets(0, 0))
        if stored.rows > flush.after:
            raise StoreUnavailableError("memory: the offset is not where it was")
        rows = {
            (flush.journal_id, seq): event
            for commit in flush.commits
            for seq, event in enumerate(commit.unpack().events, commit.first_seq)
            if self._holds_series or event.event_type not in CELL_TYPES
        }
        if rows.keys() & self.rows.keys() or not self._holds(flush, rows.values()):
            self._opened = True
            raise StoreDataError("memory", "ValueError")
        others = stored.others | flush.offsets
        self._offsets[flush.journal_id] = StoredOffsets(
            flush.upto, flush.snapshot_floor, {name: seq for name, seq in others.items() if seq is not None}
        )
        self.samples += flush.samples
        self.rows |= rows
        for snapshot in flush.snapshots:
            self._put(snapshot)
        for class_id, path, totals in flush.notebooks:
            self._put_totals(class_id, path, totals)
        for letter in flush.dead_letters:
            self.dead_letters.setdefault((flush.journal_id, letter.seq), letter)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailableError("memory: the answer was lost")
        self._opened = True

    async def tend(self, now: int, retention: Retention) -> int:  # noqa: ARG002
        """See `engine.ports.Store`. It has no months, and nothing in it lasts."""
        await self._reach()
        return 0

    async def sum_up(self) -> bool:
        """See `engine.ports.Store`. Its queries read rows."""
        await self._reach()
        return False

    async def snapshots(self, keys: Iterable[UserKey]) -> list[UserState]:
        """See `engine.ports.Store`."""
        wanted = list(keys)
        await self._reach()
        return [decode_state(self.states[key].state) for key in wanted if key in self.states]

    async def recent_snapshots(self, since: int) -> list[UserState]:
        """See `engine.ports.Store`."""
        await self._reach()
        return [decode_state(snapshot.state) for snapshot in self.states.values() if snapshot.last_receipt >= since]

    async def notebooks(self) -> list[tuple[str, str, NotebookTotals]]:
        """See `engine.ports.Store`."""
        await self._reach()
        return [(class_id, path, msgspec.structs.replace(item)) for (class_id, path), item in self.totals.items()]

    async def user_sessions(
        self, user_id: str, class_id: str, notebook: str | None, limit: int, before: tuple[int, UUID] | None
    ) -> list[SessionRow]:
        """See `engine.ports.SessionQueries`."""
        await self._reach()
        rows = [
            row
            for key, row in self.sessions.values()
            if key == (class_id, user_id)
            and (notebook is None or row.notebook_path == notebook)
            and (before is None or (row.started_at, row.id) < before)
        ]
        return sorted(rows, key=lambda row: (row.started_at, row.id), reverse=True)[:limit]

    async def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """See `engine.ports.SessionQueries`."""
        await self._reach()
        found = [
            ClassSession(key[1], self.names.get(key[1]), row)
            for key, row in self.sessions.values()
            if key[0] == class_id and row.started_at >= since and (before is None or (row.started_at, row.id) < before)
        ]
        return sorted(found, key=lambda each: (each.row.started_at, each.row.id), reverse=True)[:limit]

    def _holds(self, flush: Flush, events: Iterable[Event]) -> bool:
        keys = [snapshot.key for snapshot in flush.snapshots]
        return not any(map(self.refuses, [*events, *keys, *flush.dead_letters]))

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            self._opened = False
            raise StoreUnavailableError(f"memory: {self.away}")

    def _put(self, snapshot: Snapshot) -> None:
        self.states[snapshot.key] = snapshot
        if snapshot.profile is not None and snapshot.profile[0] is not None:
            self.names[snapshot.key[1]] = snapshot.profile[0]
        for identity in snapshot.moved:
            self.sessions.pop(identity, None)
        for row in snapshot.sessions:
            self.sessions[row.id, row.started_at] = (snapshot.key, row)
            if row.notebook_path is not None:
                self.totals.setdefault((snapshot.key[0], row.notebook_path), NotebookTotals())

    def _put_totals(self, class_id: str, path: str, totals: NotebookTotals) -> None:
        """Totals only grow; ``totals`` is live, so a copy is kept."""
        known = self.totals.get((class_id, path))
        if known is None or totals.highest_index >= known.highest_index:
            self.totals[class_id, path] = msgspec.structs.replace(totals)


class MemorySeries:
    """`engine.ports.RowStore` of time series: what is written again is the same point."""

    name = "series"

    def __init__(self) -> None:
        self.away: StoreUnavailableError | None = None  # set: every call fails with this
        self.refuses: Callable[[Event], bool] = lambda _: False
        self.lose_answer = False  # set: the next `write` commits, and fails
        self.points: dict[tuple[UUID, int], Event] = {}  # cell events, by (journal, seq)
        self.written = 0  # points, those that were there already too
        self.samples: list[Sample] = []

    async def open(self) -> None:
        """See `engine.ports.RowStore`."""
        await self._reach()

    async def ping(self) -> None:
        """See `engine.ports.RowStore`."""
        await self._reach()

    async def write(self, flush: Flush) -> None:
        """See `engine.ports.RowStore`. The points that are not refused are there even so."""
        await self._reach()
        refused = False
        for commit in flush.commits:
            for seq, event in enumerate(commit.unpack().events, commit.first_seq):
                if event.event_type not in CELL_TYPES:
                    continue
                if self.refuses(event):
                    refused = True
                    continue
                self.points[flush.journal_id, seq] = event
                self.written += 1
        if refused:
            raise StoreDataError(self.name, "MalformedLine")
        self.samples += flush.samples
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailableError("series: the answer was lost")

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            raise self.away


class MemoryBus:
    """`engine.ports.Bus` within the process."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, list[Callable[[bytes], None]]] = defaultdict(list)

    def listen(self, channel: str, listener: Callable[[bytes], None]) -> None:
        """Have every message of a channel from now on."""
        self._listeners[channel].append(listener)

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """See `engine.ports.Bus`."""
        for channel, text in messages:
            for listener in self._listeners.get(channel, ()):
                listener(text)


class MemoryCache:
    """`engine.ports.Cache` within the process, bounded."""

    def __init__(self, max_values: int = _MAX_CACHED) -> None:
        self._max_values = max_values
        self._values: dict[str, tuple[float, bytes | None]] = {}  # until when (trio's clock)

    async def get(self, key: str) -> bytes | None:
        """See `engine.ports.Cache`."""
        await trio.lowlevel.checkpoint()
        expires_at, value = self._values.get(key, (0.0, None))
        return value if trio.current_time() < expires_at else None

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `engine.ports.Cache`."""
        self._put(key, value, ttl_s)

    def put_fields(self, key: str, fields: Mapping[str, str], ttl_s: float) -> None:  # noqa: ARG002
        """See `engine.ports.Cache`. Fields are for other programs, and those cannot look in here."""
        self._put(key, None, ttl_s)

    def discard(self, key: str) -> None:
        """See `engine.ports.Cache`."""
        self._values.pop(key, None)

    def _put(self, key: str, value: bytes | None, ttl_s: float) -> None:
        self._values.pop(key, None)
        self._values[key] = (trio.current_time() + ttl_s, value)
        if len(self._values) > self._max_values:
            del self._values[next(iter(self._values))]
