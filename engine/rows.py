"""From live state to the rows that a store keeps of it."""

from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from engine.clock import rfc3339
from engine.event import UserKey
from engine.ids import session_uuid
from engine.ports import SessionRow
from engine.session import KEPT_SESSIONS, Session, UserState

# What a row of `learning_sessions` is known by: its id and where it starts (ms).
Identity: TypeAlias = tuple[UUID, int]

encode_state = msgspec.msgpack.Encoder().encode
decode_state = msgspec.msgpack.Decoder(UserState).decode


def session_rows(state: UserState) -> list[SessionRow]:
    """Every visible session of a student, as rows."""
    return [session_row(state, session) for session in state.visible_sessions()]


def session_row(state: UserState, session: Session) -> SessionRow:
    """A session of this student, as a row."""
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


def session_view(user_id: str, class_id: str, row: SessionRow) -> dict[str, Any]:
    """A session as queries and the stream show it: JSON values, absent ones left out."""
    session = {
        "id": str(row.id),
        "user_id": user_id,
        "class_id": class_id,
        "notebook_path": row.notebook_path,
        "session_id": row.client_session,
        "started_at": rfc3339(row.started_at),
        "ended_at": rfc3339(row.ended_at),
        "closed": row.closed,
        "total_duration_ms": row.ended_at - row.started_at,
        "cell_executions": row.executions,
        "error_count": row.errors,
    }
    return {key: value for key, value in session.items() if value is not None}


class StoredRows:
    """The session rows of one student as they were last stored, so that a flush writes and moves only what changed."""

    __slots__ = ("_doubt", "_pending", "_rows")

    def __init__(self) -> None:
        self._rows: dict[Identity, SessionRow] = {}
        self._pending: dict[Identity, SessionRow] = {}
        self._doubt = False  # a flush may have gone through or not: `_rows` is what there may be

    def assume(self, state: UserState) -> None:
        """The state came from a snapshot: its rows were stored with it."""
        self._rows = _by_identity(session_rows(state))

    def changes(self, state: UserState) -> tuple[list[SessionRow], list[Identity]]:
        """Rows to write, and (id, started_at) of stored rows that their session left; then `stored` or `unsure`."""
        rows = self._pending = _by_identity(session_rows(state))
        changed = [row for identity, row in rows.items() if self._doubt or self._rows.get(identity) != row]
        return changed, self._left(rows, state)

    def stored(self) -> None:
        """What `changes` told is committed."""
        self._rows = self._pending
        self._doubt = False

    def unsure(self) -> None:
        """What `changes` told may be committed or not: write it again, and leave no row of either behind."""
        self._rows = self._rows | self._pending
        self._doubt = True

    def left(self, state: UserState) -> set[UUID]:
        """Ids of stored rows that no session has any more."""
        rows = _by_identity(session_rows(state))
        return {row_id for row_id, _ in self._left(rows, state)} - {row_id for row_id, _ in rows}

    def shed(self, state: UserState) -> None:
        """Let the oldest sessions past `KEPT_SESSIONS` leave memory, those whose row is stored as they are."""
        surplus = len(state.sessions) - KEPT_SESSIONS
        if surplus <= 0 or self._doubt:
            return
        for key, session in sorted(state.sessions.items(), key=lambda item: (item[1].end, item[1].start))[:surplus]:
            row = session_row(state, session)
            if self._rows.get((row.id, row.started_at)) == row:
                state.forget(key)

    def _left(self, rows: dict[Identity, SessionRow], state: UserState) -> list[Identity]:
        return [
            identity
            for identity, row in self._rows.items()
            # The row of one that left memory stays as it is.
            if identity not in rows and not state.has_left(row.client_session, row.notebook_path, row.ended_at)
        ]


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


def _by_identity(rows: list[SessionRow]) -> dict[Identity, SessionRow]:
    return {(row.id, row.started_at): row for row in rows}


def user_key(state: UserState) -> UserKey:
    """Its class and user."""
    return (state.class_id, state.user_id)
