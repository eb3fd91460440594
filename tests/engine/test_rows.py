"""A student's rows in the table of sessions follow its state through flushes whose outcome may be unknown."""

import tracemalloc
from collections.abc import Callable
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.event import Event
from engine.learning_session import all_closed, unpack_sessions
from engine.ports import SessionRow
from engine.rows import Past, StoredRows, decode_state, encode_state, keep_state, kept_state, newest_rows, session_rows
from engine.session import KEPT_SESSIONS, MAX_PACKED, MAX_PACKED_BYTES, UserState
from tests.engine.strategies import IDLE_MS, event_lists, state_of

OUTCOMES = (None, "stored", "lost", "stored, but not answered", "crash", "stored, then crash")


class Table:
    """Rows by (id, started_at), and the snapshot that was stored with them, of the first so many events."""

    def __init__(self) -> None:
        self.rows: dict[tuple[UUID, int], SessionRow] = {}
        self.snapshot = encode_state(UserState(class_id="default", user_id="ana"))
        self.events = 0


class Flush:
    """One that has begun: what it was told, and the state as it then was."""

    def __init__(self, past: Past, events: int, outcome: str) -> None:
        past.rows.shed(past.state)
        self._changed, self._moved = past.rows.changes(past.state)
        self._snapshot = encode_state(past.state)
        self._events = events
        self._outcome = outcome

    def end(self, table: Table, past: Past) -> None:
        """What became of it."""
        if self._outcome.startswith("stored"):
            for identity in self._moved:
                table.rows.pop(identity, None)
            table.rows.update({(row.id, row.started_at): row for row in self._changed})
            table.snapshot, table.events = self._snapshot, self._events
        if self._outcome == "stored":
            past.rows.stored()
        else:
            past.rows.unsure()


@given(event_lists(), st.data())
def test_the_table_is_the_state_after_any_flushes_and_crashes(events, data):
    outcomes = data.draw(st.lists(st.sampled_from(OUTCOMES), min_size=len(events), max_size=len(events)))
    slow = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    table = Table()
    past = Past.of(decode_state(table.snapshot))
    begun: Flush | None = None
    for count, (event, outcome) in enumerate(zip(events, outcomes, strict=True), 1):
        past.state.apply(event, event.time, IDLE_MS)
        if begun is not None:  # the event came meanwhile, and somebody asks for the sessions
            gone = past.rows.left(past.state)
            assert not gone & {row.id for row in session_rows(past.state)}
            begun.end(table, past)
            begun = None
        if outcome is not None and outcome != "crash":
            begun = Flush(past, count, outcome)
        if begun is not None and not slow[count - 1]:
            begun.end(table, past)
            begun = None
        if outcome is not None and outcome.endswith("crash"):
            if begun is not None:
                begun.end(table, past)
            past, begun = Past.of(decode_state(table.snapshot)), None
            for replayed in events[table.events : count]:
                past.state.apply(replayed, replayed.time, IDLE_MS)
    if begun is not None:
        begun.end(table, past)
    Flush(past, len(events), "stored").end(table, past)
    expected = {(row.id, row.started_at): row for row in session_rows(state_of(events))}
    assert table.rows == expected


@given(event_lists())
def test_every_session_has_a_row_id_of_its_own(events):
    rows = session_rows(state_of(events))
    assert len({row.id for row in rows}) == len(rows)


@given(event_lists(), st.integers(1, 4))
def test_the_newest_are_the_first_of_all_in_order(events, most):
    state = state_of(events)
    every = sorted(session_rows(state), key=lambda row: (row.started_at, row.id), reverse=True)
    assert newest_rows(state, most) == every[:most]


@given(event_lists())
def test_what_is_stored_is_not_written_again(events):
    state, stored = state_of(events), StoredRows()
    assert stored.changes(state) == (session_rows(state), [])
    stored.stored()
    assert stored.changes(state) == ([], [])
    stored.unsure()
    assert stored.changes(state) == (session_rows(state), [])
    assert Past.of(state).rows.changes(state) == ([], [])


class Student:
    """One whose sessions go to a table with each `flush`."""

    def __init__(self, idle_ms: int = 1) -> None:
        self.state = UserState(class_id="default", user_id="ana")
        self.idle_ms = idle_ms
        self.rows = StoredRows()
        self.table: dict[tuple[UUID, int], SessionRow] = {}
        self.events = 0

    def run(self, session: str | None, at: int, *, kind: str = "cell_executed", notebook: str | None = "n") -> None:
        self.events += 1
        event = Event(f"e{self.events}", kind, at, "ana", "default", notebook_path=notebook, session_id=session)
        self.state.apply(event, at, self.idle_ms)

    def flush(self, meanwhile: Callable[[], None] = lambda: None) -> list[SessionRow]:
        """Returns the rows that were written."""
        self.rows.shed(self.state)
        changed, moved = self.rows.changes(self.state)
        for identity in moved:
            self.table.pop(identity, None)
        self.table.update({(row.id, row.started_at): row for row in changed})
        meanwhile()
        self.rows.stored()
        return changed

    @property
    def told(self) -> list[SessionRow]:
        """Sessions as a query tells them."""
        return sorted(session_rows(self.state), key=lambda row: row.started_at)


def test_sessions_of_earlier_clients_are_put_away_when_they_are_stored():
    student = Student()
    for number in range(40):
        student.run(f"client-{number:030}", number * 1000, notebook="lessons/week_01.ipynb")
        assert len(student.flush()) == 1, "those put away are not written again"
        assert len(student.told) == number + 1
    assert len(student.state.sessions) == 1, "the one at work"
    assert all(len(record) < 80 for record in student.state.packed)
    restarted = Past.of(decode_state(encode_state(student.state)))
    assert sorted(session_rows(restarted.state), key=lambda row: row.started_at) == student.told
    assert restarted.rows.changes(restarted.state) == ([], [])


def test_what_comes_for_a_session_put_away_is_counted_in_it():
    student = Student()
    for number, session in enumerate(("s00", "s0", "s1")):  # the one's name is in the other's
        student.run(session, number * 1000)
        student.flush()
    student.flush()
    assert len(student.state.packed) == 2
    student.run("s0", 1500)
    (stretched,) = student.flush()
    assert (stretched.started_at, stretched.ended_at, stretched.executions) == (1000, 1500, 2)
    student.flush()
    student.run("s0", 200)  # it starts earlier now, which is another place in the table
    (moved,) = student.flush()
    assert (moved.started_at, moved.ended_at, moved.executions) == (200, 1500, 3)
    student.flush()
    assert len(student.state.packed) == 2
    assert sorted(student.table.values(), key=lambda row: row.started_at) == student.told


def test_an_end_without_a_notebook_closes_what_was_put_away():
    student = Student()
    for number in range(3):
        student.run(f"s{number}", number * 1000)
        student.flush()
    student.flush()
    student.run("s1", 1500, kind="session_end", notebook=None)
    student.flush()
    assert [row.closed for row in student.told] == [False, True, False]
    student.flush()
    student.run(None, 0, kind="session_end", notebook=None)  # at the very time of the first one's last run
    student.flush()
    assert [row.closed for row in student.told] == [True, True, False]
    student.flush()
    student.run(None, 9000, kind="session_end", notebook=None)
    student.flush()
    assert [row.closed for row in student.told] == [True, True, True]
    assert sorted(student.table.values(), key=lambda row: row.started_at) == student.told


def test_a_session_of_no_notebook_that_was_put_away_goes_when_its_client_has_one():
    student = Student()
    student.run("s0", 0, kind="session_start", notebook=None)
    student.run("s1", 1000)
    student.flush()
    student.flush()
    assert len(student.state.packed) == 1
    student.run("s0", 500)
    student.flush()
    assert [(row.client_session, row.notebook_path) for row in student.told] == [("s1", "n"), ("s0", "n")][::-1]
    assert sorted(student.table.values(), key=lambda row: row.started_at) == student.told


def test_a_query_while_a_flush_is_under_way_leaves_no_row_behind():
    student = Student()
    student.run("s0", 1000)
    student.run("s1", 0, kind="session_start", notebook=None)
    student.flush()
    student.run("s2", 2000)
    student.flush()
    student.flush()
    assert len(student.state.packed) == 2

    def meanwhile() -> None:
        student.run("s0", 500)
        student.run("s1", 600)
        gone, told = student.rows.left(student.state), {row.id for row in student.told}
        assert not gone & told
        assert {row_id for row_id, _ in student.table} - gone <= told, "what is told is told now, not after the flush"

    student.run("s2", 3000)
    student.flush(meanwhile)
    student.flush()
    assert sorted(student.table.values(), key=lambda row: row.started_at) == student.told


def test_an_end_before_what_was_put_away_takes_nothing_out():
    student = Student()
    for number in range(5):
        student.run(f"s{number}", 1000 + number)
    student.flush()
    student.flush()
    packed = student.state.packed
    assert len(packed) == 4
    student.run(None, 10, kind="session_end", notebook=None)
    assert student.state.packed == packed
    assert student.flush() == []


def test_sessions_with_a_name_that_leave_do_not_take_nameless_ones_with_them():
    student = Student(idle_ms=500)
    for at in (1000, 1450):
        student.run(None, at)
    student.flush()
    for number in range(200):
        student.run(f"s{number}", 1510 + number, notebook="n" * 400)
    student.flush()
    student.flush()
    assert student.state.left, "some left"
    student.run(None, 1100)
    student.run(None, 1900)
    student.run(None, 800)
    student.flush()
    nameless = [(row.started_at, row.ended_at, row.executions) for row in student.told if row.client_session is None]
    assert nameless == [(800, 1900, 5)]
    stored = [(row.started_at, row.ended_at) for row in student.table.values() if row.client_session is None]
    assert stored == [(800, 1900)]


def test_nameless_sessions_leave_memory_in_order():
    """One that is not stored as it is keeps those after it, or what comes for it would be taken for a part of a row."""
    student = Student()
    for number in range(KEPT_SESSIONS + 100):
        student.run(None, number * 1000)
    student.flush()
    student.run(None, 0)
    student.flush()
    student.run(None, 0)
    student.flush()
    assert (student.told[0].started_at, student.told[0].executions) == (0, 3)
    assert sorted(student.table.values(), key=lambda row: row.started_at) == student.told
    student.flush()
    assert len(student.told) == KEPT_SESSIONS


@pytest.mark.parametrize(("name", "notebook"), [("s{}", "n"), ("s{}", "n" * 128), (None, "n")])
def test_sessions_leave_memory_only_as_rows_and_never_come_back_as_two(name, notebook):
    """The oldest of very many sessions leave when they are stored; a late event for one of them makes no second row."""
    student = Student()
    state, count = student.state, KEPT_SESSIONS + 300

    def run(number: int, at: int) -> None:
        student.run(None if name is None else name.format(number), at, notebook=notebook)

    for number in range(count):
        run(number, number * 1000)
    student.flush()
    assert len(student.table) == count, "none left before it was stored"
    student.flush()
    assert len(state.sessions) <= KEPT_SESSIONS
    assert sum(map(len, state.packed)) <= MAX_PACKED_BYTES
    assert len(state.packed) <= MAX_PACKED
    kept = len(student.told)
    assert KEPT_SESSIONS - 100 < kept < count, "some left"
    assert student.told[0].started_at == (count - kept) * 1000, "the oldest"
    run(0, count * 1000)
    run(1, 1001)
    student.flush()
    ids = {row_id for row_id, _ in student.table}
    assert len(student.table) == len(ids) == count + (name is None)  # nameless, the later run is one of its own
    assert state.executions == count + 2


def test_sessions_that_an_earlier_version_put_away_are_its_sessions_still():
    student = Student()
    for client in range(3):
        student.run(f"s{client}", 1000 * client)
        student.flush()
    state, rows = student.state, session_rows(student.state)
    assert len(state.packed) == 2
    state.packed = tuple(
        msgspec.msgpack.encode((all_closed(record), client, [msgspec.structs.replace(each, client=None)]))
        for record in state.packed
        for each in unpack_sessions(record)
        if (client := each.client)
    )
    past = Past.of(decode_state(encode_state(state)))
    assert session_rows(past.state) == rows
    assert past.rows.changes(past.state) == ([], [])


def busy_state(cells: int) -> UserState:
    """A state that is some 60 bytes longer with each cell."""
    state = UserState(class_id="default", user_id="ana")
    for number in range(cells):
        event = Event(
            f"event-{number:030}", "cell_executed", number, "ana", "default", notebook_path="a.ipynb", cell_index=number
        )
        state.apply(event, number, IDLE_MS)
    return state


def test_what_is_kept_of_a_state_takes_an_eighth_more_room_than_it_is_long_at_most():
    state = busy_state(40)
    keep_state(state)  # the buffer is as large as it needs to be
    tracemalloc.start()
    try:
        kept = keep_state(state)
        room, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(encode_state(state)) > 2000
    assert room < len(encode_state(state)) * 9 / 8 + 200
    assert kept_state(kept) == encode_state(state)


@given(event_lists())
def test_what_is_kept_of_a_state_is_what_is_stored_of_it(events):
    state = state_of(events)
    assert kept_state(keep_state(state)) == encode_state(state)
    assert decode_state(kept_state(keep_state(state))) == decode_state(encode_state(state))


def test_states_that_grow_are_kept_in_blocks_of_few_sizes():
    states = [busy_state(cells) for cells in range(1, 120)]
    assert len({len(encode_state(state)) for state in states}) == len(states)
    assert len({len(keep_state(state)) for state in states if len(encode_state(state)) >= 1024}) <= 8 * 4
