"""What a subscriber's page shows, frame by frame."""

from copy import deepcopy

import pytest

from loadtest.views import Step, View, merged


# RFC 7396, appendix A. None in a patch takes away; the vectors that put a null into the result are not ours.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch(target, patch, result):
    before = deepcopy((target, patch))
    assert merged(target, patch) == result
    assert (target, patch) == before


def snapshot(seq=1, epoch="e", **users):
    return Step(epoch, seq, {"users": users, "summary": {"total_students": len(users)}}, snapshot=True)


def delta(seq, epoch="e", **users):
    return Step(epoch, seq, {"users": users}, snapshot=False)


def test_a_view_is_the_snapshot_and_what_came_after_it():
    view = snapshot(ann={"status": "idle", "help_since": "t"}, bob={"status": "idle"}).after(None)
    view = delta(2, ann={"status": "help", "help_since": None}, cem={"status": "active"}).after(view)
    view = Step("e", 3, None, snapshot=False).after(view)  # alerts
    view = delta(4, bob=None).after(view)
    users = {"ann": {"status": "help"}, "cem": {"status": "active"}}
    assert view == View("e", 4, {"users": users, "summary": {"total_students": 2}})
    assert snapshot(7, "f", dan={}).after(view).state["users"] == {"dan": {}}


def test_who_was_sent_the_same_is_at_the_same_view():
    """Of three subscribers one came a frame later; after the next one all are at one view, not at three like it."""
    first = snapshot(ann={"status": "idle"})
    early = [first.after(None), first.after(None)]
    step = delta(2, ann={"status": "help"})
    views = [*(step.after(view) for view in early), snapshot(2, ann={"status": "help"}).after(None)]
    for step in (
        delta(3, bob={"status": "idle"}),
        delta(4, bob={"status": "help"}),
        Step("e", 5, None, snapshot=False),
    ):
        views = [step.after(view) for view in views]
        assert len({id(view) for view in views}) == 1
    assert views[0].state["users"] == {"ann": {"status": "help"}, "bob": {"status": "help"}}


def test_who_missed_a_frame_is_at_a_view_of_its_own():
    views = [snapshot(ann={"status": "idle"}).after(None)] * 2
    views[0] = delta(2, ann={"status": "help"}).after(views[0])
    for _ in range(2):
        step = delta(3, bob={"status": "idle"})
        views = [step.after(view) for view in views]
        assert [view.state["users"]["ann"]["status"] for view in views] == ["help", "idle"]


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (delta(6), None),
        (delta(9), None),  # several made one
        (delta(5), "a seq that does not rise"),
        (delta(4), "a seq that does not rise"),
        (delta(6, "f"), "another epoch without a snapshot"),
        (snapshot(5), None),
        (snapshot(4), "a snapshot older than its stream"),
        (snapshot(1, "f"), None),
    ],
)
def test_frames_that_cannot_come_where_they_came(step, fault):
    assert step.fault(View("e", 5, {})) == fault


def test_the_snapshot_comes_first():
    assert delta(1).fault(None) == "a frame before the snapshot"
    assert snapshot(1).fault(None) is None
