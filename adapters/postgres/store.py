"""`engine.ports.Store` on PostgreSQL: rows by COPY, states by upsert, the offset with them, in one transaction."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from adapters.asyncio_bridge import Connection, Dsn, to_timestamptz
from engine.clock import WallClock
from engine.cohort import NotebookTotals
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.event import UserKey
from engine.measures import Histograms
from engine.ports import Flush, Retention, StoredOffsets
from engine.rows import decode_state
from engine.session import UserState
from engine.sharding import Shard

from .catalog import NOTEBOOKS, Catalog, notebook_of
from .identity import Identity, check_identity, read_identity, write_identity
from .migrations import migrate
from .offsets import OFFSETS, move_offsets, offsets_of
from .partitions import DAY_MS, Month, drop_months, make_months, months_around, months_of, tend_default
from .roles import become_writer
from .rows import copy_rows
from .samples import copy_samples
from .states import put_dead_letters, put_sessions, put_snapshots, put_users
from .sums import BEHIND, sum_up

# Keeps a second daemon off the database for as long as the writer's connection lives.
_DAEMON_LOCK: Final = 0x436C_6173_7370_756C
# After a kill, the server needs a moment to notice that the lock's owner is gone: seconds, and between two tries.
_LOCK_PATIENCE_S: Final = 3.0
_LOCK_POLL_S: Final = 0.2


class PostgresStore:
    """Holds the writer's connection and one for recovery's reads; each is remade when it is lost.

    The writer's is ``app_writer`` where it can be. Migrations, partitions and sums are the owner's: they go through a
    connection of their own to ``admin_dsn``, which is there for that while only.
    """

    def __init__(
        self,
        dsn: Dsn,
        *,
        apply_migrations: bool,
        clock: WallClock,
        admin_dsn: Dsn | None = None,
        shard: Shard = Shard(),  # noqa: B008 - immutable
        times: Histograms | None = None,
        holds_series: bool = True,
    ) -> None:
        """``holds_series``: cell events and samples come here; without, another store has them."""
        self._dsn = dsn
        self._admin_dsn = dsn if admin_dsn is None else admin_dsn
        self._holds_series = holds_series
        self._times = times
        self.shard = shard
        self.name = shard.name("postgresql")
        self.identity: Identity | None = None  # what the database said when it was opened
        self._apply_migrations = apply_migrations
        self._clock = clock
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._summing: Connection | None = None  # the owner's, while there is more to sum
        self._opening = trio.Lock()
        self._reading = trio.Lock()
        self._writing = trio.Lock()
        self._months: set[Month] = set()
        self._catalog = Catalog()

    async def open(self) -> None:
        """See `engine.ports.Store`."""
        async with self._opening:
            if self._writer is not None and not self._writer.closed:
                return
            connection = await Connection.connect(self._dsn(), self._times)
            try:
                await _lock(connection)
                async with self._owner() as owner:
                    await migrate(owner, apply=self._apply_migrations)
                    await self._identify(owner)
                    self._months = set(months_around(self._clock() // DAY_MS))
                    await make_months(owner, self._months)
                await become_writer(connection)
            except BaseException:
                connection.terminate()
                raise
            self._catalog.forget()
            self._writer = connection

    async def _identify(self, owner: Connection) -> None:
        """Prove that this is the database it should be. Raises StoreRefusedError."""
        found = await read_identity(owner)
        check_identity(found, self.shard, used=bool(await owner.fetch("select from sink_offsets limit 1")))
        if self.identity is not None and found != self.identity:
            raise StoreRefusedError(f"{self.name}: another database answers than at the start")
        self.identity = found

    async def join(self, set_id: UUID) -> None:
        """Become one of a set of shards, for good."""
        self.identity = Identity(set_id, *self.shard)
        async with self._owner() as owner:
            await write_identity(owner, self.identity)

    @property
    def connections(self) -> int:
        """How many are open."""
        kept = (self._writer, self._reader, self._summing)
        return sum(each is not None and not each.closed for each in kept)

    async def close(self) -> None:
        """Let go of every connection."""
        for connection in (self._summing, self._reader, self._writer):
            if connection is not None:
                await connection.close()

    async def ping(self) -> None:
        """See `engine.ports.Store`."""
        await self._fetch("select 1")

    def groups(self, keys: Iterable[UserKey]) -> list[list[UserKey]]:
        """See `engine.ports.StateKeeper`."""
        return [list(keys)]

    async def offsets(self, journal_id: UUID) -> StoredOffsets:
        """See `engine.ports.Store`."""
        return offsets_of(await self._fetch(OFFSETS, journal_id), self.name)

    async def snapshots(self, keys: Iterable[UserKey]) -> list[UserState]:
        """See `engine.ports.Store`."""
        wanted = list(keys)
        rows = await self._fetch(
            "select class_id, user_id, state from session_snapshots "
            "join unnest($1::text[], $2::text[]) as wanted(class_id, user_id) using (class_id, user_id)",
            [class_id for class_id, _ in wanted],
            [user_id for _, user_id in wanted],
        )
        return [_state_of(row) for row in rows]

    async def recent_snapshots(self, since: int) -> list[UserState]:
        """See `engine.ports.Store`."""
        rows = await self._fetch(
            "select class_id, user_id, state from session_snapshots where last_receipt >= $1", to_timestamptz(since)
        )
        return [_state_of(row) for row in rows]

    async def notebooks(self) -> list[tuple[str, str, NotebookTotals]]:
        """See `engine.ports.Store`."""
        return [notebook_of(row) for row in await self._fetch(NOTEBOOKS)]

    async def _fetch(self, query: str, *args: Any) -> list[Any]:
        async with self._reading:
            if self._reader is None or self._reader.closed:
                self._reader = await Connection.connect(self._dsn(), self._times)
            return await self._reader.fetch(query, *args)

    async def write(self, flush: Flush) -> None:
        """See `engine.ports.Store`. A connection that fails in it is dropped: its state is not worth guessing."""
        async with self._alone() as connection:
            await self._ensure_months(flush)
            async with connection.transaction():
                await move_offsets(connection, flush, self.name)
                await copy_rows(connection, flush, self.shard, cells=self._holds_series)
                await copy_samples(connection, flush.samples)
                await self._catalog.put_classes(connection, flush)
                await put_users(connection, flush.snapshots)
                await self._catalog.put_notebooks(connection, flush)
                await put_sessions(connection, flush.snapshots)
                await put_snapshots(connection, flush)
                await put_dead_letters(connection, flush)

    async def tend(self, now: int, retention: Retention) -> int:
        """See `engine.ports.Store`. Between two flushes, in the writer's turn: they cannot block each other."""
        async with self._writing, self._owner() as owner:
            self._held()
            months = months_around(now // DAY_MS)
            await make_months(owner, months)
            strays = await tend_default(owner)
            self._months = (self._months | months) - await drop_months(owner, now, retention)
            return strays

    async def sum_up(self) -> bool:
        """See `engine.ports.StateKeeper`. Beside flushes: what it reads is committed.

        Under load a step follows another all the time, and a connection costs the daemon 2 ms without a password
        (docs/performance.md), so it is kept until all is summed.
        """
        if not self._holds_series or not await self._fetch(BEHIND, self.name):
            await self._keep_summing(None)
            return False
        self._held()
        connection, self._summing = self._summing, None
        if connection is None or connection.closed:
            connection = await Connection.connect(self._admin_dsn(), self._times)
        try:
            more = await sum_up(connection, self.name)
        except BaseException:
            connection.terminate()
            raise
        await self._keep_summing(connection)
        return more

    async def _keep_summing(self, connection: Connection | None) -> None:
        # Another step at the same time may have left its own, and a third may leave one during the close.
        spare, self._summing = self._summing, connection
        if spare is not None:
            await spare.close()

    @asynccontextmanager
    async def _owner(self) -> AsyncIterator[Connection]:
        """A connection of the tables' owner, for the block."""
        connection = await Connection.connect(self._admin_dsn(), self._times)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Connection]:
        """The writer's connection, for one at a time."""
        async with self._writing:
            connection = self._held()
            try:
                yield connection
            except StoreDataError:
                self._catalog.forget()  # what this transaction put there was rolled back
                raise
            except BaseException:
                connection.terminate()
                raise

    def _held(self) -> Connection:
        """The writer's connection, and with it the daemon's lock."""
        if self._writer is None or self._writer.closed:
            raise StoreUnavailableError("PostgreSQL: the connection was lost")
        return self._writer

    async def _ensure_months(self, flush: Flush) -> None:
        today = self._clock() // DAY_MS
        days = {today, *(commit.received_at // DAY_MS for commit in flush.commits)}
        started = {row.started_at // DAY_MS for snapshot in flush.snapshots for row in snapshot.sessions}
        missing = months_of(started).union(*map(months_around, days)) - self._months
        if missing:
            async with self._owner() as owner:
                await make_months(owner, missing)
            self._months |= missing


def _state_of(row: Any) -> UserState:
    """The state in a row of class, user and state. Raises StoreRefusedError where it is none."""
    class_id, user_id, state = row
    try:
        return decode_state(state)
    except msgspec.MsgspecError as error:
        raise StoreRefusedError(
            f"PostgreSQL: the state of {user_id!r} in class {class_id!r} (session_snapshots) cannot be read: {error}. "
            "A newer classpulse may have written it; delete the row to begin anew with what the journal still has"
        ) from None


async def _lock(connection: Connection) -> None:
    """Take the daemon's lock. Raises StoreRefusedError when another daemon has it."""
    with trio.move_on_after(_LOCK_PATIENCE_S):
        while not (await connection.fetch("select pg_try_advisory_lock($1)", _DAEMON_LOCK))[0][0]:
            await trio.sleep(_LOCK_POLL_S)
        return
    raise StoreRefusedError(
        "the database is in use by another classpulse daemon: stop it, or give this one a database of its own"
    )
