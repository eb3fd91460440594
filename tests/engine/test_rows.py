"""A student's rows in the table of sessions follow its state through flushes whose outcome may be unknown."""

import tracemalloc
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from engine.event import Event
from engine.ports import SessionRow
from engine.rows import Past, StoredRows, decode_state, encode_state, newest_rows, session_rows
from engine.session import KEPT_SESSIONS, UserState
from tests.engine.strategies import IDLE_MS, event_lists, state_of

OUTCOMES = (None, "stored", "lost", "stored, but not answered", "crash", "stored, then crash")


class Table:
    """Rows by (id, started_at), and the snapshot that was stored with them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[UUID, int], SessionRow] = {}
        self.snapshot = encode_state(UserState(class_id="default", user_id="ana"))

    def write(self, state: UserState, rows: list[SessionRow], moved: list[tuple[UUID, int]]) -> None:
        for identity in moved:
            self.rows.pop(identity, None)
        self.rows.update({(row.id, row.started_at): row for row in rows})
        self.snapshot = encode_state(state)


def flush(table: Table, state: UserState, stored: StoredRows, outcome: str) -> None:
    changes = stored.changes(state)
    if outcome.startswith("stored"):
        table.write(state, *changes)
    if outcome == "stored":
        stored.stored()
    else:
        stored.unsure()


@given(event_lists(), st.data())
def test_the_table_is_the_state_after_any_flushes_and_crashes(events, data):
    outcomes = data.draw(st.lists(st.sampled_from(OUTCOMES), min_size=len(events), max_size=len(events)))
    table = Table()
    past = Past.of(decode_state(table.snapshot))
    since_snapshot: list[Event] = []
    for event, outcome in zip(events, outcomes, strict=True):
        past.state.apply(event, event.time, IDLE_MS)
        since_snapshot.append(event)
        if outcome is not None and outcome != "crash":
            flush(table, past.state, past.rows, outcome)
            if outcome.startswith("stored"):
                since_snapshot = []
        if outcome is not None and outcome.endswith("crash"):
            past = Past.of(decode_state(table.snapshot))
            for replayed in since_snapshot:
                past.state.apply(replayed, replayed.time, IDLE_MS)
    flush(table, past.state, past.rows, "stored")
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


def test_sessions_leave_memory_only_as_rows_and_never_come_back_as_two():
    """The oldest of very many sessions leave when they are stored; a late event for one of them makes no second row."""
    state = UserState(class_id="default", user_id="ana")
    rows = StoredRows()
    table: dict = {}

    def flush() -> None:
        rows.shed(state)
        changed, moved = rows.changes(state)
        for identity in moved:
            table.pop(identity, None)
        table.update({(row.id, row.started_at): row for row in changed})
        rows.stored()

    def run(number: int, session: str, at: int) -> None:
        each = Event(event_id=f"e{number}", event_type="cell_executed", time=at, user_id="ana", class_id="default",
                     notebook_path="n", session_id=session)  # fmt: skip
        state.apply(each, at, 1)

    count = KEPT_SESSIONS + 300
    for number in range(count):
        run(number, f"s{number}", number * 1000)
    flush()
    assert len(table) == count, "none left before it was stored"
    flush()
    assert len(state.sessions) == KEPT_SESSIONS
    run(count, "s0", count * 1000)
    run(count + 1, "s1", 1001)
    flush()
    assert len(table) == len({row_id for row_id, _ in table}) == count
    assert state.executions == count + 2


def test_what_is_kept_of_a_state_takes_no_more_room_than_it_is_long():
    state = UserState(class_id="default", user_id="ana")
    for number in range(40):
        event = Event(
            f"event-{number:030}", "cell_executed", number, "ana", "default", notebook_path="a.ipynb", cell_index=number
        )
        state.apply(event, number, IDLE_MS)
    encode_state(state)  # the buffer is as large as it needs to be
    tracemalloc.start()
    try:
        kept = encode_state(state)
        room, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) > 2000
    assert room < len(kept) + 200
