"""From live state to the rows that a store keeps of it."""

from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from engine.clock import rfc3339
from engine.event import UserKey
from engine.ids import session_uuid
from engine.learning_session import Session, shortened
from engine.ports import SessionRow
from engine.session import KEPT_SESSIONS, UserState
from engine.view import current_session

# What a row of `learning_sessions` is known by: its id and where it starts (ms).
Identity: TypeAlias = tuple[UUID, int]

_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_buffer: Final = bytearray()  # of one thread: see `encode_state`
_END: Final = 0x80  # between what a block holds and the zeros that fill it
_decode: Final = msgspec.msgpack.Decoder(UserState).decode


def decode_state(stored: bytes | memoryview) -> UserState:
    """A state of which a store has the bytes, of this version or an earlier one. Raises msgspec.DecodeError."""
    state = _decode(stored)
    if state.packed:
        state.packed = tuple(map(shortened, state.packed))
    return state


def encode_state(state: UserState) -> bytes:
    """A state as stores keep it.

    By way of a buffer: what `encode` returns has room for up to half as much again. There is one buffer for all, so
    only the event loop's thread may call this, and `keep_state`.
    """
    _encode_into(state, _buffer)
    return bytes(_buffer)


def keep_state(state: UserState) -> bytes:
    """`encode_state` for who keeps the bytes: a block of a round size, which holds them; see `kept_state`.

    An actor's block is replaced every few seconds, now and then by one a little longer, and a thousand students open
    their next notebook within the same minute. Blocks as long as their states would leave as many holes that no other
    fits into; of eight sizes from one power of two to the next, each fits where another was (docs/performance.md).
    """
    _encode_into(state, _buffer)
    _buffer.append(_END)
    step = 1 << max(len(_buffer).bit_length() - 4, 6)
    _buffer.extend(bytes(-len(_buffer) % step))
    return bytes(_buffer)


def kept_state(block: bytes) -> memoryview:
    """What `encode_state` had returned for the state that `keep_state` made this block of."""
    return memoryview(block)[: block.rindex(_END)]


def session_rows(state: UserState) -> list[SessionRow]:
    """Every visible session of a student, as rows."""
    return [session_row(state, session) for session in all_sessions(state)]


def all_sessions(state: UserState) -> list[Session]:
    """Every visible session of a student, those that are put away too."""
    return [*state.visible_sessions().values(), *state.packed_sessions()]


def newest_rows(state: UserState, most: int) -> list[SessionRow]:
    """At most so many, newest first; of two that began together their ids decide."""
    sessions = sorted(all_sessions(state), key=lambda session: session.start, reverse=True)
    if len(sessions) > most:
        sessions = [session for session in sessions if session.start >= sessions[most - 1].start]
    rows = [session_row(state, session) for session in sessions]
    return sorted(rows, key=lambda row: (row.started_at, row.id), reverse=True)[:most]


def session_row(state: UserState, session: Session, row_id: UUID | None = None) -> SessionRow:
    """A session of this student, as a row; ``row_id`` where it is known: it is a hash of what names the session."""
    if row_id is None:
        # A session that no client named is known by where it began; "@" keeps it apart from any name.
        name = f"@{session.start}" if session.client is None else f"={session.client}"
        row_id = session_uuid(state.class_id, state.user_id, session.notebook or "", name)
    return SessionRow(
        id=row_id,
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
    """The session rows of one student as they were last stored, so that a flush writes and moves only what changed.

    By the session's key (`engine.learning_session.session_key`), which its row's id is made of, so that none is made
    again.
    """

    __slots__ = ("_doubt", "_pending", "_rows")

    def __init__(self) -> None:
        self._rows: dict[str, SessionRow] = {}
        self._pending: dict[str, SessionRow] = {}
        # Rows that may be there besides, where a flush may have gone through or not; None: nothing is in doubt.
        self._doubt: list[SessionRow] | None = None

    def assume(self, state: UserState) -> None:
        """The state came from a snapshot: its rows were stored with it."""
        self._rows = self._as_rows(state)

    def changes(self, state: UserState) -> tuple[list[SessionRow], list[Identity]]:
        """Rows to write, and (id, started_at) of stored rows that their session left; then `stored` or `unsure`."""
        if recalled := _recalled(state):
            self._rows |= recalled
            for key in recalled:
                state.sessions[key].row_start = -1
        rows = self._pending = self._as_rows(state)
        changed = [row for key, row in rows.items() if self._doubt is not None or self._rows.get(key) is not row]
        return changed, self._left(self._rows, rows, state)

    def stored(self) -> None:
        """What `changes` told is committed."""
        self._rows = self._pending
        self._doubt = None

    def unsure(self) -> None:
        """What `changes` told may be committed or not: write it again, and leave no row of either behind."""
        moved = [row for key, row in self._rows.items() if _moves(row, self._pending.get(key, row))]
        self._doubt = [*(self._doubt or ()), *moved]
        self._rows = self._rows | self._pending

    def left(self, state: UserState) -> set[UUID]:
        """Ids of stored rows that no session has any more."""
        rows = self._as_rows(state)
        stored = self._rows | _recalled(state)  # not noted: a flush may be under way, which ends what was noted before
        return {row_id for row_id, _ in self._left(stored, rows, state)} - {row.id for row in rows.values()}

    def shed(self, state: UserState) -> None:
        """Put away sessions of clients that are not at work, and let the oldest past `KEPT_SESSIONS` leave memory.

        Those whose row is stored as they are.
        """
        if len(state.sessions) == 1 or self._doubt is not None:
            return
        visible = state.visible_sessions()
        over = self._over(state, visible)
        for key in state.pack(over) if over else ():
            self._rows.pop(key, None)
        surplus = len(state.sessions) - KEPT_SESSIONS
        if surplus <= 0:
            return
        for key, session in sorted(state.sessions.items(), key=lambda item: (item[1].end, item[1].start))[:surplus]:
            if key in visible and self._settled(state, key, session, visible=True):
                state.forget(key)
            elif session.client is None:
                break  # those without a name leave in order: `UserState.forgotten`

    def _over(self, state: UserState, visible: dict[str, Session]) -> set[str]:
        """Clients whose sessions may be put away: all are stored, and ended before the one that is at work now."""
        at_work = current_session(state, visible.values())
        if at_work is None:
            return set()
        over = {session.client for session in state.sessions.values() if session.client is not None}
        over.discard(at_work.client or "")  # need no look
        for key, session in state.sessions.items() if over else ():
            if session.client in over and (
                session.end >= at_work.end or not self._settled(state, key, session, visible=key in visible)
            ):
                over.discard(session.client)
        return over

    def _settled(self, state: UserState, key: str, session: Session, *, visible: bool) -> bool:
        """Whether it has the row that it should have, or none where it should have none."""
        row = self._rows.get(key)
        if row is None or not visible:
            return row is None and not visible
        return self._row(state, key, session) is row

    def _as_rows(self, state: UserState) -> dict[str, SessionRow]:
        return {key: self._row(state, key, session) for key, session in state.visible_sessions().items()}

    def _row(self, state: UserState, key: str, session: Session) -> SessionRow:
        """Its row; the very one that was stored, if nothing changed since."""
        known = self._rows.get(key)
        if known is None:
            return session_row(state, session)
        row = session_row(state, session, known.id)
        return known if row == known else row

    def _left(self, stored: dict[str, SessionRow], rows: dict[str, SessionRow], state: UserState) -> list[Identity]:
        left = [row for key, row in stored.items() if key not in rows or _moves(row, rows[key])]
        if self._doubt:
            there = {_identity(row) for row in rows.values()}
            left += [row for row in self._doubt if _identity(row) not in there]
        # The row of one that left memory stays as it is.
        return [
            _identity(row) for row in left if not state.has_left(row.client_session, row.notebook_path, row.ended_at)
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


def _recalled(state: UserState) -> dict[str, SessionRow]:
    """Rows of sessions that were put away, by key: only their identity is known, and they equal none."""
    return {
        key: msgspec.structs.replace(session_row(state, session), started_at=session.row_start, executions=-1)
        for key, session in state.sessions.items()
        if session.row_start >= 0
    }


def _identity(row: SessionRow) -> Identity:
    return (row.id, row.started_at)


def _moves(stored: SessionRow, row: SessionRow) -> bool:
    """Whether the row of the same session lies elsewhere now: its month is that of its start."""
    return row.started_at != stored.started_at


def user_key(state: UserState) -> UserKey:
    """Its class and user."""
    return (state.class_id, state.user_id)
