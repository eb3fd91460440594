"""A notebook's summary: kept up by differences, it equals one made at once."""

import statistics

from hypothesis import given
from hypothesis import strategies as st

from engine.notebook import NotebookView
from engine.session import UserState, merge
from tests.adapters.events import NOW, run
from tests.engine.strategies import IDLE_MS, event_lists

USERS = ("ana", "ben", "cid")


def states(events):
    made = {user: UserState(class_id="default", user_id=user) for user in USERS}
    for event in events:
        made[event.user_id].apply(event, event.time, IDLE_MS)
    return made


@given(event_lists(users=USERS, max_size=40), st.sets(st.sampled_from(USERS)))
def test_a_summary_kept_up_equals_one_made_at_once(events, retired):
    kept = NotebookView()
    live = states(())
    for event in events:
        live[event.user_id].apply(event, event.time, IDLE_MS)
        kept.put(event.user_id, live[event.user_id].notebooks.get("n1"))
    at_once = NotebookView()
    for user, state in live.items():
        if user in retired:
            kept.put(user, None)
        else:
            at_once.put(user, state.notebooks.get("n1"))
    assert kept.summary(5) == at_once.summary(5)
    present = [event for event in events if event.user_id not in retired and event.notebook_path == "n1"]
    runs = [event for event in present if event.event_type in {"cell_executed", "execution_error"}]
    for cell in kept.summary(5)["cells"]:
        mine = [event for event in runs if event.cell_index == cell["cell_index"]]
        assert cell["students"] == len({event.user_id for event in mine})
        assert cell["executions"] == sum(event.event_type == "cell_executed" for event in mine)
        assert cell["errors"] == sum(event.failed for event in mine)
    assert kept.summary(5)["total_students"] == len({event.user_id for event in runs})


@given(st.lists(st.tuples(st.sampled_from(USERS), st.integers(0, 9)), max_size=12))
def test_the_median_is_over_each_students_last_run(runs):
    view = NotebookView()
    live = states(())
    last = {}
    for number, (user, duration) in enumerate(runs):
        last[user] = float(duration)
        live[user].apply(run(user, time=NOW + number, execution_duration_ms=float(duration)), NOW, IDLE_MS)
        view.put(user, live[user].notebooks["a.ipynb"])
    expected = [statistics.median(last.values())] if last else []
    assert [cell["median_duration_ms"] for cell in view.summary(1)["cells"]] == expected


def test_runs_count_once_whichever_state_saw_them():
    seen = [run(time=NOW + 2, has_error=True), run(time=NOW + 1, execution_duration_ms=5.0)]
    parts = [UserState(class_id="default", user_id="ann") for _ in seen]
    for part, event in zip(parts, seen, strict=True):
        part.apply(event, NOW, IDLE_MS)
    (result,) = merge(*parts, IDLE_MS).notebooks["a.ipynb"].results.values()
    assert (result.ok, result.executions, result.errors) == (False, 2, 1)
