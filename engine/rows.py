"""From live state to the rows that a store keeps of it."""

from typing import NamedTuple
from uuid import UUID

import msgspec

from engine.event import UserKey
from engine.ids import session_uuid
from engine.ports import SessionRow
from engine.session import Session, UserState

encode_state = msgspec.msgpack.Encoder().encode
decode_state = msgspec.msgpack.Decoder(UserState).decode


def session_rows(state: UserState) -> list[SessionRow]:
    """Every visible session of a student, as rows."""
    return [_row(state, session) for session in state.visible_sessions()]


def _row(state: UserState, session: Session) -> SessionRow:
    # A session that no client named is known by where it began; "@" keeps it apart from any name.
    name = f"@{session.start}" if session.client is None else f"={session.client}"
    return SessionRow(
        id=session_uuid(state.class_id, state.user_id, session.notebook or "", name),
        notebook_path=session.notebook,
        client_session=session.client,
        started_at=session.start,
        ended_at=session.end,
        closed=state.closed(session),
        executions=session.executions,
        errors=session.errors,
    )


class StoredRows:
    """The session rows of one student as they were last stored, so that a flush writes and moves only what changed."""

    def __init__(self) -> None:
        # By (id, started_at). None: there may be such a row, of unknown content.
        self._rows: dict[tuple[UUID, int], SessionRow | None] = {}
        self._pending: dict[tuple[UUID, int], SessionRow] = {}

    def assume(self, state: UserState) -> None:
        """The state came from a snapshot: its rows were stored with it."""
        self._rows = dict(_by_identity(session_rows(state)))

    def changes(self, state: UserState) -> tuple[list[SessionRow], list[tuple[UUID, int]]]:
        """Rows to write, and (id, started_at) of stored rows that their session left; then `stored` or `unsure`."""
        rows = self._pending = _by_identity(session_rows(state))
        changed = [row for identity, row in rows.items() if self._rows.get(identity) != row]
        moved = [
            identity
            for identity, row in self._rows.items()
            # One that left memory for its age stays as it is.
            if identity not in rows and (row is None or row.ended_at > state.forgotten)
        ]
        return changed, moved

    def stored(self) -> None:
        """What `changes` told is committed."""
        self._rows = dict(self._pending)

    def unsure(self) -> None:
        """What `changes` told may be committed or not: write it again, and leave no row of either behind."""
        self._rows = dict.fromkeys((*self._rows, *self._pending))


class Past(NamedTuple):
    """A student as stored, and perhaps replayed since. ``rows`` are the session rows of the stored state."""

    state: UserState
    rows: StoredRows

    @classmethod
    def of(cls, state: UserState) -> "Past":
        """The past that a stored snapshot is."""
        rows = StoredRows()
        rows.assume(state)
        return cls(state, rows)


def _by_identity(rows: list[SessionRow]) -> dict[tuple[UUID, int], SessionRow]:
    return {(row.id, row.started_at): row for row in rows}


def user_key(state: UserState) -> UserKey:
    """Its class and user."""
    return (state.class_id, state.user_id)
