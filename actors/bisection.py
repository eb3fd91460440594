"""Bisection: a flush that a store refuses for what is in it is halved until the bad part is alone."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import structlog

from engine.cohort import NotebookTotals
from engine.errors import StoreDataError
from engine.event import Commit, Event, PackedCommit, UserKey
from engine.faults import reach
from engine.ports import DeadLetter, Flush, RowStore, Sample, Snapshot

from .mailboxes import Mailboxes
from .rebuild import leave_letter

Item = TypeVar("Item")
# The store's word on one event that it will not have, beside which the event becomes a dead letter.
_PLACE: Final = "store"

log = structlog.get_logger("writer")


class Bisection:
    """Writes one flush in as many transactions as it takes. What is refused alone is a dead letter, the rest is stored.

    Each transaction moves the rows' offset by what it holds, so that a fault in the middle leaves nothing half done.
    The snapshots' offset moves with the last one.
    """

    def __init__(self, store: RowStore, flush: Flush, floor: int, mailboxes: Mailboxes, *, keeps_letters: bool) -> None:
        """``keeps_letters``: dead letters go into the store itself; else to the one that keeps them."""
        self._store = store
        self._keeps_letters = keeps_letters
        self._flush = flush
        # Of one part: nothing, and the snapshots' offset where it was.
        self._empty = msgspec.structs.replace(
            flush, after=flush.upto, commits=[], snapshots=[], snapshot_floor=floor, notebooks=[], dead_letters=[],
            samples=[], offsets={},
        )  # fmt: skip
        self._mailboxes = mailboxes
        self.refused: set[UserKey] = set()  # students whose state the store would not have

    async def write(self) -> None:
        """Raises StoreUnavailableError and StoreRefusedError as `engine.ports.Store` does, never StoreDataError."""
        flush = self._flush
        await _halve(_single_events(flush.commits), self._write_rows, self._bury_row)
        await _halve(flush.notebooks, self._write_notebooks, self._drop)
        await _halve(flush.snapshots, self._write_snapshots, self._drop_snapshot)
        await _halve(flush.dead_letters, self._write_letters, self._drop)
        await _halve(flush.samples, self._write_samples, self._drop)
        await self._store.write(
            msgspec.structs.replace(self._empty, snapshot_floor=flush.snapshot_floor, offsets=flush.offsets)
        )

    async def _write_rows(self, rows: list[PackedCommit]) -> None:
        await self._store.write(
            msgspec.structs.replace(self._empty, after=rows[0].first_seq - 1, upto=rows[-1].last_seq, commits=rows)
        )

    async def _bury_row(self, row: PackedCommit, error: StoreDataError) -> None:
        event: Event = row.unpack().events[0]
        log.error("event could not be stored", seq=row.first_seq, event_type=event.event_type, error_type=error.kind)
        letter = DeadLetter(row.first_seq, event, error.kind, f"{_PLACE}:{self._store.name}")
        if not self._keeps_letters:
            leave_letter(self._mailboxes, letter)
            return
        over = msgspec.structs.replace(self._empty, after=row.first_seq - 1, upto=row.first_seq)
        try:
            await self._store.write(msgspec.structs.replace(over, dead_letters=[letter]))
        except StoreDataError as again:
            await self._drop(letter, again)
            await self._store.write(over)

    async def _write_notebooks(self, notebooks: list[tuple[str, str, NotebookTotals]]) -> None:
        await self._store.write(msgspec.structs.replace(self._empty, notebooks=notebooks))

    async def _write_snapshots(self, snapshots: list[Snapshot]) -> None:
        await self._store.write(msgspec.structs.replace(self._empty, snapshots=snapshots))

    async def _write_letters(self, letters: list[DeadLetter]) -> None:
        await self._store.write(msgspec.structs.replace(self._empty, dead_letters=letters))

    async def _write_samples(self, samples: list[Sample]) -> None:
        await self._store.write(msgspec.structs.replace(self._empty, samples=samples))

    async def _drop_snapshot(self, snapshot: Snapshot, error: StoreDataError) -> None:
        self.refused.add(snapshot.key)
        self._mailboxes.alert(
            "state could not be stored",
            *snapshot.key,
            f"{error}; the student's rows are stored, its state is as before",
        )

    async def _drop(self, item: object, error: StoreDataError) -> None:
        log.error("could not be stored", what=type(item).__name__, error_type=error.kind)


def _single_events(commits: list[PackedCommit]) -> list[PackedCommit]:
    return [
        Commit(seq, commit.received_at, [event]).pack()
        for commit in commits
        for seq, event in enumerate(commit.unpack().events, commit.first_seq)
    ]


async def _halve(
    items: list[Item],
    write: Callable[[list[Item]], Awaitable[None]],
    refuse: Callable[[Item, StoreDataError], Awaitable[None]],
) -> None:
    """Write the items, in order; each that cannot be written even alone goes to ``refuse``."""
    if not items:
        return
    reach("bisection.write")
    try:
        await write(items)
    except StoreDataError as error:
        if len(items) == 1:
            await refuse(items[0], error)
            return
        middle = len(items) // 2
        await _halve(items[:middle], write, refuse)
        await _halve(items[middle:], write, refuse)
