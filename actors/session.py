"""The session actor: one task per (class, user), the only owner of that student's live state."""

from typing import Final, TypeAlias
from uuid import UUID

import msgspec
import structlog
import trio

from engine.alerts import apply_alerting, rouses
from engine.dirty import DirtyUsers
from engine.event import Event, UserKey
from engine.ports import DeadLetter, Journal, SessionRow, Snapshot
from engine.rows import Past, StoredRows, decode_state, keep_state, kept_state, session_rows
from engine.session import UserState, merge
from engine.view import Thresholds
from engine.watermark import Part

from .mailbox import Mailbox
from .mailboxes import Mailboxes
from .rebuild import Trial, leave_letter, place_of

# So many events that cannot be applied, within so many seconds, park a student; for so long (seconds) its events are
# kept and not applied: a client that only sends what breaks the program must not have it rebuild a state all the time.
PARK_FAULTS: Final = 3
PARK_WITHIN_S: Final = 60.0
PARK_S: Final = 600.0
# Between two tries to rebuild a state, in seconds.
_RETRY_S: Final = 0.5

log = structlog.get_logger("session")


# The events of one commit that concern one student, in seq order: their part of the watermark, the time of receipt,
# and each event with its seq.
Delivery: TypeAlias = tuple[Part, int, list[tuple[int, Event]]]


class SessionContext(msgspec.Struct, frozen=True):
    """What every session actor of a daemon shares."""

    journal: str  # id of the journal, hex
    idle_ms: int
    dirty: "DirtyUsers[SessionActor]"
    mailboxes: Mailboxes
    crowded: set[UserKey]  # students whose mailbox is half full: time to refuse more at the edge
    source: Journal  # what a damaged state is rebuilt from
    thresholds: Thresholds


class _PoisonError(Exception):
    """The event of this seq could not be applied, and the state may hold half of it."""

    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq


class SessionActor:
    """Applies deliveries to the state and says that it changed; others read the state or ask for a snapshot.

    A delivery is applied in its sender's turn while the actor has nothing else in hand: applying never waits, and a
    wake of the task cost a sixth of an event (docs/performance.md). The task wakes for what takes time, a rebuild, and
    what comes meanwhile waits in the mailbox, in order.

    Mailbox: `actors.router.MAILBOX_DELIVERIES`. Full policy: when it is half full the edge answers 503 for this user,
    before the journal, so the router always finds room in it.

    An actor may start before its stored snapshot could be read (the store is away): it then applies what arrives to an
    empty state, and `adopt` joins the two later. Such a state is shown, but not stored.

    An event that cannot be applied may leave half of itself behind, so the state is then rebuilt: from the bytes of the
    last snapshot and the journal, which holds all that came since. What waits in the mailbox waits for that.
    """

    __slots__ = (
        "_busy", "_changed", "_context", "_crowd", "_dirty", "_faults", "_good", "_joined", "_late", "_mailbox",
        "_marked", "_parked_until", "_profile", "_rows", "_whole", "announced", "key", "position", "state",
    )  # fmt: skip

    def __init__(self, key: UserKey, context: SessionContext, mailbox: int) -> None:
        self.key = key
        self._context = context
        self._dirty = context.dirty
        self._changed = context.mailboxes.changed
        self._mailbox: Mailbox[tuple[Delivery, Exception | None]] = Mailbox(mailbox)
        self._busy = False  # the task has deliveries in hand, or will have when it wakes
        self._crowd = mailbox // 2
        self._rows = StoredRows()
        self._profile: tuple[str | None, str | None] | None = None
        # Whether it is among the dirty, and among the changed: looking here is cheaper than looking there.
        self._marked = False
        self.announced = False
        # The highest seq of the journal that is in the state; 0 when none is. The state is told when it is stored: each
        # event would touch a dict of one entry.
        self.position = 0
        self._joined = False  # with its past
        self._late: Past | None = None  # a past that came while the state was rebuilt
        self._whole = True
        self._good: bytes | None = None  # the state as it last was stored or rebuilt, kept; None: it began empty
        self._faults: tuple[float, ...] = ()  # trio times of late
        self._parked_until: float | None = None
        self.state = UserState(class_id=key[0], user_id=key[1])

    @property
    def settled(self) -> bool:
        """Whether the state may be stored: it holds its past, and no half of an event."""
        return self._joined and self._whole

    async def run(self) -> None:
        """See to what could not be applied in passing, until `retire`, and to what waits by then."""
        mailbox, crowded = self._mailbox, self._context.crowded
        while True:
            for delivery, fault in mailbox.take_all():
                error = fault or self._try(delivery)
                if error is not None:
                    await self._contain(delivery, error)
            if crowded:
                crowded.discard(self.key)
            if not len(mailbox):
                self._busy = False
                if mailbox.closed:
                    return
            await mailbox.wait_filled()

    def deliver(self, delivery: Delivery) -> None:
        """Apply a delivery, or put it into the mailbox while the task has others in hand. Never waits."""
        fault = None
        if not self._busy:
            fault = self._try(delivery)
            if fault is None:
                return
            self._busy = True
        if self._mailbox.put((delivery, fault)) >= self._crowd:
            self._context.crowded.add(self.key)

    def _try(self, delivery: Delivery) -> Exception | None:
        """Apply a delivery; returns why that failed, and then the state may hold a part of it."""
        try:
            if self._parked_until is not None:
                self._pass_over(delivery)
            self._apply(delivery)
        except Exception as error:  # noqa: BLE001 - whatever it is, it hurts only this student
            self._whole = False  # nobody may store it, or join a past to it, until the task has rebuilt it
            return error
        return None

    @property
    def waiting(self) -> int:
        """Deliveries in its mailbox."""
        return len(self._mailbox)

    def retire(self) -> None:
        """Let `run` return."""
        self._mailbox.close()

    def adopt(self, past: Past | None) -> None:
        """Settle what came before, once: ``past`` holds only events that the live state has not seen."""
        if self._joined:
            return
        if past is not None and not self._whole:
            self._late = past
            return
        if past is not None:
            self._rows = past.rows
            self._tell()
            self._become(merge(past.state, self.state, self._context.idle_ms))
            self._good = keep_state(self.state)
        self._joined = True
        self.announced = True
        self._changed.put(self.key, self)

    def sessions(self) -> tuple[list[SessionRow], set[UUID]]:
        """Its sessions, and the ids of stored rows that are none any more."""
        return session_rows(self.state), self._rows.left(self.state)

    def snapshot(self) -> Snapshot:
        """The absolute state, for a store. `stored` tells when it is committed."""
        self._marked = False
        state = self.state
        self._rows.shed(state)
        rows, moved = self._rows.changes(state)
        profile = _profile(state)
        self._tell()
        self._good = keep_state(state)
        return Snapshot(
            key=self.key,
            applied_seq=self.position,
            state=kept_state(self._good),
            last_receipt=state.last_receipt,
            profile=None if profile == self._profile else profile,
            sessions=rows,
            moved=moved,
        )

    def stored(self, profile: tuple[str | None, str | None] | None) -> None:
        """The last `snapshot` is committed."""
        self._rows.stored()
        if profile is not None:
            self._profile = profile

    def _tell(self) -> None:
        """Tell the state how far it is."""
        if self.position:
            self.state.advance(self._context.journal, self.position)

    def _become(self, state: UserState) -> None:
        self.state = state
        self.position = state.position(self._context.journal)

    def unsure(self) -> None:
        """Nobody knows whether the last `snapshot` is committed."""
        self._rows.unsure()

    def _apply(self, delivery: Delivery) -> None:
        part, received_at, events = delivery
        context = self._context
        idle_ms = context.idle_ms
        state, applied = self.state, self.position
        for seq, event in events:
            if seq <= applied:
                continue
            try:
                if rouses(state, event):
                    for alert in apply_alerting(state, event, received_at, idle_ms, context.thresholds):
                        context.mailboxes.alerts.put(event.class_id, alert)
                else:
                    state.apply(event, received_at, idle_ms)
            except Exception as error:
                raise _PoisonError(seq) from error
        last = events[-1][0]
        if last > applied:
            self.position = last
        if not self._marked:
            self._dirty.mark(self.key, events[0][0], self)
            self._marked = True
        if not self.announced:
            self._changed.put(self.key, self)
            self.announced = True
        part.done()

    # --- what cannot be applied

    async def _contain(self, delivery: Delivery, error: Exception) -> None:
        """Go back to the last good state, and on from there without the events that cannot be applied."""
        while True:
            if isinstance(error, _PoisonError):
                upto = error.seq  # what comes after it takes the usual way again
            else:
                upto = delivery[2][-1][0]
                log.error(
                    "student's actor restarts", user=self.key, error_type=type(error).__name__, place=place_of(error)
                )
            try:
                await self._rebuild(delivery, upto)
                again = self._try(delivery)  # it may hold another
            except Exception as failed:  # noqa: BLE001 - a journal that cannot be read now
                again = failed
            if again is None:
                return
            error = again
            if not isinstance(error, _PoisonError):
                await trio.sleep(_RETRY_S)

    async def _rebuild(self, delivery: Delivery, upto: int) -> None:
        """Make the state anew, up to this seq. Until then an older one is shown, and none is stored."""
        context = self._context
        self._whole = False
        self._become(self._last_good(delivery))
        trial = Trial(self._last_good(delivery), context.journal, context.idle_ms, context.mailboxes)
        await trial.replay(context.source, upto)
        self._become(trial.state)
        self._good = keep_state(trial.state)
        self._whole = True
        late, self._late = self._late, None
        if late is not None:
            self.adopt(late)
        if trial.buried:
            self._count(trial.buried)

    def _last_good(self, delivery: Delivery) -> UserState:
        if self._good is not None:
            return decode_state(kept_state(self._good))
        # Nothing of it was ever stored, so it has been dirty since its first event.
        first = self._dirty.first(self.key, default=delivery[2][0][0])
        state = UserState(class_id=self.key[0], user_id=self.key[1])
        state.advance(self._context.journal, first - 1)
        return state

    def _count(self, faults: int) -> None:
        now = trio.current_time()
        self._faults = (*(at for at in self._faults if at > now - PARK_WITHIN_S), *[now] * faults)
        if len(self._faults) >= PARK_FAULTS:
            self._parked_until = now + PARK_S
            self._context.mailboxes.alert(
                "student parked", *self.key, f"{len(self._faults)} events could not be applied; the next {PARK_S:g} s "
                "of its events are stored, and not counted live",
            )  # fmt: skip

    def _pass_over(self, delivery: Delivery) -> None:
        """Parked: let the delivery count as applied, its events as dead letters; or the time is over."""
        assert self._parked_until is not None
        if trio.current_time() >= self._parked_until:
            self._parked_until, self._faults = None, ()
            log.info("student no longer parked", user=self.key)
            return
        events = delivery[2]
        for seq, event in events:
            if seq > self.position:
                leave_letter(self._context.mailboxes, DeadLetter(seq, event, "Parked", __name__))
        self.position = max(self.position, events[-1][0])


def _profile(state: UserState) -> tuple[str | None, str | None]:
    return (None if state.name is None else state.name.value, None if state.team is None else state.team.value)
