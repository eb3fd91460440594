"""A student's state is the same whatever order, batching, repetition and crash its events go through."""

from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import cells, session
from engine.cells import cell_key
from engine.event import CELL_TYPES, HELP_RESOLVED, Event, UserKey
from engine.help import MAX_REQUESTS
from engine.rows import StoredRows, decode_state, encode_state, session_rows
from engine.session import UserState, merge
from tests.engine.pipeline import Pipeline
from tests.engine.strategies import IDLE_MS, START, event_lists, many, state_of, whole

MINUTE = 60_000


def normal(state: UserState) -> Any:
    """What its snapshot says, the order of maps, the positions in journals and what is put away apart."""
    assert msgspec.to_builtins(decode_state(encode_state(state))) == msgspec.to_builtins(state)
    return msgspec.to_builtins(msgspec.structs.replace(whole(state), applied={}))


def event(number: int, event_type: str = "cell_executed", *, at: int | None = None, **fields: Any) -> Event:
    if event_type in CELL_TYPES:
        fields.setdefault("notebook_path", "n1")
    return Event(
        event_id=f"e{number:06}",
        event_type=event_type,
        time=START + (number if at is None else at),
        user_id="ana",
        class_id="default",
        **fields,
    )


# --- order, batches, crashes


@given(event_lists(), st.data())
def test_any_order_gives_the_same_state(events, data):
    shuffled = data.draw(st.permutations(events))
    assert normal(state_of(shuffled)) == normal(state_of(events))


@given(event_lists(), st.data())
def test_two_halves_merge_to_the_whole_either_way_round(events, data):
    sides = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    left = [each for each, side in zip(events, sides, strict=True) if side]
    right = [each for each, side in zip(events, sides, strict=True) if not side]
    whole = normal(state_of(events))
    assert normal(merge(state_of(left), state_of(right), IDLE_MS)) == whole
    assert normal(merge(state_of(right), state_of(left), IDLE_MS)) == whole


@given(event_lists(), st.data())
def test_three_parts_merge_to_the_whole_however_they_are_paired(events, data):
    sides = data.draw(st.lists(st.integers(0, 2), min_size=len(events), max_size=len(events)))
    parts = [[each for each, side in zip(events, sides, strict=True) if side == part] for part in range(3)]

    def made() -> list[UserState]:
        return [state_of(part) for part in parts]

    whole = normal(state_of(events))
    first, second, third = made()
    assert normal(merge(merge(first, second, IDLE_MS), third, IDLE_MS)) == whole
    first, second, third = made()
    assert normal(merge(first, merge(second, third, IDLE_MS), IDLE_MS)) == whole


@given(event_lists())
def test_a_snapshot_goes_on_as_if_it_had_not_been_taken(events):
    half = len(events) // 2
    state = decode_state(encode_state(state_of(events[:half])))
    for each in events[half:]:
        state.apply(each, each.time, IDLE_MS)
    assert normal(state) == normal(state_of(events))


def test_a_snapshot_of_an_earlier_version_is_read():
    """Its form is arrays by position: what was last is written as the order of its event, and then the rest."""
    state = state_of([event(1, user_name="Ana", team="red", cell_id="c", cell_index=2, has_error=True)])
    order = [START + 1, "e000001"]
    stored = msgspec.msgpack.decode(encode_state(state))
    assert stored[3:5] == [[order, "Ana"], [order, "red"]]
    assert stored[9:11] == [[order, "n1"], [order, "n1", "c", True]]
    assert stored[11]["n1"][:2] == [order, [order, 2]]
    assert decode_state(msgspec.msgpack.encode(stored)) == state
    # Before sessions were put away there was nothing behind these.
    earlier = [*stored[:17]]
    earlier[12] = {key: fields[:7] for key, fields in stored[12].items()}
    assert decode_state(msgspec.msgpack.encode(earlier)) == state


USERS = ("ana", "ben")
_indexes = st.lists(st.integers(0, 15), min_size=1, max_size=4)
_steps = st.one_of(
    st.tuples(st.just("deliver"), _indexes),
    st.tuples(st.just("deliver"), _indexes),
    st.tuples(st.just("flush"), st.integers(1, 2), st.sampled_from(("stored", "lost", "stored, but not answered"))),
    st.tuples(st.just("crash"), st.booleans()),
    st.tuples(st.just("retire")),
    st.tuples(st.just("settle")),
)


def play(pipeline: Pipeline, events: list[Event], steps: list[tuple[Any, ...]]) -> None:
    """Take the steps; in the end clients send all again, and everything is stored."""
    for step in steps:
        match step:
            case ("deliver", indexes):
                pipeline.deliver([events[index % len(events)] for index in indexes])
            case ("flush", limit, outcome):
                pipeline.flush(limit=limit, committed=outcome != "lost", answered=outcome == "stored")
            case ("crash", store_away):
                pipeline.crash()
                if not store_away:
                    pipeline.recover()
            case ("retire",):
                pipeline.retire()
            case ("settle",):
                pipeline.settle()
    pipeline.deliver(events)
    pipeline.settle()
    pipeline.flush(limit=len(USERS), committed=True, answered=True)


@given(event_lists(users=USERS, max_size=16).filter(bool), many(_steps, 20))
def test_repeats_and_crashes_leave_the_state_of_a_clean_run(events, steps):
    pipeline = Pipeline(IDLE_MS, received_at=START)
    play(pipeline, events, steps)
    by_user: dict[UserKey, list[Event]] = defaultdict(list)
    for each in events:
        by_user[each.class_id, each.user_id].append(each)
    assert pipeline.snapshots.keys() == by_user.keys()
    for key, own in by_user.items():
        clean = state_of(own, user_id=key[1], received_at=START)
        stored = decode_state(pipeline.snapshots[key])
        assert normal(stored) == normal(clean)
        if key in pipeline.students:
            assert normal(pipeline.students[key].state) == normal(clean)
        assert sorted(session_rows(stored), key=repr) == sorted(session_rows(clean), key=repr)


@given(event_lists(users=USERS, max_size=16).filter(bool), many(_steps, 20))
def test_the_table_of_sessions_holds_no_row_that_a_session_left_behind(events, steps):
    pipeline = Pipeline(IDLE_MS, received_at=START)
    play(pipeline, events, steps)
    expected = {}
    for user_id in USERS:
        own = [each for each in events if each.user_id == user_id]
        for row in session_rows(state_of(own, user_id=user_id)):
            expected[("default", user_id), row.id, row.started_at] = row
    assert pipeline.table == expected


@given(event_lists(users=USERS, max_size=16).filter(bool), many(_steps, 20))
def test_the_floor_never_passes_an_event_that_a_stored_snapshot_lacks(events, steps):
    pipeline = Pipeline(IDLE_MS, received_at=START)
    play(pipeline, events, steps)
    pipeline.crash()
    pipeline.recover()
    assert not len(pipeline.dirty)
    assert pipeline.floor == pipeline.last_seq


@given(event_lists(), st.data())
def test_states_merge_with_what_they_put_away(events, data):
    sides = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    halves = []
    for wanted in (True, False):
        state = state_of([each for each, side in zip(events, sides, strict=True) if side is wanted])
        rows = StoredRows()
        rows.changes(state)
        rows.stored()
        rows.shed(state)
        halves.append(state)
    assert normal(merge(*halves, IDLE_MS)) == normal(state_of(events))


def test_a_start_that_names_no_notebook_is_no_session_once_its_client_session_has_one():
    start = event(1, "session_start", session_id="s1")
    run = event(2, session_id="s1")
    assert [row.notebook_path for row in session_rows(state_of([start]))] == [None]
    assert [row.notebook_path for row in session_rows(state_of([start, run]))] == ["n1"]
    assert [row.notebook_path for row in session_rows(state_of([run, start]))] == ["n1"]


def test_a_call_exactly_60_s_after_the_last_belongs_to_the_same_call():
    calls = [event(number, "help_requested", at=at) for number, at in enumerate((0, 60_000, 70_000))]
    assert state_of(calls).help.since == START
    calls.append(event(9, "help_requested", at=130_001))
    assert state_of(calls).help.since == START + 130_001


# --- what the state says, against the slow and obvious way


@given(event_lists())
def test_sessions_of_no_name_are_runs_nearer_than_the_idle_time(events):
    nameless = [each for each in events if each.session_id is None and each.notebook_path is not None]
    expected = set()
    for path in {each.notebook_path for each in nameless}:
        run: list[Event] = []
        for each in sorted((each for each in nameless if each.notebook_path == path), key=lambda each: each.time):
            if run and each.time - run[-1].time >= IDLE_MS:
                expected.add((path, run[0].time, run[-1].time, sum(item.failed for item in run)))
                run = []
            run.append(each)
        expected.add((path, run[0].time, run[-1].time, sum(item.failed for item in run)))
    found = {
        (each.notebook, each.start, each.end, each.errors)
        for each in state_of(events).sessions.values()
        if each.client is None
    }
    assert found == expected


@given(event_lists())
def test_counters_are_of_distinct_events_and_the_sum_over_notebook_sessions(events):
    state = state_of(events)
    assert state.executions == sum(each.event_type == "cell_executed" for each in events)
    assert state.errors == sum(each.failed for each in events)
    assert state.executions == sum(each.executions for each in state.sessions.values())
    assert state.errors == sum(each.errors for each in state.sessions.values())


@given(event_lists())
def test_done_cells_and_failures_in_a_row_follow_the_events_own_time(events):
    state = state_of(events)
    runs = sorted(
        (each for each in events if each.event_type in CELL_TYPES), key=lambda each: (each.time, each.event_id)
    )
    last = {(run.notebook_path, run.cell_index): run for run in runs if run.cell_index is not None}
    for path, notebook in state.notebooks.items():
        assert notebook.done == sum(not run.failed for (place, _), run in last.items() if place == path)
    failing = state.failing_cell()
    assert (failing is not None) == (bool(runs) and runs[-1].failed)
    if failing is not None:
        same = [
            run for run in runs if (run.notebook_path, cell_key(run)) == (runs[-1].notebook_path, cell_key(runs[-1]))
        ]
        failures = next((count for count, run in enumerate(reversed(same)) if not run.failed), len(same))
        assert failing.consecutive_errors == failures


# --- bounds


def flood(fields: dict[str, Any], count: int = 3000) -> UserState:
    """``count`` events, one a second; ``{n}`` in a field becomes the event's number."""
    state = UserState(class_id="default", user_id="ana")
    for number in range(count):
        own = {key: value.format(n=number) if isinstance(value, str) else value for key, value in fields.items()}
        state.apply(event(number, at=number * 1000, **own), START, IDLE_MS)
    return state


def test_notebooks_and_their_sessions_are_bounded():
    state = flood({"event_type": "notebook_opened", "notebook_path": "n{n}"})
    assert len(state.notebooks) == session.MAX_NOTEBOOKS
    assert len(state.sessions) == session.MAX_SESSIONS
    assert max(state.notebooks) == "n2999"


def test_cells_of_a_notebook_are_bounded_by_id_and_by_index():
    state = UserState(class_id="default", user_id="ana")
    for number in range(3000):
        state.apply(event(number, cell_id=f"c{number}", cell_index=number), START, IDLE_MS)
    notebook = state.notebooks["n1"]
    assert len(notebook.cells) == cells.MAX_CELLS
    assert sorted(notebook.results) == list(range(3000 - cells.MAX_CELLS, 3000))
    assert state.executions == 3000


def test_client_sessions_and_their_ends_are_bounded():
    state = flood({"event_type": "session_end", "session_id": "s{n}"})
    assert len(state.sessions) == session.MAX_SESSIONS
    assert len(state.ended) == session.MAX_SESSIONS


def test_sessions_without_a_name_are_bounded():
    state = UserState(class_id="default", user_id="ana")
    for number in range(3000):
        state.apply(event(number, at=number * IDLE_MS), START, IDLE_MS)
    assert len(state.sessions) == session.MAX_SESSIONS
    state.apply(event(3000, at=0), START, IDLE_MS)
    assert len(state.sessions) == session.MAX_SESSIONS


def test_failures_of_a_cell_are_bounded_but_all_counted():
    state = flood({"event_type": "execution_error", "cell_id": "a"})
    cell = state.failing_cell()
    assert cell is not None
    assert len(cell.failures) == cells.MAX_FAILURES
    assert cell.consecutive_errors == 3000
    assert cell.failures[0].time == START


def test_calls_for_help_are_bounded_and_their_beginning_is_kept():
    state = flood({"event_type": "help_requested"})
    assert len(state.help.requests) == MAX_REQUESTS
    assert state.help.since == START


def test_positions_in_journals_are_bounded_and_the_newest_stay():
    state = UserState(class_id="default", user_id="ana")
    for number in range(100):
        state.advance(f"journal {number}", number)
    assert len(state.applied) == session.MAX_JOURNALS
    assert state.position("journal 99") == 99
    assert state.position("journal 0") == 0


def test_merging_does_not_grow_past_the_bounds():
    def full(offset: int) -> UserState:
        state = UserState(class_id="default", user_id="ana")
        for number in range(600):
            mine = offset + number
            for kind, fields in (
                ("notebook_opened", {"notebook_path": f"n{mine}", "session_id": f"s{mine}"}),
                ("cell_executed", {"notebook_path": "busy", "cell_id": f"c{mine}", "cell_index": mine}),
                ("execution_error", {"notebook_path": "busy", "cell_id": "same"}),
                ("session_end", {"session_id": f"s{mine}"}),
                ("help_requested", {}),
            ):
                state.apply(event(mine, kind, at=mine * 1000, **fields), START, IDLE_MS)
        return state

    state = merge(full(0), full(600), IDLE_MS)
    assert len(state.notebooks) <= session.MAX_NOTEBOOKS
    assert len(state.sessions) <= session.MAX_SESSIONS
    assert len(state.ended) <= session.MAX_SESSIONS
    assert len(state.help.requests) <= MAX_REQUESTS
    busy = state.notebooks["busy"]
    assert len(busy.cells) <= cells.MAX_CELLS
    assert len(busy.results) <= cells.MAX_CELLS
    assert all(len(cell.failures) <= cells.MAX_FAILURES for cell in busy.cells.values())
    assert state.errors == 1200


# A client that repeats every 10 s passes the bound on requests after eleven minutes: a real length of a call for help.
CALLS = [event(number, "help_requested", at=number * 10_000) for number in range(100)]


@pytest.mark.parametrize("late", [0, 1, 5, 20, 40, 80, 99])
def test_a_late_repeat_of_a_long_call_for_help_does_not_move_its_beginning(late):
    state = state_of([call for call in CALLS if call is not CALLS[late]] + [CALLS[late]])
    assert state.help.since == START


def test_a_long_call_for_help_begins_after_the_one_that_was_resolved():
    resolved = event(200, HELP_RESOLVED, at=5 * MINUTE + 1)
    again = [call for call in CALLS if call.time > resolved.time]
    state = state_of([*CALLS[:31], resolved, *again])
    assert state.help.since == again[0].time


def test_a_long_call_for_help_that_lapsed_is_not_the_beginning_of_the_next():
    later = [event(1000 + number, "help_requested", at=60 * MINUTE + number * 10_000) for number in range(100)]
    assert state_of(CALLS + later).help.since == later[0].time


def test_long_calls_for_help_merge_in_time_order():
    early, late = CALLS[:80], CALLS[80:]
    assert merge(state_of(early), state_of(late), IDLE_MS).help.since == START
