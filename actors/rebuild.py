"""Rebuilding a state from the journal, each event on trial: one that cannot be applied leaves no trace of itself."""

from typing import Final

import structlog
import trio

from engine.event import Event
from engine.ports import DeadLetter, Journal
from engine.rows import decode_state, encode_state, user_key
from engine.session import UserState

from .mailboxes import Mailboxes

# Dead letters that wait for the store; more are in the log only, and their events in the journal and the rows.
_MAX_DEAD_LETTERS: Final = 10_000
# Events that one step takes from the journal.
_STEP_EVENTS: Final = 5000

log = structlog.get_logger("session")


class Trial:
    """Applies events of one student, keeping the state as it was before each; counts those that it buried."""

    def __init__(self, state: UserState, journal: str, idle_ms: int, mailboxes: Mailboxes) -> None:
        self.state = state
        self.buried = 0
        self._journal = journal
        self._idle_ms = idle_ms
        self._mailboxes = mailboxes

    def apply(self, seq: int, event: Event, received_at: int) -> None:
        """Fold in one event that the state does not hold yet, or bury it."""
        before = encode_state(self.state)
        try:
            self.state.apply(event, received_at, self._idle_ms)
        except Exception as error:  # noqa: BLE001 - a bad event hurts only itself
            self.state = decode_state(before)
            self.buried += 1
            bury(self._mailboxes, seq, event, error)
        self.state.advance(self._journal, seq)

    async def replay(self, journal: Journal, upto: int) -> None:
        """Fold in this student's events of the journal, from the state's position to ``upto``."""
        key = user_key(self.state)
        after = self.state.position(self._journal)
        while after < upto and (packed := await journal.read(after, upto, _STEP_EVENTS)):
            for each in packed:
                commit = each.unpack()
                for seq, event in enumerate(commit.events, commit.first_seq):
                    if after < seq <= upto and (event.class_id, event.user_id) == key:
                        self.apply(seq, event, commit.received_at)
                await trio.lowlevel.checkpoint()
            after = packed[-1].last_seq
        self.state.advance(self._journal, upto)


def bury(mailboxes: Mailboxes, seq: int, event: Event, error: Exception) -> None:
    """An event that could not be applied becomes a dead letter: type and place of the error, never its text."""
    place = place_of(error)
    kind = type(error).__name__
    log.error("event could not be applied", seq=seq, event_type=event.event_type, error_type=kind, place=place)
    leave_letter(mailboxes, DeadLetter(seq, event, kind, place))


def leave_letter(mailboxes: Mailboxes, letter: DeadLetter) -> None:
    """Put a dead letter where the store's writer finds it, if there is room."""
    mailboxes.buried += 1
    if len(mailboxes.dead_letters) < _MAX_DEAD_LETTERS:
        mailboxes.dead_letters.put(letter.seq, letter)


def place_of(error: BaseException) -> str:
    """Module and line where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
