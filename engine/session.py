"""A student's live state in a class: pure, synchronous, and the same whatever order events arrive in.

Rules
-----
* Clients delay and repeat, so state is made of things that commute: minima, maxima, counters of distinct events, and
  last-write-wins by `Order` (event time, event_id). `apply` folds one event in; `merge` joins two states that saw
  disjoint events, and equals applying both sets to one.
* Order and bounds use the event's own time. What fades (idle, offline, a forgotten call for help) uses the time of
  receipt and is a function of (state, now) in `engine.view`: no transition is ever stored.
* It holds no cycles, so its structs are kept from the cyclic collector (``gc=False``), which walks all that it tracks.
* Everything is bounded. Past a bound the oldest by event time leaves; within the bounds order never matters.
* Duplicates are not known here: the journal's window keeps them out, and `applied` skips what a replay repeats.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from engine.bounds import trim
from engine.cells import Cell, Notebook, cell_key
from engine.dedupe import Digester
from engine.event import (
    CELL_EXECUTED,
    CELL_TYPES,
    HELP_REQUESTED,
    HELP_RESOLVED,
    NOTEBOOK_CLOSED,
    SESSION_END,
    SESSION_START,
    Event,
    Order,
)
from engine.help import Help
from engine.latest import Latest, latest, written
from engine.learning_session import (
    Session,
    all_closed,
    first_end,
    pack_sessions,
    record_of,
    session_key,
    unpack_sessions,
)

# Bounds on one student's state. A term's worth of notebooks and reloads fits; a hostile client does not grow past them.
MAX_NOTEBOOKS: Final = 128
MAX_SESSIONS: Final = 2048
KEPT_SESSIONS: Final = 512  # once they are stored; more stay only until the next flush
MAX_PACKED: Final = 512  # clients whose sessions are put away,
MAX_PACKED_BYTES: Final = 65_536  # and what they take: some 60 each
MAX_LEFT: Final = 16_384  # sessions that left memory, known again by 64 bits each
MAX_JOURNALS: Final = 8  # positions remembered, newest last: a state outlives the journals it was fed from

_digest: Final = Digester()


class Run(msgspec.Struct, array_like=True, gc=False):
    """The latest run of any cell."""

    order: Order
    notebook: str
    cell: str  # `cell_key`
    failed: bool


class UserState(msgspec.Struct, array_like=True, gc=False):
    """All that is kept live of one student in one class. Its encoding is the snapshot's format."""

    class_id: str
    user_id: str
    applied: dict[str, int] = {}  # journal id (hex): the highest seq applied from it
    name: Latest[str] | None = None
    team: Latest[str] | None = None
    executions: int = 0
    errors: int = 0
    last_event: int = 0  # ms, event time
    last_receipt: int = 0  # ms, time of receipt
    current: Latest[str] | None = None  # the notebook of the latest event that has one
    run: Run | None = None
    notebooks: dict[str, Notebook] = {}
    sessions: dict[str, Session] = {}  # by `session_key`
    ended: dict[str, int] = {}  # client session ("" for any): event time of its end, for ends that name no notebook
    help: Help = msgspec.field(default_factory=Help)
    forgotten: int = -1  # the latest end among nameless sessions that left memory
    left: dict[int, int] = {}  # sessions with a name that left memory, by `_mark` of their key: their end
    packed: tuple[bytes, ...] = ()  # sessions that are put away, a record (`engine.learning_session`) a client

    def apply(self, event: Event, received_at: int, idle_ms: int) -> None:
        """Fold in one event. ``idle_ms``: runs nearer than this share a session when the client names none.

        With thousands of students the state is cold memory, and a block that is let go touches more of it. So what can
        be written over is not replaced, and a text that is the same stays where it is (docs/performance.md).
        """
        order = Order(event.time, event.event_id)
        if event.user_name is not None:
            self.name = written(self.name, order, event.user_name)
        if event.team is not None:
            self.team = written(self.team, order, event.team)
        if event.time > self.last_event:
            self.last_event = event.time
        if received_at > self.last_receipt:
            self.last_receipt = received_at
        kind = event.event_type
        failed = event.failed
        if failed:
            self.errors += 1
        if kind == CELL_EXECUTED:
            self.executions += 1
        path = event.notebook_path
        if path is not None:
            self._apply_notebook(event, path, order, failed=failed)
        if path is not None or (event.session_id is not None and kind in (SESSION_START, SESSION_END)):
            self._apply_session(event, failed=failed, idle_ms=idle_ms)
        if kind == SESSION_END and path is None:
            self._end(event.session_id or "", event.time)
        elif kind == HELP_REQUESTED:
            self.help.add(order, received_at)
        elif kind == HELP_RESOLVED:
            self.help.resolve(order)

    def _apply_notebook(self, event: Event, path: str, order: Order, *, failed: bool) -> None:
        # The latest event in any notebook is the latest of its notebook and its cell: one comparison for all.
        current, newest = self.current, True
        if current is None:
            self.current = Latest(order, path)
        elif order > current.order:
            current.order = order
            if current.value == path:
                path = current.value
            else:
                current.value = path
        else:
            newest = False
        notebook = self.notebooks.get(path)
        if notebook is None:
            notebook = self.notebooks[path] = Notebook(last=order)
            trim(self.notebooks, MAX_NOTEBOOKS, lambda item: item.last)
        elif newest or order > notebook.last:
            notebook.last = order
        if event.event_type not in CELL_TYPES:
            return
        key = cell_key(event)
        run = self.run
        if run is None:
            self.run = Run(order, path, key, failed)
        elif newest or order > run.order:
            run.order = order
            if run.notebook != path:
                run.notebook = path
            run.cell = key
            run.failed = failed
        notebook.add_run(event, key, order, failed=failed, newest=newest)

    def _apply_session(self, event: Event, *, failed: bool, idle_ms: int) -> None:
        time = event.time
        ends = event.event_type in (SESSION_END, NOTEBOOK_CLOSED)
        if event.session_id is not None:
            # The common case, without building a part only to join it.
            session = self.sessions.get(session_key(event.session_id, event.notebook_path))
            if session is not None:
                if time < session.start:
                    session.start = time
                if time > session.end:
                    session.end = time
                if event.event_type == CELL_EXECUTED:
                    session.executions += 1
                if failed:
                    session.errors += 1
                if ends and time > session.closed:
                    session.closed = time
                return
        part = Session(
            notebook=event.notebook_path,
            client=event.session_id,
            start=time,
            end=time,
            executions=int(event.event_type == CELL_EXECUTED),
            errors=int(failed),
            closed=time if ends else -1,
        )
        self._join(part, idle_ms)

    def _join(self, part: Session, idle_ms: int) -> None:
        """Put a part where it belongs: the client's session, or with every nameless one nearer than ``idle_ms``."""
        if part.client is not None:
            key = session_key(part.client, part.notebook)
            if self.packed:
                self._take_out({*self._put_away(part.client)})
            known = self.sessions.get(key)
            if known is not None:
                known.absorb(part)
                return
        else:
            near = [
                key
                for key, session in self.sessions.items()
                if session.client is None
                and session.notebook == part.notebook
                and part.start - session.end < idle_ms
                and session.start - part.end < idle_ms
            ]
            for key in near:
                part.absorb(self.sessions.pop(key))
            key = f"\0{part.start}\0{part.notebook}"
        if (part.end <= self.forgotten and part.client is None) or (self.left and _mark(key) in self.left):
            return  # its session is a row by now, and this may be a part of it
        self.sessions[key] = part
        if len(self.sessions) > MAX_SESSIONS:
            self.forget(min(self.sessions, key=lambda each: (self.sessions[each].end, self.sessions[each].start)))

    def forget(self, key: str) -> None:
        """A session leaves memory. What comes for it later counts for the student only, and is a row."""
        self._leave(self.sessions.pop(key))

    def _leave(self, session: Session) -> None:
        if session.client is None:
            self.forgotten = max(self.forgotten, session.end)
        else:
            self.left[_mark(session_key(session.client, session.notebook))] = session.end
            trim(self.left, MAX_LEFT, lambda end: end)

    def pack(self, clients: Collection[str]) -> list[str]:
        """Put away the sessions of clients, whose rows are stored as they are; returns their keys.

        They stay a part of the state like the others: what comes for a client takes them out again. It is all of a
        client's or none, as one of no notebook is shown only without the others.
        """
        groups: dict[str, list[Session]] = {client: [] for client in clients}
        keys = [key for key, session in self.sessions.items() if session.client in groups]
        for key in keys:
            session = self.sessions.pop(key)
            groups[session.client or ""].append(session)
        records = [*self.packed]
        for client, sessions in groups.items():
            records.append(pack_sessions(client, sessions, closed=all(map(self.closed, _visible(sessions)))))
        self.packed = self._bounded(records)
        return keys

    def _bounded(self, records: list[bytes]) -> tuple[bytes, ...]:
        """As many records as may stay put away; the sessions of the oldest of the others leave memory."""
        room = MAX_PACKED_BYTES
        if len(records) <= MAX_PACKED and sum(map(len, records)) <= room:
            return tuple(records)
        kept: list[bytes] = []
        ends = {record: max(session.end for session in unpack_sessions(record)) for record in records}
        for record in sorted(records, key=lambda record: (ends[record], record), reverse=True):
            room -= len(record)
            if room >= 0 and len(kept) < MAX_PACKED:
                kept.append(record)
            else:
                for session in unpack_sessions(record):
                    self._leave(session)
        return tuple(reversed(kept))

    def packed_sessions(self) -> list[Session]:
        """The visible ones of those that are put away. To read."""
        return [session for record in self.packed for session in _visible(unpack_sessions(record))]

    def unpack(self) -> None:
        """Take out all that is put away."""
        self._take_out(set(self.packed))

    def _take_out(self, records: set[bytes]) -> None:
        if not records:
            return
        self.packed = tuple(record for record in self.packed if record not in records)
        for record in records:
            for session in unpack_sessions(record):
                session.row_start = session.start
                self.sessions[session_key(session.client or "", session.notebook)] = session

    def has_left(self, client: str | None, notebook: str | None, end: int) -> bool:
        """Whether a session, known by its row, left memory."""
        if client is None:
            return end <= self.forgotten
        return bool(self.left) and _mark(session_key(client, notebook)) in self.left

    def _end(self, client: str, time: int) -> None:
        if time <= self.ended.get(client, -1):
            return  # a later one is known, and closes all that this would
        self._take_out({record for record in self._put_away(client) if self._may_close(record, time)})
        self.ended[client] = time
        trim(self.ended, MAX_SESSIONS, lambda item: item)

    def _put_away(self, client: str) -> Collection[bytes]:
        """Records of a client; ``""``: of any."""
        if not client or not self.packed:
            return self.packed
        record = record_of(client, self.packed)
        return () if record is None else (record,)

    def _may_close(self, record: bytes, time: int) -> bool:
        """Whether an end at ``time`` closes a session of the record."""
        if all_closed(record) or first_end(record) > time:
            return False
        return any(session.end <= time and not self.closed(session) for session in unpack_sessions(record))

    def closed(self, session: Session) -> bool:
        """Whether a session was closed, by its own close or by an end that named no notebook."""
        return (
            session.is_closed
            or self.ended.get(session.client or "", -1) >= session.end
            or self.ended.get("", -1) >= session.end
        )

    def visible_sessions(self) -> dict[str, Session]:
        """Its sessions by key, without those of no notebook whose client session is known by a notebook. To read.

        Nor those that are put away: see `packed_sessions`.
        """
        sessions = self.sessions
        if len(sessions) == 1:
            return sessions
        placed = {session.client for session in sessions.values() if session.notebook is not None}
        return {
            key: session
            for key, session in sessions.items()
            if session.notebook is not None or session.client not in placed
        }

    def failing_cell(self) -> Cell | None:
        """The most recently run cell, when its last run failed; None when nothing is failing."""
        run = self.run
        if run is None or not run.failed:
            return None
        notebook = self.notebooks.get(run.notebook)
        return None if notebook is None else notebook.cells.get(run.cell)

    def position(self, journal: str) -> int:
        """The highest seq of this journal that is in the state; 0 when none is."""
        return self.applied.get(journal, 0)

    def advance(self, journal: str, seq: int) -> None:
        """Note that everything of this user up to ``seq`` of the journal is in the state."""
        self.applied[journal] = max(seq, self.applied.get(journal, 0))
        if len(self.applied) > MAX_JOURNALS:
            del self.applied[next(iter(self.applied))]


def merge(left: UserState, right: UserState, idle_ms: int) -> UserState:
    """Join two states of one user that saw disjoint events. Consumes both."""
    for journal, seq in right.applied.items():
        left.advance(journal, seq)
    left.name = latest(left.name, right.name)
    left.team = latest(left.team, right.team)
    left.executions += right.executions
    left.errors += right.errors
    left.last_event = max(left.last_event, right.last_event)
    left.last_receipt = max(left.last_receipt, right.last_receipt)
    left.current = latest(left.current, right.current)
    if right.run is not None and (left.run is None or right.run.order > left.run.order):
        left.run = right.run
    for path, notebook in right.notebooks.items():
        known = left.notebooks.get(path)
        if known is None:
            left.notebooks[path] = notebook
            trim(left.notebooks, MAX_NOTEBOOKS, lambda item: item.last)
        else:
            known.merge(notebook)
    left.forgotten = max(left.forgotten, right.forgotten)
    left.left |= right.left
    right.unpack()
    for session in right.sessions.values():
        left._join(session, idle_ms)  # noqa: SLF001 - the same rule as for one event
    for client, time in right.ended.items():
        left._end(client, time)  # noqa: SLF001
    left.help.merge(right.help)
    return left


def _visible(sessions: Collection[Session]) -> list[Session]:
    """Those without the ones of no notebook whose client session is known by a notebook."""
    placed = {session.client for session in sessions if session.notebook is not None}
    return [session for session in sessions if session.notebook is not None or session.client not in placed]


def _mark(key: str) -> int:
    """64 bits that stand for a session's key."""
    return _digest("", "", key)
