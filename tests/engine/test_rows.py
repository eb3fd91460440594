"""A student's rows in the table of sessions follow its state through flushes whose outcome may be unknown."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from engine.event import Event
from engine.ports import SessionRow
from engine.rows import Past, StoredRows, decode_state, encode_state, session_rows
from engine.session import UserState
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


@given(event_lists())
def test_what_is_stored_is_not_written_again(events):
    state, stored = state_of(events), StoredRows()
    assert stored.changes(state) == (session_rows(state), [])
    stored.stored()
    assert stored.changes(state) == ([], [])
    stored.unsure()
    assert stored.changes(state) == (session_rows(state), [])
    assert Past.of(state).rows.changes(state) == ([], [])
