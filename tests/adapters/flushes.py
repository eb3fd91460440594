"""Flushes as a store writer makes them, and the two stores they go to."""

from contextlib import asynccontextmanager
from uuid import uuid4

from adapters.memory import MemoryStore
from adapters.postgres.queries import PostgresQueries
from adapters.postgres.replicas import ReadPool
from adapters.postgres.store import PostgresStore
from engine.event import Commit
from engine.ports import Flush, Snapshot
from engine.rows import StoredRows, keep_state, kept_state
from engine.session import UserState
from tests.adapters.events import NOW

IDLE_MS = 1_800_000


class Student:
    """A state and the rows that a store has of it, as a session actor keeps them."""

    def __init__(self, user_id="ann", class_id="default"):
        self.state = UserState(class_id=class_id, user_id=user_id)
        self.rows = StoredRows()
        self.seq = 0

    def apply(self, *events, received_at=NOW):
        for item in events:
            self.state.apply(item, received_at, IDLE_MS)
        return self

    def snapshot(self, seq=1, journal_id=None):
        sessions, moved = self.rows.changes(self.state)
        self.rows.stored()
        if journal_id is not None:
            self.state.advance(journal_id.hex, seq)
        return Snapshot(
            key=(self.state.class_id, self.state.user_id),
            applied_seq=seq,
            state=kept_state(keep_state(self.state)),
            last_receipt=self.state.last_receipt,
            profile=(None, None),
            sessions=sessions,
            moved=moved,
        )


class Feed:
    """Makes flushes of one journal, each after the other."""

    def __init__(self):
        self.journal_id = uuid4()
        self.seq = 0

    def commit(self, *events):
        commit = Commit(self.seq + 1, NOW, list(events))
        self.seq = commit.last_seq
        return commit

    def flush(self, *events, snapshots=(), notebooks=(), dead_letters=(), floor=0, samples=(), offsets=()):
        after = self.seq
        commits = [self.commit(*events).pack()] if events else []
        return Flush(
            journal_id=self.journal_id,
            after=after,
            upto=self.seq,
            commits=commits,
            snapshots=list(snapshots),
            snapshot_floor=floor,
            notebooks=list(notebooks),
            dead_letters=list(dead_letters),
            samples=list(samples),
            offsets=dict(offsets),
        )


class Memory:
    def __init__(self, **options):
        self.store = self.queries = MemoryStore(**options)

    async def seqs(self):
        return sorted(seq for _, seq in self.store.rows)

    async def dead_letters(self):
        return [(letter.seq, letter.error_type, letter.place) for letter in self.store.dead_letters.values()]

    async def close(self):
        await self.store.close()


class Postgres:
    def __init__(self, database, **options):
        self._database = database
        self.store = make_store(database, **options)
        self.queries = PostgresQueries(ReadPool(lambda: database.dsn))

    async def seqs(self):
        rows = await self._database.query(
            "select seq from cell_executions union all select seq from activity_events order by seq"
        )
        return [row["seq"] for row in rows]

    async def dead_letters(self):
        rows = await self._database.query("select seq, error_type, place from dead_letters order by seq")
        return [(row["seq"], row["error_type"], row["place"]) for row in rows]

    async def close(self):
        await self.queries.close()
        await self.store.close()


def make_store(database, *, apply_migrations=True, now=NOW, **options):
    return PostgresStore(lambda: database.dsn, apply_migrations=apply_migrations, clock=lambda: now, **options)


@asynccontextmanager
async def opened(store):
    await store.open()
    try:
        yield store
    finally:
        await store.close()
