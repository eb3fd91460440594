"""`engine.ports.Store` on PostgreSQL: rows by COPY, states by upsert, the offset with them, in one transaction."""

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from uuid import UUID

import msgspec
import trio

from adapters.asyncio_bridge import Connection, Dsn, to_timestamptz
from engine.clock import WallClock
from engine.cohort import NotebookTotals
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.event import CELL_TYPES, Event, Order, PackedCommit, UserKey
from engine.ids import notebook_uuid, user_uuid
from engine.measures import Histograms
from engine.ports import Flush, Retention, SessionRow, Snapshot, StoredOffsets
from engine.rows import decode_state
from engine.session import UserState

from .migrations import migrate
from .partitions import DAY_MS, Month, drop_months, make_months, months_around, months_of, tend_default
from .samples import copy_samples

# Keeps a second daemon off the database for as long as the writer's connection lives.
_DAEMON_LOCK: Final = 0x436C_6173_7370_756C
# After a kill, the server needs a moment to notice that the lock's owner is gone: seconds, and between two tries.
_LOCK_PATIENCE_S: Final = 3.0
_LOCK_POLL_S: Final = 0.2
# Rows between two looks at other tasks while a COPY is encoded: about 5 ms of work.
_COPY_CHUNK: Final = 1500
# PostgreSQL's `integer`. An event's cell_index may be as high, and its notebook then has one cell more.
_MAX_INTEGER: Final = 2**31 - 1
# Classes and notebooks known to be stored; only a saving of statements, so it may be forgotten.
_MAX_KNOWN: Final = 50_000

_CELL_COLUMNS: Final = (
    "event_id", "user_id", "class_id", "notebook_path", "cell_index", "event_type", "event_timestamp",
    "execution_duration_ms", "has_error", "error_message", "error_class", "execution_count", "session_id", "cell_id",
    "cell_type", "clock_skewed", "received_at", "data", "metadata", "seq", "journal_id",
)  # fmt: skip
_ACTIVITY_COLUMNS: Final = (
    "event_id", "user_id", "class_id", "notebook_path", "event_type", "event_timestamp", "data", "metadata",
    "session_id", "clock_skewed", "received_at", "seq", "journal_id",
)  # fmt: skip

Row: TypeAlias = tuple[Any, ...]


class PostgresStore:
    """Holds the writer's connection and one for recovery's reads; each is remade when it is lost."""

    name = "postgresql"

    def __init__(
        self,
        dsn: Dsn,
        *,
        apply_migrations: bool,
        clock: WallClock,
        times: Histograms | None = None,
        holds_series: bool = True,
    ) -> None:
        """``holds_series``: cell events and samples come here; without, another store has them."""
        self._dsn = dsn
        self._holds_series = holds_series
        self._times = times
        self._apply_migrations = apply_migrations
        self._clock = clock
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._opening = trio.Lock()
        self._reading = trio.Lock()
        self._writing = trio.Lock()
        self._months: set[Month] = set()
        self._known: set[Any] = set()

    async def open(self) -> None:
        """See `engine.ports.Store`."""
        async with self._opening:
            if self._writer is not None and not self._writer.closed:
                return
            connection = await Connection.connect(self._dsn(), self._times)
            try:
                await _lock(connection)
                await migrate(connection, apply=self._apply_migrations)
                self._months = set(months_around(self._clock() // DAY_MS))
                await make_months(connection, self._months)
            except BaseException:
                connection.terminate()
                raise
            self._known = set()
            self._writer = connection

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(each is not None and not each.closed for each in (self._writer, self._reader))

    async def close(self) -> None:
        """Let go of both connections."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                await connection.close()

    async def ping(self) -> None:
        """See `engine.ports.Store`."""
        await self._fetch("select 1")

    async def offsets(self, journal_id: UUID) -> StoredOffsets:
        """See `engine.ports.Store`."""
        rows = await self._fetch("select store, seq from sink_offsets where journal_id = $1", journal_id)
        seqs = {row[0]: row[1] for row in rows}
        return StoredOffsets(seqs.pop(self.name, 0), seqs.pop(f"{self.name}.snapshots", 0), seqs)

    async def snapshots(self, keys: Iterable[UserKey]) -> list[UserState]:
        """See `engine.ports.Store`."""
        wanted = list(keys)
        rows = await self._fetch(
            "select state from session_snapshots join unnest($1::text[], $2::text[]) as wanted(class_id, user_id) "
            "using (class_id, user_id)",
            [class_id for class_id, _ in wanted],
            [user_id for _, user_id in wanted],
        )
        return [decode_state(row[0]) for row in rows]

    async def recent_snapshots(self, since: int) -> list[UserState]:
        """See `engine.ports.Store`."""
        rows = await self._fetch("select state from session_snapshots where last_receipt >= $1", to_timestamptz(since))
        return [decode_state(row[0]) for row in rows]

    async def notebooks(self) -> list[tuple[str, str, NotebookTotals]]:
        """See `engine.ports.Store`."""
        rows = await self._fetch(
            "select class_id, path, highest_cell_index, given_cell_count, given_at_ms, given_by from notebooks"
        )
        return [
            (row[0], row[1], NotebookTotals(row[2], None if row[3] is None else (Order(row[4], row[5]), row[3])))
            for row in rows
        ]

    async def _fetch(self, query: str, *args: Any) -> list[Any]:
        async with self._reading:
            if self._reader is None or self._reader.closed:
                self._reader = await Connection.connect(self._dsn(), self._times)
            return await self._reader.fetch(query, *args)

    async def write(self, flush: Flush) -> None:
        """See `engine.ports.Store`. A connection that fails in it is dropped: its state is not worth guessing."""
        async with self._alone() as connection:
            await self._ensure_months(connection, flush)
            async with connection.transaction():
                await self._move_offset(connection, flush)
                await _copy_rows(connection, flush, cells=self._holds_series)
                await copy_samples(connection, flush.samples)
                await self._put_states(connection, flush)
                await _put_dead_letters(connection, flush)

    async def tend(self, now: int, retention: Retention) -> int:
        """See `engine.ports.Store`. On the writer's connection, between two flushes: they cannot block each other."""
        async with self._alone() as connection:
            months = months_around(now // DAY_MS)
            await make_months(connection, months)
            strays = await tend_default(connection)
            self._months = (self._months | months) - await drop_months(connection, now, retention)
            return strays

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Connection]:
        """The writer's connection, for one at a time."""
        async with self._writing:
            connection = self._writer
            if connection is None or connection.closed:
                raise StoreUnavailableError("PostgreSQL: the connection was lost")
            try:
                yield connection
            except StoreDataError:
                self._known = set()  # what this transaction made known was rolled back
                raise
            except BaseException:
                connection.terminate()
                raise

    async def _ensure_months(self, connection: Connection, flush: Flush) -> None:
        today = self._clock() // DAY_MS
        days = {today, *(commit.received_at // DAY_MS for commit in flush.commits)}
        started = {row.started_at // DAY_MS for snapshot in flush.snapshots for row in snapshot.sessions}
        missing = months_of(started).union(*map(months_around, days)) - self._months
        if missing:
            await make_months(connection, missing)
            self._months |= missing

    async def _move_offset(self, connection: Connection, flush: Flush) -> None:
        """The rows' offset moves from where we believe it is, or nothing is written."""
        for name, seq in flush.offsets.items():
            await _put_other_offset(connection, flush.journal_id, name, seq)
        tag = await connection.execute(
            "insert into sink_offsets (journal_id, store, seq) values ($1, $2, $3) on conflict (journal_id, store) "
            "do update set seq = excluded.seq, updated_at = now() where sink_offsets.seq <= $4",
            flush.journal_id, self.name, flush.upto, flush.after,
        )  # fmt: skip
        if tag != "INSERT 0 1":
            raise StoreUnavailableError("PostgreSQL: the offset is not where it was; it will be read again")
        await connection.execute(
            "insert into sink_offsets (journal_id, store, seq) values ($1, $2, $3) on conflict (journal_id, store) "
            "do update set seq = excluded.seq, updated_at = now()",
            flush.journal_id, f"{self.name}.snapshots", flush.snapshot_floor,
        )  # fmt: skip

    async def _put_states(self, connection: Connection, flush: Flush) -> None:
        await self._put_classes(connection, flush)
        await _put_users(connection, flush.snapshots)
        await self._put_notebooks(connection, flush)
        await _put_sessions(connection, flush.snapshots)
        await _put_snapshots(connection, flush)

    async def _put_classes(self, connection: Connection, flush: Flush) -> None:
        classes = {snapshot.key[0] for snapshot in flush.snapshots} | {class_id for class_id, _, _ in flush.notebooks}
        if new := sorted(classes - self._known):
            await connection.execute(
                "insert into classes (id) select * from unnest($1::text[]) on conflict do nothing", new
            )
            self._remember(new)

    async def _put_notebooks(self, connection: Connection, flush: Flush) -> None:
        totals = {(class_id, path): totals for class_id, path, totals in flush.notebooks}
        for snapshot in flush.snapshots:
            for row in snapshot.sessions:
                key = (snapshot.key[0], row.notebook_path)
                if row.notebook_path is not None and key not in self._known:
                    totals.setdefault((snapshot.key[0], row.notebook_path), NotebookTotals())
        if not totals:
            return
        given = [item.given for item in totals.values()]
        await connection.execute(
            "insert into notebooks (id, class_id, path, cell_count, highest_cell_index, given_cell_count, given_at_ms, "
            "given_by) select * from unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::int[], $6::int[], "
            "$7::bigint[], $8::text[]) on conflict (id) do update set cell_count = excluded.cell_count, "
            "highest_cell_index = excluded.highest_cell_index, given_cell_count = excluded.given_cell_count, "
            "given_at_ms = excluded.given_at_ms, given_by = excluded.given_by "
            # Totals only grow; those of a notebook that a session made known say nothing.
            "where excluded.highest_cell_index >= notebooks.highest_cell_index "
            "and (excluded.given_at_ms is not null or notebooks.given_at_ms is null)",
            [notebook_uuid(*key) for key in totals],
            [class_id for class_id, _ in totals],
            [path for _, path in totals],
            [min(item.total_cells, _MAX_INTEGER) for item in totals.values()],
            [item.highest_index for item in totals.values()],
            [None if item is None else item[1] for item in given],
            [None if item is None else item[0].time for item in given],
            [None if item is None else item[0].event_id for item in given],
        )
        self._remember(totals)

    def _remember(self, keys: Iterable[Any]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(keys)


async def _lock(connection: Connection) -> None:
    """Take the daemon's lock. Raises StoreRefusedError when another daemon has it."""
    with trio.move_on_after(_LOCK_PATIENCE_S):
        while not (await connection.fetch("select pg_try_advisory_lock($1)", _DAEMON_LOCK))[0][0]:
            await trio.sleep(_LOCK_POLL_S)
        return
    raise StoreRefusedError(
        "the database is in use by another classpulse daemon: stop it, or give this one a database of its own"
    )


async def _put_other_offset(connection: Connection, journal_id: UUID, name: str, seq: int | None) -> None:
    """The offset of a store that cannot keep its own; None: forget it."""
    if seq is None:
        await connection.execute("delete from sink_offsets where journal_id = $1 and store = $2", journal_id, name)
        return
    await connection.execute(
        "insert into sink_offsets (journal_id, store, seq) values ($1, $2, $3) on conflict (journal_id, store) "
        "do update set seq = excluded.seq, updated_at = now()",
        journal_id, name, seq,
    )  # fmt: skip


async def _copy_rows(connection: Connection, flush: Flush, *, cells: bool) -> None:
    for chunk in _chunks(flush.commits):
        activities: list[Row] = []
        rows = _cell_rows(chunk, flush.journal_id, activities, cells=cells)
        if cells:
            await connection.copy("cell_executions", _CELL_COLUMNS, rows)
        else:
            for _ in rows:  # there are none; the others are gathered on the way
                pass
            await trio.lowlevel.checkpoint()
        if activities:
            await connection.copy("activity_events", _ACTIVITY_COLUMNS, activities)


def _chunks(commits: list[PackedCommit]) -> Iterator[list[PackedCommit]]:
    """The same commits, about `_COPY_CHUNK` events at a time."""
    chunk: list[PackedCommit] = []
    events = 0
    for commit in commits:
        chunk.append(commit)
        events += len(commit)
        if events >= _COPY_CHUNK:
            yield chunk
            chunk, events = [], 0
    if chunk:
        yield chunk


def _cell_rows(commits: list[PackedCommit], journal_id: UUID, activities: list[Row], *, cells: bool) -> Iterator[Row]:
    """Rows of cell events, made as they are asked for; those of the other events go to ``activities``.

    An event is unpacked, encoded and let go while the processor's cache holds it: that halves what it costs.
    """
    for commit in commits:
        received_at = to_timestamptz(commit.received_at)
        for seq, event in enumerate(commit.unpack().events, commit.first_seq):
            if event.event_type in CELL_TYPES:
                if cells:
                    yield _cell_row(event, seq, received_at, journal_id)
            else:
                activities.append(_activity_row(event, seq, received_at, journal_id))


def _cell_row(event: Event, seq: int, received_at: int, journal_id: UUID) -> Row:
    message = event.error_message
    return (
        event.event_id, event.user_id, event.class_id, event.notebook_path, event.cell_index, event.event_type,
        to_timestamptz(event.time), event.execution_duration_ms, event.has_error, message,
        None if message is None else message.partition(":")[0], event.execution_count, event.session_id, event.cell_id,
        event.cell_type, event.clock_skewed, received_at,
        event.data if event.total_cells is None and event.completed_cells is None else _with(event, _CELL_EXTRAS),
        event.metadata, seq, journal_id,
    )  # fmt: skip


# What an event may carry that has no column of its own: it goes into `data`.
_CELL_EXTRAS: Final = ("total_cells", "completed_cells")
_ACTIVITY_EXTRAS: Final = (
    "cell_id", "cell_index", "cell_type", "execution_count", "execution_duration_ms", "has_error", "error_message",
    "total_cells", "completed_cells",
)  # fmt: skip


def _activity_row(event: Event, seq: int, received_at: int, journal_id: UUID) -> Row:
    return (
        event.event_id, event.user_id, event.class_id, event.notebook_path, event.event_type,
        to_timestamptz(event.time), _with(event, _ACTIVITY_EXTRAS), event.metadata, event.session_id,
        event.clock_skewed, received_at, seq, journal_id,
    )  # fmt: skip


def _with(event: Event, extras: Iterable[str]) -> str | None:
    """The event's ``data`` with these fields added, as JSON text."""
    found = {name: value for name in extras if (value := getattr(event, name)) is not None}
    if not found:
        return event.data
    return json.dumps(({} if event.data is None else json.loads(event.data)) | found, ensure_ascii=False)


async def _put_users(connection: Connection, snapshots: list[Snapshot]) -> None:
    profiles: dict[str, tuple[str | None, str | None]] = {}
    for snapshot in snapshots:
        if snapshot.profile is not None:  # a student in two classes has two; what one lacks the other may know
            name, team = profiles.get(snapshot.key[1], (None, None))
            profiles[snapshot.key[1]] = (snapshot.profile[0] or name, snapshot.profile[1] or team)
    if profiles:
        await connection.execute(
            "insert into users (id, username, display_name, team) select * from unnest($1::uuid[], $2::text[], "
            "$3::text[], $4::text[]) on conflict (id) do update set "
            "display_name = coalesce(excluded.display_name, users.display_name), "
            "team = coalesce(excluded.team, users.team), updated_at = now()",
            [user_uuid(user_id) for user_id in profiles],
            list(profiles),
            [name for name, _ in profiles.values()],
            [team for _, team in profiles.values()],
        )


async def _put_sessions(connection: Connection, snapshots: list[Snapshot]) -> None:
    moved = [identity for snapshot in snapshots for identity in snapshot.moved]
    if moved:
        await connection.execute(
            "delete from learning_sessions using unnest($1::uuid[], $2::timestamptz[]) as gone(id, started_at) "
            "where learning_sessions.id = gone.id and learning_sessions.started_at = gone.started_at",
            [identity for identity, _ in moved],
            [to_timestamptz(started_at) for _, started_at in moved],
        )
    rows: list[tuple[UserKey, SessionRow]] = [
        (snapshot.key, row) for snapshot in snapshots for row in snapshot.sessions
    ]
    if not rows:
        return
    await connection.execute(
        "insert into learning_sessions (id, user_id, notebook_id, class_id, client_session_id, started_at, ended_at, "
        "closed, total_duration_ms, cell_executions, error_count) select * from unnest($1::uuid[], $2::uuid[], "
        "$3::uuid[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::bool[], $9::bigint[], "
        "$10::int[], $11::int[]) "
        "on conflict (id, started_at) do update set ended_at = excluded.ended_at, "
        "closed = excluded.closed, total_duration_ms = excluded.total_duration_ms, "
        "cell_executions = excluded.cell_executions, error_count = excluded.error_count, updated_at = now()",
        [row.id for _, row in rows],
        [user_uuid(key[1]) for key, _ in rows],
        [None if row.notebook_path is None else notebook_uuid(key[0], row.notebook_path) for key, row in rows],
        [key[0] for key, _ in rows],
        [row.client_session for _, row in rows],
        [to_timestamptz(row.started_at) for _, row in rows],
        [to_timestamptz(row.ended_at) for _, row in rows],
        [row.closed for _, row in rows],
        [row.ended_at - row.started_at for _, row in rows],
        [row.executions for _, row in rows],
        [row.errors for _, row in rows],
    )


async def _put_snapshots(connection: Connection, flush: Flush) -> None:
    snapshots = flush.snapshots
    if not snapshots:
        return
    await connection.execute(
        "insert into session_snapshots (class_id, user_id, journal_id, applied_seq, last_receipt, state) "
        "select class_id, user_id, $1, applied_seq, last_receipt, state from unnest($2::text[], $3::text[], "
        "$4::bigint[], $5::timestamptz[], $6::bytea[]) as new(class_id, user_id, applied_seq, last_receipt, state) "
        "on conflict (class_id, user_id) do update set journal_id = excluded.journal_id, "
        "applied_seq = excluded.applied_seq, last_receipt = excluded.last_receipt, state = excluded.state, "
        "updated_at = now()",
        flush.journal_id,
        [snapshot.key[0] for snapshot in snapshots],
        [snapshot.key[1] for snapshot in snapshots],
        [snapshot.applied_seq for snapshot in snapshots],
        [to_timestamptz(snapshot.last_receipt) for snapshot in snapshots],
        [snapshot.state for snapshot in snapshots],
    )


async def _put_dead_letters(connection: Connection, flush: Flush) -> None:
    if not flush.dead_letters:
        return
    events = [letter.event for letter in flush.dead_letters]
    await connection.execute(
        "insert into dead_letters (journal_id, seq, event_id, user_id, class_id, event_type, event, error_type, place) "
        "select $1, * from unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], "
        "$8::text[], $9::text[]) on conflict do nothing",
        flush.journal_id,
        [letter.seq for letter in flush.dead_letters],
        [event.event_id for event in events],
        [event.user_id for event in events],
        [event.class_id for event in events],
        [event.event_type for event in events],
        [json.dumps(msgspec.structs.asdict(event), ensure_ascii=False) for event in events],
        [letter.error_type for letter in flush.dead_letters],
        [letter.place for letter in flush.dead_letters],
    )
