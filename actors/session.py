"""The session actor: one task per (class, user), the only owner of that student's live state."""

from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import structlog

from engine.dirty import DirtyUsers
from engine.event import Event, UserKey
from engine.ports import DeadLetter, SessionRow, Snapshot
from engine.rows import Past, StoredRows, encode_state, session_rows
from engine.session import UserState, merge
from engine.watermark import Part

from .mailbox import Mailbox
from .mailboxes import Mailboxes

# Dead letters that wait for the store; more are in the log only, and their events in the journal and the rows.
_MAX_DEAD_LETTERS: Final = 10_000

log = structlog.get_logger("session")


# The events of one commit that concern one student, in seq order: their part of the watermark, the time of receipt,
# and each event with its seq.
Delivery: TypeAlias = tuple[Part, int, list[tuple[int, Event]]]


class SessionContext(NamedTuple):
    """What every session actor of a daemon shares."""

    journal: str  # id of the journal, hex
    idle_ms: int
    dirty: "DirtyUsers[SessionActor]"
    mailboxes: Mailboxes
    crowded: set[UserKey]  # students whose mailbox is half full: time to refuse more at the edge


class SessionActor:
    """Applies deliveries to the state and says that it changed; others read the state or ask for a snapshot.

    Mailbox: `actors.router.MAILBOX_DELIVERIES`. Full policy: when it is half full the edge answers 503 for this user,
    before the journal, so the router always finds room in it.

    An actor may start before its stored snapshot could be read (the store is away): it then applies what arrives to an
    empty state, and `adopt` joins the two later. Such a state is shown, but not stored.
    """

    __slots__ = (
        "_changed", "_context", "_crowd", "_dirty", "_mailbox", "_marked", "_profile", "_rows", "announced", "key",
        "settled", "state",
    )  # fmt: skip

    def __init__(self, key: UserKey, context: SessionContext, mailbox: int) -> None:
        self.key = key
        self._context = context
        self._dirty = context.dirty
        self._changed = context.mailboxes.changed
        self._mailbox: Mailbox[Delivery] = Mailbox(mailbox)
        self._crowd = mailbox // 2
        self._rows = StoredRows()
        self._profile: tuple[str | None, str | None] | None = None
        # Whether it is among the dirty, and among the changed: looking here is cheaper than looking there.
        self._marked = False
        self.announced = False
        self.settled = False
        self.state = UserState(class_id=key[0], user_id=key[1])

    async def run(self) -> None:
        """Apply deliveries until `retire`, and what waits by then."""
        mailbox, crowded = self._mailbox, self._context.crowded
        while True:
            for delivery in mailbox.take_all():
                self._apply(delivery)
            if crowded:
                crowded.discard(self.key)
            if mailbox.closed:
                return
            await mailbox.wait_filled()

    def deliver(self, delivery: Delivery) -> None:
        """Put a delivery into the mailbox. Never waits."""
        self._mailbox.put(delivery)
        if len(self._mailbox) > self._crowd:
            self._context.crowded.add(self.key)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be applied."""
        return not len(self._mailbox)

    def retire(self) -> None:
        """Let `run` return."""
        self._mailbox.close()

    def adopt(self, past: Past | None) -> None:
        """Settle what came before: ``past`` holds only events that the live state has not seen."""
        if past is not None:
            self._rows = past.rows
            self.state = merge(past.state, self.state, self._context.idle_ms)
        self.settled = True
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
        return Snapshot(
            key=self.key,
            applied_seq=state.position(self._context.journal),
            state=encode_state(state),
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

    def unsure(self) -> None:
        """Nobody knows whether the last `snapshot` is committed."""
        self._rows.unsure()

    def _apply(self, delivery: Delivery) -> None:
        part, received_at, events = delivery
        context = self._context
        journal, idle_ms = context.journal, context.idle_ms
        state = self.state
        applied = state.applied.get(journal, 0)
        for seq, event in events:
            if seq <= applied:
                continue
            try:
                state.apply(event, received_at, idle_ms)
            except Exception as error:  # noqa: BLE001 - a bad event hurts only itself
                bury(context.mailboxes, seq, event, error)
        if applied:
            state.applied[journal] = max(applied, events[-1][0])
        else:
            state.advance(journal, events[-1][0])
        if not self._marked:
            self._marked = True
            self._dirty.mark(self.key, events[0][0], self)
        if not self.announced:
            self.announced = True
            self._changed.put(self.key, self)
        part.done()


def _profile(state: UserState) -> tuple[str | None, str | None]:
    return (None if state.name is None else state.name[1], None if state.team is None else state.team[1])


def bury(mailboxes: Mailboxes, seq: int, event: Event, error: Exception) -> None:
    """An event that could not be applied becomes a dead letter."""
    place = _place_of(error)
    log.error("event could not be applied", seq=seq, event_type=event.event_type, place=place, exc_info=error)
    if len(mailboxes.dead_letters) < _MAX_DEAD_LETTERS:
        mailboxes.dead_letters.put(seq, DeadLetter(seq, event, type(error).__name__, place))


def _place_of(error: BaseException) -> str:
    """Module and line where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
