"""What a teacher sees of a student, at a moment: the contract's words, one by one."""

import json
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import rfc3339
from engine.cohort import Cohort
from engine.decode import decode_body
from engine.event import CELL_TYPES, Event
from engine.help import HELP_LAPSE_MS
from engine.rows import StoredRows, newest_rows
from engine.session import UserState
from engine.view import PROGRESS_UNIT, STATUSES, Thresholds, UserView, current_session, progress_of, user_view
from tests.engine.strategies import IDLE_MS, START, event_lists, state_of

SECOND = 1000
THRESHOLDS = Thresholds(idle_after_ms=180 * SECOND, offline_after_ms=600 * SECOND, stuck_errors=3)
RECORDINGS = Path(__file__).parents[1] / "recordings"
_numbers = count()


def event(event_type: str = "cell_executed", *, at: int = 0, **fields: Any) -> Event:
    """An event ``at`` seconds after START."""
    if event_type in CELL_TYPES or event_type.startswith("notebook_"):
        fields.setdefault("notebook_path", "n1")
    return Event(
        event_id=f"e{next(_numbers):06}",
        event_type=event_type,
        time=START + at * SECOND,
        user_id="ana",
        class_id="default",
        **fields,
    )


def failure(*, at: int, cell_id: str = "a", **fields: Any) -> Event:
    return event(at=at, cell_id=cell_id, has_error=True, **fields)


def success(*, at: int, cell_id: str = "a", **fields: Any) -> Event:
    return event(at=at, cell_id=cell_id, has_error=False, **fields)


def help_requested(*, at: int) -> Event:
    return event("help_requested", at=at)


def help_resolved(*, at: int) -> Event:
    return event("help_resolved", at=at)


def cohort_of(events: list[Event]) -> Cohort:
    cohort = Cohort("default")
    for each in events:
        cohort.observe(each)
    return cohort


def seen(*events: Event, now: int, received: int | None = None, classmates: tuple[Event, ...] = ()) -> UserView:
    """The view ``now`` seconds after START; events were received when they happened, or all at ``received``."""
    state = state_of(list(events), received_at=None if received is None else START + received * SECOND)
    return user_view(state, START + now * SECOND, THRESHOLDS, cohort_of([*events, *classmates]))[0]


# --- status


def test_the_strongest_status_holds():
    trouble = [failure(at=0), failure(at=1), failure(at=2)]
    assert seen(*trouble, help_requested(at=3), now=700)["status"] == "help"
    assert seen(*trouble, now=700)["status"] == "stuck"
    assert seen(*trouble[:2], now=700)["status"] == "error"
    assert seen(success(at=0), now=10)["status"] == "active"
    assert seen(success(at=0), now=300)["status"] == "idle"
    assert seen(success(at=0), now=700)["status"] == "offline"


@pytest.mark.parametrize(
    ("silence_ms", "status"),
    [(0, "active"), (179_999, "active"), (180_000, "idle"), (599_999, "idle"), (600_000, "offline")],
)
def test_idle_and_offline_are_counted_from_the_receipt_whatever_the_events_clock_says(silence_ms, status):
    for clock_ms in (-3_600_000, 0, 500_000):
        state = state_of([success(at=clock_ms // SECOND)], received_at=START)
        assert user_view(state, START + silence_ms, THRESHOLDS, Cohort("default"))[0]["status"] == status


def test_any_activity_makes_a_student_active_again():
    assert seen(success(at=0), event("custom.thing", at=650), now=660)["status"] == "active"


def test_a_student_whose_every_session_is_closed_is_offline():
    one = [success(at=0, session_id="s1"), event("notebook_closed", at=5, session_id="s1")]
    other = success(at=1, session_id="s1", notebook_path="n2")
    assert seen(*one, now=10)["status"] == "offline"
    assert seen(*one, other, now=10)["status"] == "active"
    assert seen(*one, other, event("session_end", at=6, session_id="s1"), now=10)["status"] == "offline"


def test_an_end_without_a_name_closes_every_session_before_it():
    sessions = [success(at=0, session_id="s1"), success(at=1, session_id="s2"), success(at=2)]
    assert seen(*sessions, event("session_end", at=5), now=10)["status"] == "offline"
    assert seen(*sessions, event("session_end", at=5), success(at=6), now=10)["status"] == "active"


def test_an_end_closes_only_its_own_client_session():
    sessions = [success(at=0, session_id="s1"), success(at=1, session_id="s2")]
    assert seen(*sessions, event("session_end", at=5, session_id="s1"), now=10)["status"] == "active"


@pytest.mark.parametrize("client", ["s1", None])
def test_of_several_ends_the_latest_counts_in_whatever_order_they_come(client):
    runs = [success(at=0, session_id="s1"), success(at=10, session_id="s1")]
    first, last = (event("session_end", at=at, session_id=client) for at in (5, 15))
    assert seen(*runs, first, now=20)["status"] == "active"
    assert seen(*runs, first, last, now=20)["status"] == "offline"
    assert seen(*runs, last, first, now=20)["status"] == "offline"


def test_a_close_that_arrives_before_what_it_closes_still_closes():
    assert seen(event("notebook_closed", at=5), success(at=0), now=10)["status"] == "offline"


def test_work_after_a_close_opens_the_session_again():
    assert seen(event("notebook_closed", at=5), success(at=6), now=10)["status"] == "active"


# --- errors


def test_failures_of_one_cell_count_though_other_cells_ran_between():
    events = [failure(at=0), success(at=1, cell_id="b"), failure(at=2), failure(at=3, cell_id="c"), failure(at=4)]
    view = seen(*events, now=10)
    assert (view["status"], view["consecutive_errors"]) == ("stuck", 3)
    assert view["stuck_since"] == rfc3339(START + 4 * SECOND)


def test_another_cell_that_ran_last_and_well_ends_the_trouble():
    view = seen(failure(at=0), failure(at=1), failure(at=2), success(at=3, cell_id="b"), now=10)
    assert (view["status"], view["consecutive_errors"]) == ("active", 0)
    assert "stuck_since" not in view


def test_a_cell_keeps_its_identity_when_its_place_changes():
    view = seen(*(failure(at=place, cell_index=place) for place in range(3)), now=10)
    assert view["consecutive_errors"] == 3


def test_cells_without_an_id_are_told_apart_by_their_place():
    runs = [event(at=at, cell_index=index, has_error=True) for at, index in enumerate((0, 1, 0))]
    assert seen(*runs, now=10)["consecutive_errors"] == 2


def test_the_same_cell_id_in_another_notebook_is_another_cell():
    runs = [failure(at=0), failure(at=1), failure(at=2, notebook_path="n2")]
    assert seen(*runs, now=10)["consecutive_errors"] == 1


def test_stuck_since_is_when_the_threshold_was_reached_and_stays():
    failures = [failure(at=10 * number) for number in range(6)]
    assert "stuck_since" not in seen(*failures[:2], now=100)
    for known in (3, 4, 6):
        assert seen(*failures[:known], now=100)["stuck_since"] == rfc3339(START + 20 * SECOND)
    assert seen(*reversed(failures), now=100)["stuck_since"] == rfc3339(START + 20 * SECOND)


def test_stuck_since_is_kept_past_the_bound_on_failures():
    assert seen(*(failure(at=at) for at in range(200)), now=300)["stuck_since"] == rfc3339(START + 2 * SECOND)


def test_a_success_that_arrives_late_shortens_the_run_of_failures():
    failures = [failure(at=at) for at in (0, 1, 3, 4)]
    assert seen(*failures, success(at=2), now=10)["consecutive_errors"] == 2


def test_an_execution_error_counts_as_an_error_and_not_as_an_execution():
    view = seen(event("execution_error", at=0, cell_id="a"), failure(at=1, cell_id="b"), now=10)
    assert (view["cell_executions"], view["error_count"]) == (1, 2)


# --- help


def test_help_of_a_client_that_calls_once_lasts_until_it_is_resolved():
    call = help_requested(at=0)
    view = seen(call, now=100_000)
    assert (view["status"], view["help_since"]) == ("help", rfc3339(START))
    assert "help_since" not in seen(call, help_resolved(at=5), now=10)


def test_help_of_a_client_that_repeats_lapses_60_s_after_the_last_receipt():
    calls = [help_requested(at=0), help_requested(at=10)]
    assert seen(*calls, now=70)["help_since"] == rfc3339(START)
    assert "help_since" not in seen(*calls, now=71)
    assert seen(*calls, received=500, now=560)["status"] == "help"


def test_two_calls_further_apart_than_30_s_are_not_a_repeat():
    assert seen(help_requested(at=0), help_requested(at=31), now=100_000)["status"] == "help"
    assert seen(help_requested(at=0), help_requested(at=30), now=100_000)["status"] == "offline"


def test_a_resolve_that_arrives_early_resolves_what_was_called_before_it():
    assert "help_since" not in seen(help_resolved(at=5), help_requested(at=0), now=10)


def test_a_resolve_that_arrives_late_leaves_what_was_called_after_it():
    view = seen(help_requested(at=0), help_requested(at=10), help_resolved(at=5), now=15)
    assert view["help_since"] == rfc3339(START + 10 * SECOND)


def test_a_call_after_a_lapse_begins_anew():
    calls = [help_requested(at=at) for at in (0, 10, 100, 110)]
    assert seen(*calls, now=120)["help_since"] == rfc3339(START + 100 * SECOND)


# --- place, progress, what is left out


def test_progress_is_over_the_cells_that_anybody_in_the_class_ran():
    mine = (success(at=0, cell_index=0), success(at=1, cell_id="b", cell_index=1))
    assert seen(*mine, now=10)["progress"] == 1.0
    assert seen(*mine, classmates=(success(at=2, cell_index=7),), now=10)["progress"] == 0.25


def test_progress_is_over_the_total_that_a_client_gave():
    mine = (success(at=0, cell_index=0, total_cells=5), success(at=1, cell_id="b", cell_index=1))
    assert seen(*mine, now=10)["progress"] == 0.4
    assert seen(*mine, success(at=2, cell_index=0, total_cells=8), now=10)["progress"] == 0.25


def test_progress_is_at_most_1():
    assert seen(*(success(at=n, cell_index=n, total_cells=2) for n in range(5)), now=10)["progress"] == 1.0
    assert progress_of(3, 2) == 1.0
    assert progress_of(0, 0) == 0.0


def test_a_cell_that_fails_after_it_succeeded_is_no_longer_done():
    done = [success(at=0, cell_index=0), success(at=1, cell_id="b", cell_index=1)]
    assert seen(*done, failure(at=2, cell_index=0), now=10)["progress"] == 0.5


def test_progress_of_a_notebook_that_the_class_does_not_know_falls_back_to_the_students_own_cells():
    state = state_of([success(at=0, cell_index=0), failure(at=1, cell_id="b", cell_index=9)])
    assert user_view(state, START, THRESHOLDS, Cohort("default"))[0]["progress"] == 0.5


def test_the_place_is_the_latest_notebook_and_its_latest_cell_with_an_index():
    events = [
        success(at=0, cell_index=4),
        success(at=1, cell_id="b"),
        event("notebook_opened", at=2, notebook_path="n2"),
    ]
    view = seen(*events, now=10)
    assert view["notebook_path"] == "n2"
    assert "cell_index" not in view
    view = seen(*events, event("notebook_saved", at=3), now=10)
    assert (view["notebook_path"], view["cell_index"]) == ("n1", 4)


def test_absent_values_are_left_out():
    assert seen(event("custom.thing", at=5), now=10) == {
        "user_id": "ana",
        "status": "active",
        "cell_executions": 0,
        "error_count": 0,
        "consecutive_errors": 0,
        "last_activity": rfc3339(START + 5 * SECOND),
    }


def test_every_value_of_the_contract_is_there_when_it_is_known():
    named = [failure(at=at, cell_index=0, user_name="Ana", team="red") for at in range(3)]
    assert seen(*named, help_requested(at=3), now=10) == {
        "user_id": "ana",
        "user_name": "Ana",
        "team": "red",
        "status": "help",
        "notebook_path": "n1",
        "cell_index": 0,
        "cell_executions": 3,
        "error_count": 3,
        "consecutive_errors": 3,
        "progress": 0.0,
        "last_activity": rfc3339(START + 3 * SECOND),
        "session_started_at": rfc3339(START),
        "help_since": rfc3339(START + 3 * SECOND),
        "stuck_since": rfc3339(START + 2 * SECOND),
    }


def test_the_session_shown_is_the_current_notebooks_latest():
    state = state_of(
        [
            success(at=0, session_id="s1"),
            success(at=100, session_id="s2"),
            success(at=200, session_id="s3", notebook_path="n2"),
            event("notebook_saved", at=300, session_id="s2"),
        ]
    )
    session = current_session(state, state.visible_sessions().values())
    assert session is not None
    assert (session.client, session.notebook) == ("s2", "n1")


@given(event_lists(), st.data())
def test_sessions_that_are_put_away_are_seen_like_the_others(events, data):
    flushes = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    state, rows = UserState(class_id="default", user_id="ana"), StoredRows()
    for each, flush in zip(events, flushes, strict=True):
        state.apply(each, each.time, IDLE_MS)
        if flush:
            rows.shed(state)
            rows.changes(state)
            rows.stored()
    plain, cohort = state_of(events), cohort_of(events)
    assert user_view(state, plain.last_receipt, THRESHOLDS, cohort) == user_view(
        plain, plain.last_receipt, THRESHOLDS, cohort
    )
    assert newest_rows(state, 3) == newest_rows(plain, 3)


def put_away(events: list[Event]) -> UserState:
    """The state after events, stored after each."""
    state, rows = UserState(class_id="default", user_id="ana"), StoredRows()
    for each in events:
        state.apply(each, each.time, IDLE_MS)
        rows.shed(state)
        rows.changes(state)
        rows.stored()
    return state


def test_a_session_put_away_that_was_never_closed_keeps_its_student_from_being_offline():
    closes = event("notebook_closed", at=20, session_id="s2")
    state = put_away([success(at=0, session_id="s1"), success(at=10, session_id="s2"), closes])
    assert len(state.packed) == 1
    view, _ = user_view(state, state.last_receipt, THRESHOLDS, Cohort("default"))
    assert view["status"] == "active"


def test_a_student_whose_sessions_are_all_closed_is_offline_whatever_was_put_away():
    begins = event(
        "session_start", at=0, session_id="s1"
    )  # not shown beside a session with a notebook, and never closed
    closes = [event("notebook_closed", at=at, session_id=session_id) for at, session_id in ((10, "s1"), (30, "s2"))]
    state = put_away([begins, success(at=5, session_id="s1"), closes[0], success(at=20, session_id="s2"), closes[1]])
    assert len(state.packed) == 1
    view, _ = user_view(state, state.last_receipt, THRESHOLDS, Cohort("default"))
    assert view["status"] == "offline"


def test_of_two_sessions_that_end_together_the_later_begun_is_shown_whatever_was_stored():
    ends = [success(at=10, session_id="s2"), success(at=10, session_id="s1")]
    late = success(at=0, session_id="s2")
    state = put_away([success(at=5, session_id="s1"), *ends, event("help_requested", at=11), late])
    view, _ = user_view(state, state.last_receipt, THRESHOLDS, Cohort("default"))
    assert view["session_started_at"] == rfc3339(START + 5 * SECOND)


# --- when it changes


@given(event_lists(), st.one_of(st.integers(0, 70_000), st.integers(0, 700_000)), st.data())
def test_nothing_changes_before_the_moment_that_is_told(events, after, data):
    state = state_of(events)
    cohort = cohort_of(events)
    now = state.last_receipt + after
    view, until = user_view(state, now, THRESHOLDS, cohort)
    end = now + 10 * THRESHOLDS.offline_after_ms if until is None else until - 1
    assert end >= now
    inner = data.draw(st.integers(now, end))
    for moment in (inner, end):
        assert user_view(state, moment, THRESHOLDS, cohort)[0] == view


@given(event_lists())
def test_following_the_moments_that_are_told_ends(events):
    state, cohort = state_of(events), cohort_of(events)
    now: int | None = state.last_receipt
    for _ in range(4):  # help lapses, idle, offline
        assert now is not None
        now = user_view(state, now, THRESHOLDS, cohort)[1]
        if now is None:
            return
    pytest.fail(f"still something to come at {now}")


@given(event_lists())
def test_a_view_holds_only_what_its_readers_rely_on(events):
    view, _ = user_view(state_of(events), START, THRESHOLDS, cohort_of(events))
    assert view["status"] in STATUSES
    assert None not in view.values()
    assert 0.0 <= view.get("progress", 0.0) <= 1.0
    assert round(view.get("progress", 0.0) * PROGRESS_UNIT) / PROGRESS_UNIT == view.get("progress", 0.0)


# --- a real client's recordings


def recorded(name: str) -> list[Event]:
    """The distinct events of a recording, in the order of their first arrival."""
    events: dict[str, Event] = {}
    for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        body = json.loads(line).get("body")
        if body:
            decoded = decode_body(body.encode(), ndjson=False, received_at=START + 3_600_000, max_events=1000)
            assert not decoded.rejected
            for each in decoded.events:
                assert not each.clock_skewed
                events.setdefault(each.event_id, each)
    return list(events.values())


def raw_events(name: str) -> list[dict[str, Any]]:
    """The same, as the client wrote them."""
    events = {}
    for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        for each in json.loads(json.loads(line).get("body") or "[]"):
            events[each["eventId"]] = each
    return sorted(events.values(), key=lambda each: (each["eventTime"], each["eventId"]))


@pytest.mark.parametrize("name", ["cell_monitor", "cell_monitor_503_twice", "cell_monitor_reset"])
def test_a_recorded_run_gives_the_counts_of_what_the_client_wrote(name):
    raw = raw_events(name)
    runs = [each for each in raw if each["eventType"] == "cell_executed"]
    results: dict[str, dict[int, bool]] = defaultdict(dict)
    for run in runs:
        results[run["notebookPath"]][run["cellIndex"]] = not run["hasError"]
    events = recorded(name)
    assert len(events) == len(raw)
    state = state_of(events, user_id=events[0].user_id)
    assert state.executions == len(runs)
    assert state.errors == sum(run["hasError"] for run in runs)
    assert len(state.sessions) == len({(each["notebookPath"], each["sessionId"]) for each in raw})
    assert {path: each.done for path, each in state.notebooks.items()} == {
        path: sum(results[path].values()) for path in {each["notebookPath"] for each in raw}
    }


def test_the_longest_recording_gives_the_counts_that_its_readme_states():
    events = recorded("cell_monitor")
    state = state_of(events, user_id=events[0].user_id)
    assert (len(events), state.executions, state.errors, len(state.sessions)) == (65, 52, 24, 4)
    assert [notebook.done for notebook in state.notebooks.values()] == [8, 8, 8]
    cohort = cohort_of(events)
    assert [cohort.total_cells(path) for path in state.notebooks] == [12, 12, 12]
    view, _ = user_view(state, START + 3_600_000, THRESHOLDS, cohort)
    assert view["progress"] == round(8 / 12, 4)


def test_the_longest_recording_shows_three_calls_for_help():
    events = sorted(recorded("cell_monitor"), key=lambda each: (each.time, each.event_id))
    state = UserState(class_id="default", user_id=events[0].user_id)
    beginnings = set()
    for each in events:
        state.apply(each, each.time, IDLE_MS)
        view, _ = user_view(state, each.time, THRESHOLDS, Cohort("default"))
        beginnings.add(view.get("help_since"))
    assert len(beginnings - {None}) == 3
    assert user_view(state, events[-1].time + HELP_LAPSE_MS + 1, THRESHOLDS, Cohort("default"))[0]["status"] != "help"
