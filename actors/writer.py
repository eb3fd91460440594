"""The store writer: one a store. Copies rows from the journal up to the watermark, and what goes along with them.

It runs behind everything: a store that is away or slow costs disk, never an answer and never memory.
"""

from enum import Enum
from typing import Any, Final, Protocol

import structlog
import trio

from engine.backoff import Backoff
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.event import UserKey
from engine.faults import reach
from engine.measures import Histogram
from engine.ports import Flush, Journal, RowStore
from engine.watermark import Watermark

from .bisection import Bisection
from .mailboxes import Mailboxes
from .recovery import Recovery
from .trimming import Trimming

# Between two tries to reach a store that is away, in seconds, doubling up to the last: short enough that a store which
# returns is seen before anybody wonders.
_FIRST_S: Final = 0.5
_LAST_S: Final = 5.0

log = structlog.get_logger("writer")


class Cargo(Protocol):
    """What a store gets beside rows, and how its offset is kept. One load at a time: `take`, `load`, and its end."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the offsets that this store is known by, as `Trimming` and the database have them."""

    @property
    def keeps_states(self) -> bool:
        """Whether its store is the one that keeps states, dead letters and offsets, and that recovery reads."""

    @property
    def floor(self) -> float:
        """Every event up to this seq is stored, as far as this cargo is concerned."""

    async def resume(self) -> int:
        """After which seq the rows go on. Raises StoreUnavailableError and StoreRefusedError."""

    def take(self, *, rows: int) -> bool:
        """Choose what goes along with so many rows; tells whether there is anything."""

    def load(self, flush: Flush) -> Flush:
        """The flush with what was taken."""

    def failed(self) -> None:
        """The flush did not go through, or nobody knows."""

    def stored(self, flush: Flush, refused: set[UserKey]) -> dict[str, int]:
        """It went through, without the states of ``refused``; returns the offsets that are committed for good."""

    @property
    def more(self) -> bool:
        """Whether more waits than went into the last load."""


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
        store: RowStore,
        cargo: Cargo,
        trimming: Trimming,
        watermark: Watermark,
        *,
        mailboxes: Mailboxes,
        recovery: Recovery,
        interval_s: float,
        max_events: int,
    ) -> None:
        self._journal = journal
        self._store = store
        self._cargo = cargo
        self._trimming = trimming
        self._watermark = watermark
        self._mailboxes = mailboxes
        self._recovery = recovery
        self._interval_s = interval_s
        self._max_events = max_events
        self._finishing = trio.Event()
        self.name = store.name
        # The rows' offset: of the store, once it was asked; what was trimmed is stored for sure.
        self.offset = journal.trimmed_to
        self.flush_times = Histogram()
        self._fault: str | None = "not reached yet"
        self._backoff = Backoff(_FIRST_S, _LAST_S)
        self._asked = 0.0  # seconds that the store itself asked to be left alone
        self._scope = trio.CancelScope()
        trimming.expect(*cargo.names)

    @property
    def lag(self) -> int:
        """Acknowledged events that are not yet stored, rows or what goes along."""
        return self._journal.last_seq - int(min(self.offset, self._cargo.floor))

    @property
    def health(self) -> dict[str, Any]:
        """For `/api/v1/health`."""
        refused = self._recovery.refused
        before = self._recovery.fault if self._cargo.keeps_states or not self._recovery.done.is_set() else None
        fault = (before or self._fault) if refused is None else str(refused)
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
                await trio.sleep(max(self._asked, self._backoff.pause_s()))

    async def _attempt(self) -> bool:
        """Serve while the store is there; tells whether all is done."""
        try:
            await self._store.open()
            self.offset = await self._cargo.resume()
            if self._fault is not None:
                log.info("store is there", store=self.name, offset=self.offset, lag_events=self.lag)
            self._fault = None
            await self._serve()
        except (StoreUnavailableError, StoreRefusedError) as error:
            if self._fault != str(error):
                log.warning("store is away; events stay in the journal", store=self.name, reason=str(error))
            self._fault = str(error)
            self._asked = getattr(error, "retry_after_s", None) or 0.0
            return False
        return True

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
        if not self._cargo.take(rows=upto - self.offset) and not commits:
            return Flushed.NOTHING
        began = trio.current_time()
        try:
            flush = self._cargo.load(Flush(self._journal.id, after=self.offset, upto=upto, commits=commits))
            reach("writer.write")
            refused = await self._write(flush)
            reach("writer.written")
        except BaseException:
            self._cargo.failed()
            raise
        self.flush_times.observe(trio.current_time() - began)
        self._backoff.reset()
        committed = self._cargo.stored(flush, refused)
        self.offset = upto
        reach("writer.trim")
        if committed:
            await self._trimming.report(committed)
        # What has come since the look waits for the next interval: a transaction for each event would be the daemon's
        # whole work at a few hundred a second.
        more = upto < watermark or self._cargo.more
        return Flushed.PART if more else Flushed.ALL

    async def _write(self, flush: Flush) -> set[UserKey]:
        """Store a flush, without what the store will not have; returns the students whose state that was."""
        try:
            await self._store.write(flush)
        except StoreDataError as error:
            log.warning("flush refused; it is halved until the bad part is alone", reason=str(error))
            cargo = self._cargo
            floor = int(cargo.floor) if cargo.keeps_states else 0
            bisection = Bisection(self._store, flush, floor, self._mailboxes, keeps_letters=cargo.keeps_states)
            await bisection.write()
            return bisection.refused
        return set()
