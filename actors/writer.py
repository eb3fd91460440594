"""The store writer: one a store. Copies rows from the journal up to the watermark, with dirty students' states.

It runs behind everything: a store that is away or slow costs disk, never an answer and never memory.
"""

import math
from enum import Enum
from itertools import islice
from typing import Any, Final

import structlog
import trio

from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.event import UserKey
from engine.faults import reach
from engine.measures import Histogram
from engine.ports import Flush, Journal, Store
from engine.watermark import Watermark

from .bisection import Bisection
from .recovery import Recovery, Resume, resume_from
from .session import SessionActor, SessionContext

# Between two tries to reach a store that is away, in seconds.
_RETRY_S: Final = 0.5
# While rows are written, a state is at most once in so many seconds, and so many states go into a flush, the longest
# dirty first: what states cost does not grow with the rate of events.
_STATE_INTERVAL_S: Final = 2.0
_MAX_SNAPSHOTS: Final = 100
# States in one flush when there are no rows to write: all that are dirty go, in a few transactions.
_MAX_IDLE_SNAPSHOTS: Final = 1000

# How long a state that the store refused is not tried again, in seconds: each try is a bisection.
_REFUSED_S: Final = 60.0

log = structlog.get_logger("writer")


class Flushed(Enum):
    """What one flush stored."""

    NOTHING = "nothing was waiting"
    PART = "more is waiting that should not wait for the next interval"
    ALL = "what was waiting"


class StoreWriter:
    """Keeps one store up with the journal. Its input is the journal itself, so it has no mailbox to fill."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        watermark: Watermark,
        context: SessionContext,
        recovery: Recovery,
        *,
        interval_s: float,
        max_events: int,
        accept_gap: bool,
    ) -> None:
        self._journal = journal
        self._store = store
        self._watermark = watermark
        self._dirty = context.dirty
        self._recovery = recovery
        self._notebooks = context.mailboxes.notebooks
        self._dead_letters = context.mailboxes.dead_letters
        self._mailboxes = context.mailboxes
        self._interval_s = interval_s
        self._max_events = max_events
        self._accept_gap = accept_gap
        self._finishing = trio.Event()
        # The rows' and the snapshots' offset: of the store, once it was asked; what was trimmed is stored for sure.
        self.offset = self._floor = journal.trimmed_to
        self.flush_times = Histogram()
        self._fault: str | None = "not reached yet"
        self._due = 0  # states that changed at or before this seq are due
        self._due_again = -math.inf  # trio time at which it moves on
        self._refused: dict[UserKey, float] = {}  # students whose state is not tried before this trio time
        self._scope = trio.CancelScope()

    @property
    def lag(self) -> int:
        """Acknowledged events that are not yet stored, rows or state."""
        return self._journal.last_seq - min(self.offset, self._floor)

    @property
    def health(self) -> dict[str, Any]:
        """For `/api/v1/health`."""
        refused = self._recovery.refused
        fault = (self._recovery.fault or self._fault) if refused is None else str(refused)
        facts: dict[str, Any] = {
            "status": "healthy" if fault is None else "unhealthy",
            "lag_events": self.lag,
        }
        return facts if fault is None else facts | {"error": fault}

    def finish(self) -> None:
        """Let `run` return once everything up to the watermark is stored; at once when the store is away."""
        self._finishing.set()
        if self._fault is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Flush until `finish`, then what is left. Cancel it to give up what is left: the journal has it."""
        if self._scope.cancel_called:
            return
        with trio.CancelScope() as self._scope:  # a new one each time: `run` is run again when it fails
            await self._recovery.done.wait()
            while not await self._attempt():
                if self._finishing.is_set():
                    return
                await trio.sleep(_RETRY_S)

    async def _attempt(self) -> bool:
        """Serve while the store is there; tells whether all is done."""
        try:
            await self._store.open()
            await self._resume()
            await self._serve()
        except (StoreUnavailableError, StoreRefusedError) as error:
            if self._fault is None:
                log.warning("store is away; events stay in the journal", store=self._store.name, reason=str(error))
            self._fault = str(error)
            return False
        return True

    async def _resume(self) -> None:
        """Ask the store where it is: a commit may have gone through although its answer was lost."""
        stored = await self._store.offsets(self._journal.id)
        resume = resume_from(self._journal, stored, accept_gap=self._accept_gap)
        self.offset, self._floor = resume.rows, resume.snapshots
        if resume != (stored.rows, stored.snapshots):
            await self._accept(resume)
        if self._fault is not None:
            log.info("store is there", store=self._store.name, offset=self.offset, lag_events=self.lag)
        self._fault = None

    async def _accept(self, resume: Resume) -> None:
        """A gap was accepted: say so in the store, or the next start would ask again."""
        log.warning("gap accepted", store=self._store.name, offset=resume.rows)
        await self._store.write(
            Flush(
                journal_id=self._journal.id,
                after=resume.rows,
                upto=resume.rows,
                commits=[],
                snapshots=[],
                snapshot_floor=resume.snapshots,
                notebooks=[],
                dead_letters=[],
            )
        )

    async def _serve(self) -> None:
        while not self._finishing.is_set():
            with trio.move_on_after(self._interval_s):
                await self._finishing.wait()
            while await self._flush() is Flushed.PART:
                pass
        while await self._flush() is not Flushed.NOTHING:
            pass

    async def _flush(self) -> Flushed:
        """One transaction."""
        watermark = self._watermark.value
        commits = []
        if watermark > self.offset:
            commits = await self._journal.read(self.offset, watermark, self._max_events)
            if commits and commits[0].first_seq <= self.offset:  # a bisection got so far, and was interrupted
                commits[0] = commits[0].after(self.offset)
        upto = commits[-1].last_seq if commits else self.offset
        limit = _MAX_SNAPSHOTS if commits else _MAX_IDLE_SNAPSHOTS
        actors = self._take_actors(limit, self._states_due() if commits else watermark)
        notebooks = self._notebooks.take_all()
        letters = self._dead_letters.take_all()
        if not (commits or actors or notebooks or letters):
            return Flushed.NOTHING
        began = trio.current_time()
        try:
            snapshots = [actor.snapshot() for actor in actors]
            floor = max(self._floor, self._dirty.floor(self._watermark.value, with_taken=False))
            flush = Flush(
                journal_id=self._journal.id,
                after=self.offset,
                upto=upto,
                commits=commits,
                snapshots=snapshots,
                snapshot_floor=floor,
                notebooks=[(class_id, path, totals) for (class_id, path), totals in notebooks.items()],
                dead_letters=list(letters.values()),
            )
            reach("writer.write")
            refused = await self._write(flush)
            reach("writer.written")
        except BaseException:
            for actor in self._dirty.failed():
                actor.unsure()
            for key, totals in notebooks.items():
                self._notebooks.put(key, totals)
            for seq, letter in letters.items():
                self._dead_letters.put(seq, letter)
            raise
        self.flush_times.observe(trio.current_time() - began)
        self._dirty.stored()
        for actor, snapshot in zip(actors, snapshots, strict=True):
            if actor.key in refused:
                actor.unsure()
            else:
                actor.stored(snapshot.profile)
        self.offset, self._floor = upto, floor
        reach("writer.trim")
        await self._journal.trim({self._store.name: upto, f"{self._store.name}.snapshots": floor}, min(upto, floor))
        more = self.offset < self._watermark.value if commits else len(actors) == limit
        return Flushed.PART if more else Flushed.ALL

    async def _write(self, flush: Flush) -> set[UserKey]:
        """Store a flush, without what the store will not have; returns the students whose state that was."""
        try:
            await self._store.write(flush)
        except StoreDataError as error:
            log.warning("flush refused; it is halved until the bad part is alone", reason=str(error))
            bisection = Bisection(self._store, flush, self._floor, self._mailboxes)
            await bisection.write()
            self._refused |= dict.fromkeys(bisection.refused, trio.current_time() + _REFUSED_S)
            return bisection.refused
        return set()

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
