"""A subscriber's copy: a snapshot and every later patch make the class as it is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cohort import Cohort
from engine.delta import MAX_GONE, ClassView, Document, diff
from engine.view import STATUSES, Thresholds, UserView, user_view
from loadtest.views import merged
from tests.engine.strategies import START, event_lists, many, state_of

THRESHOLDS = Thresholds(180_000, 600_000, 3)


def recount(users: dict[str, UserView]) -> dict[str, Any]:
    progress = [view["progress"] for view in users.values() if "progress" in view]
    return {
        "total_students": len(users),
        **{status: sum(view["status"] == status for view in users.values()) for status in STATUSES},
        "cell_executions": sum(view["cell_executions"] for view in users.values()),
        "error_count": sum(view["error_count"] for view in users.values()),
        "avg_progress": pytest.approx(sum(progress) / len(progress) if progress else 0.0, abs=0.5001e-4),
    }


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """What a client holds: nothing of it is shared with the server."""
    return {
        "users": {user: dict(view) for user, view in state["users"].items()},
        "summary": dict(state["summary"]),
    }


ODD_IDS = ("ana", "", "__proto__", "constructor", "a/b", "null", "users", "~1", "演習", "\U0001f600", "toString")
_text = st.sampled_from(("a", "b"))
views = st.fixed_dictionaries(
    {
        "user_id": st.just("x"),
        "status": st.sampled_from(STATUSES),
        "cell_executions": st.integers(0, 3),
        "error_count": st.integers(0, 3),
        "consecutive_errors": st.integers(0, 3),
        "last_activity": _text,
    },
    optional={
        "user_name": _text,
        "team": _text,
        "notebook_path": _text,
        "cell_index": st.integers(0, 2),
        "progress": st.integers(0, 10_000).map(lambda units: units / 10_000),
        "session_started_at": _text,
        "help_since": _text,
        "stuck_since": _text,
    },
)
_user_ids = st.one_of(st.sampled_from(ODD_IDS[:3]), st.sampled_from(ODD_IDS))
steps = many(
    st.one_of(
        st.tuples(st.just("put"), _user_ids, views),
        st.tuples(st.just("put"), _user_ids, views),
        st.tuples(st.just("remove"), _user_ids),
        st.tuples(st.just("frame")),
        st.tuples(st.just("join")),
        st.tuples(st.just("cut")),
    ),
    30,
)


@given(steps)
def test_every_subscriber_ends_with_the_class_as_it_is_whenever_it_joined(taken):
    view = ClassView()
    clients = [copied(view.snapshot())]
    frame = 0
    cut = []  # clients that went away, and the frame they had
    for step in [*taken, ("frame",)]:
        match step:
            case ("put", user, seen):
                view.put(user, seen)
            case ("remove", user):
                view.remove(user)
            case ("join",):
                clients.append(copied(view.snapshot()))
            case ("cut",):
                cut.append((frame, clients.pop() if len(clients) > 1 else copied(view.snapshot())))
            case ("frame",):
                frame += 1
                changes = view.take_changes(frame)
                clients = [merged(client, changes) for client in clients]
                assert not view.dirty
                assert all(client == view.snapshot() for client in clients)
    assert all(client == copied(view.snapshot()) for client in clients)
    for seq, client in cut:
        assert merged(client, view.since(seq)) == view.snapshot()


@given(steps)
def test_the_summary_equals_a_recount(taken):
    view = ClassView()
    users: dict[str, UserView] = {}
    for step in taken:
        match step:
            case ("put", user, seen):
                view.put(user, seen)
                users[user] = seen
            case ("remove", user):
                view.remove(user)
                users.pop(user, None)
        assert view.users == users
        assert view.summary == recount(users)


@given(views, views)
def test_a_patch_turns_the_old_object_into_the_new_and_tells_only_what_changed(old, new):
    patch = diff(old, new)
    assert merged(old, patch) == new
    assert all(old.get(key) != value for key, value in patch.items())
    assert diff(new, new) == {}
    assert diff(None, new) == new


@given(event_lists(), event_lists())
def test_a_student_gone_and_back_within_a_frame_leaves_nothing_of_the_old_object(before, after):
    view = ClassView()
    view.put("ana", user_view(state_of(before), START, THRESHOLDS, Cohort("default"))[0])
    view.take_changes(1)
    client = copied(view.snapshot())
    view.remove("ana")
    view.put("ana", user_view(state_of(after), START, THRESHOLDS, Cohort("default"))[0])
    assert merged(client, view.take_changes(1)) == view.snapshot()


def test_who_joins_between_frames_learns_that_the_summary_went_back():
    view = ClassView()
    active = {"status": "active", "cell_executions": 0, "error_count": 0}
    view.put("ana", active)
    view.take_changes(1)
    view.put("ana", active | {"status": "help"})
    client = copied(view.snapshot())
    view.put("ana", active)
    assert merged(client, view.take_changes(1)) == view.snapshot()


def test_a_frame_is_due_only_when_something_changed():
    view = ClassView()
    seen = {"status": "active", "cell_executions": 0, "error_count": 0}
    assert not view.dirty
    view.put("ana", seen)
    assert view.dirty
    view.take_changes(1)
    view.put("ana", dict(seen))
    assert not view.dirty
    view.remove("ben")
    assert not view.dirty
    view.remove("ana")
    assert view.take_changes(1)["users"] == {"ana": None}


def test_a_frame_tells_the_summary_only_where_it_changed():
    view = ClassView()
    view.put("ana", {"status": "active", "cell_executions": 0, "error_count": 0})
    view.take_changes(1)
    view.put("ana", {"status": "active", "cell_executions": 1, "error_count": 0})
    assert view.take_changes(1) == {
        "users": {"ana": {"cell_executions": 1}},
        "summary": {"cell_executions": 1},
    }


def test_who_was_away_for_too_many_retirements_needs_a_snapshot():
    view = ClassView()
    seen = {"status": "active", "cell_executions": 0, "error_count": 0}
    for number in range(MAX_GONE + 1):
        view.put(f"u{number}", seen)
    view.take_changes(1)
    assert view.floor == 0
    for number in range(MAX_GONE + 1):
        view.remove(f"u{number}")
    view.take_changes(2)
    assert view.floor == 2
    assert view.since(2)["users"] == {}


values = st.one_of(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=2))
objects = st.dictionaries(st.sampled_from(ODD_IDS[:4]), values)


@given(many(st.tuples(objects, st.booleans()), 10))
def test_a_document_tells_what_changed_since_any_frame(taken):
    document = Document()
    had = [(0, {})]
    for frame, (new, looked) in enumerate(taken, 1):
        document.put(new)
        if looked:
            changes = document.take_changes(frame)
            assert merged(had[-1][1], changes) == new
            had.append((frame, new))
    document.take_changes(len(taken) + 1)
    for frame, old in had:
        assert merged(old, document.since(frame)) == document.snapshot()
