"""Students' states, notebooks and dead letters on their way to the store that keeps them, beside the rows."""

import math
from itertools import islice
from typing import Final

import msgspec
import structlog
import trio

from engine.clock import WallClock
from engine.cohort import NotebookTotals
from engine.event import UserKey
from engine.ports import DeadLetter, Flush, Journal, Sample, Snapshot, Store
from engine.samples import TotalCells, samples_of
from engine.watermark import Watermark

from .lanes import Lane
from .mailboxes import SampleMailbox
from .recovery import Resume, resume_from
from .session import SessionActor, SessionContext

# While rows are written, a state is at most once in so many seconds, and so many states go into a flush, the longest
# dirty first: fewer beside thousands of rows, so that what states cost does not grow with the rate of events.
_STATE_INTERVAL_S: Final = 2.0
_MANY_ROWS: Final = 1000
_MAX_SNAPSHOTS_BESIDE_MANY: Final = 100
_MAX_SNAPSHOTS_BESIDE_ROWS: Final = 500
# When there are none, all that are dirty go, in a few transactions.
_MAX_SNAPSHOTS: Final = 1000

# How long a state that the store refused is not tried again, in seconds: each try is a bisection.
_REFUSED_S: Final = 60.0

log = structlog.get_logger("writer")


class States:
    """`actors.writer.Cargo` of a store that keeps states: it also keeps the offsets, and answers where it is."""

    keeps_states = True

    def __init__(
        self,
        journal: Journal,
        store: Store,
        watermark: Watermark,
        context: SessionContext,
        *,
        total_cells: TotalCells,
        clock: WallClock,
        samples: SampleMailbox | None,
        accept_gap: bool,
        lane: Lane | None = None,
    ) -> None:
        """``samples``: where samples go when this store is not the one that holds time series.

        ``lane``: of the shard that the store is; None: everything.
        """
        mailboxes = context.mailboxes
        lane = lane or Lane(context.dirty, mailboxes.notebooks, mailboxes.dead_letters, mailboxes.offsets)
        self._total_cells = total_cells
        self._clock = clock
        self._elsewhere = samples
        self._journal = journal
        self._store = store
        self._watermark = watermark
        self._dirty, self._notebooks, self._dead_letters, self._offsets = lane
        self._accept_gap = accept_gap
        self._snapshots = f"{store.name}.snapshots"
        self.names = (store.name, self._snapshots)
        # The snapshots' offset: of the store, once it was asked; what was trimmed is stored for sure.
        self.floor: float = journal.trimmed_to
        self._due = 0  # states that changed at or before this seq are due
        self._due_again = -math.inf  # trio time at which it moves on
        self._refused: dict[UserKey, float] = {}  # students whose state is not tried before this trio time
        # What the flush in hand borrowed.
        self._actors: list[SessionActor] = []
        self._loaded: list[Snapshot] = []
        self._sampled: list[Sample] = []
        self._taken_notebooks: dict[tuple[str, str], NotebookTotals] = {}
        self._taken_letters: dict[int, DeadLetter] = {}
        self._taken_offsets: dict[str, int | None] = {}
        self._full = False

    async def resume(self) -> int:
        """Ask the store where it is: a commit may have gone through although its answer was lost."""
        stored = await self._store.offsets(self._journal.id)
        resume = resume_from(self._journal, stored, accept_gap=self._accept_gap)
        self.floor = resume.snapshots
        if resume != (stored.rows, stored.snapshots):
            await self._accept(resume)
        return resume.rows

    async def _accept(self, resume: Resume) -> None:
        """A gap was accepted: say so in the store, or the next start would ask again."""
        log.warning("gap accepted", store=self._store.name, offset=resume.rows)
        await self._store.write(
            Flush(self._journal.id, after=resume.rows, upto=resume.rows, snapshot_floor=resume.snapshots)
        )

    def take(self, *, rows: int) -> bool:
        """Students that are due, and all notebooks, dead letters, and offsets of others."""
        limit, due = _MAX_SNAPSHOTS, self._watermark.value
        if rows:
            limit, due = _MAX_SNAPSHOTS_BESIDE_ROWS, self._states_due()
        if rows > _MANY_ROWS:
            limit = _MAX_SNAPSHOTS_BESIDE_MANY
        self._actors = self._take_actors(limit, due)
        # Beside rows the others wait for the next interval: a flush at once would find few rows and cost as much.
        self._full = not rows and len(self._actors) == limit
        self._taken_notebooks = self._notebooks.take_all()
        self._taken_letters = self._dead_letters.take_all()
        self._taken_offsets = self._offsets.take_all()
        return bool(self._actors or self._taken_notebooks or self._taken_letters or self._taken_offsets)

    def load(self, flush: Flush) -> Flush:
        """The states as they are now."""
        self._loaded, self._sampled = [], []
        now = self._clock()
        for actor in self._actors:  # one after the other: its samples read what its snapshot has just fetched
            snapshot = actor.snapshot()
            self._loaded.append(snapshot)
            self._sampled += samples_of(actor.state, snapshot.sessions, self._total_cells, now)
        return msgspec.structs.replace(
            flush,
            snapshots=self._loaded,
            snapshot_floor=max(int(self.floor), self._dirty.floor(self._watermark.value)),
            notebooks=[(class_id, path, totals) for (class_id, path), totals in self._taken_notebooks.items()],
            dead_letters=list(self._taken_letters.values()),
            samples=self._sampled if self._elsewhere is None else [],
            offsets=self._taken_offsets,
        )

    def failed(self) -> None:
        """Everything waits again."""
        for actor in self._dirty.failed():
            actor.unsure()
        self._notebooks.put_back(self._taken_notebooks)
        self._dead_letters.put_back(self._taken_letters)
        self._offsets.put_back(self._taken_offsets)

    def stored(self, flush: Flush, refused: set[UserKey]) -> dict[str, int]:
        """All is committed, but for the states that the store refused."""
        self._refused |= dict.fromkeys(refused, trio.current_time() + _REFUSED_S)
        self._dirty.stored()
        for actor, snapshot in zip(self._actors, self._loaded, strict=True):
            if actor.key in refused:
                actor.unsure()
            else:
                actor.stored(snapshot.profile)
        if self._elsewhere is not None:
            for sample in self._sampled:
                self._elsewhere.put((sample.class_id, sample.user_id, sample.notebook_path), sample)
        self.floor = flush.snapshot_floor
        others = {name: seq for name, seq in flush.offsets.items() if seq is not None}
        return others | {self._store.name: flush.upto, self._snapshots: flush.snapshot_floor}

    @property
    def more(self) -> bool:
        """Whether the last load was as much as goes into one."""
        return self._full

    def _states_due(self) -> int:
        """States that changed at or before this seq are to be written."""
        if trio.current_time() >= self._due_again:
            self._due = self._watermark.value
            self._due_again = trio.current_time() + _STATE_INTERVAL_S
        return self._due

    def _take_actors(self, limit: int, due: int) -> list[SessionActor]:
        """Dirty students whose past is known and whose state is due, the longest dirty first."""
        now = trio.current_time()
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        settled = (
            (key, actor) for key, actor in self._dirty.waiting(due) if actor.settled and key not in self._refused
        )
        chosen = dict(islice(settled, limit))
        self._dirty.take(chosen)
        return list(chosen.values())
