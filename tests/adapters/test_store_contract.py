"""`engine.ports.Store` and `SessionQueries`: one suite for PostgreSQL, a real one, and the twin in memory."""

from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest

from adapters.asyncio_bridge import open_loop
from engine.cohort import NotebookTotals
from engine.errors import StoreDataError, StoreUnavailableError
from engine.event import Order
from engine.latest import Latest
from engine.ports import DeadLetter, StoredOffsets
from engine.session import UserState
from tests.adapters.events import DAY, NOW, event, run
from tests.adapters.flushes import Feed, Memory, Postgres, Student


@pytest.fixture(params=["postgres", "memory"])
def chosen(request):
    return Memory() if request.param == "memory" else Postgres(request.getfixturevalue("database"))


@pytest.fixture
async def harness(chosen):
    async with open_loop():
        await chosen.store.open()
        yield chosen
        await chosen.close()


@pytest.fixture
def store(harness):
    return harness.store


@pytest.fixture
def feed():
    return Feed()


async def test_it_is_empty_at_first_and_answers(store, feed):
    await store.ping()
    await store.open()
    assert await store.offsets(feed.journal_id) == StoredOffsets(0, 0)
    assert await store.snapshots([("default", "ann")]) == []
    assert await store.snapshots([]) == []
    assert await store.recent_snapshots(0) == []
    assert await store.notebooks() == []


async def test_a_write_before_open_is_refused_as_unavailable(chosen, feed):
    with pytest.raises(StoreUnavailableError):
        await chosen.store.write(feed.flush(event()))


async def test_rows_and_offset_move_together(store, harness, feed):
    await store.write(feed.flush(event(), run()))
    assert await store.offsets(feed.journal_id) == StoredOffsets(2, 0)
    await store.write(feed.flush(run(), floor=3))
    assert await store.offsets(feed.journal_id) == StoredOffsets(3, 3)
    assert await harness.seqs() == [1, 2, 3]


async def test_offsets_are_kept_apart_by_journal(store, harness, feed):
    other = Feed()
    await store.write(feed.flush(run(), run()))
    await store.write(other.flush(run(event_id="same time, same seq, another journal")))
    assert await store.offsets(feed.journal_id) == StoredOffsets(2, 0)
    assert await store.offsets(other.journal_id) == StoredOffsets(1, 0)
    assert await store.offsets(uuid4()) == StoredOffsets(0, 0)
    assert await harness.seqs() == [1, 1, 2]


async def test_a_flush_of_states_alone_leaves_the_rows_offset(store, feed):
    await store.write(feed.flush(run()))
    await store.write(feed.flush(snapshots=[Student().apply(run()).snapshot()], floor=1))
    await store.write(feed.flush(snapshots=[Student("bob").apply(run("bob")).snapshot()], floor=1))
    assert await store.offsets(feed.journal_id) == StoredOffsets(1, 1)
    assert len(await store.recent_snapshots(0)) == 2


async def test_offsets_of_stores_that_cannot_keep_theirs(store, feed):
    await store.write(feed.flush(run(), offsets={"influxdb": 0}))
    await store.write(feed.flush(run(), offsets={"influxdb": 1, "other": 7}))
    await store.write(feed.flush(run()))
    assert await store.offsets(feed.journal_id) == StoredOffsets(3, 0, {"influxdb": 1, "other": 7})
    await store.write(feed.flush(offsets={"influxdb": 3, "other": None}))
    assert await store.offsets(feed.journal_id) == StoredOffsets(3, 0, {"influxdb": 3})
    assert await store.offsets(uuid4()) == StoredOffsets(0, 0)


@pytest.mark.parametrize("kind", ["postgres", "memory"])
async def test_cell_events_pass_by_one_that_does_not_hold_series(kind, request, feed):
    chosen = (
        Memory(holds_series=False)
        if kind == "memory"
        else Postgres(request.getfixturevalue("database"), holds_series=False)
    )
    async with open_loop():
        await chosen.store.open()
        await chosen.store.write(feed.flush(event(), run(), run(event_type="execution_error"), event()))
        await chosen.store.write(feed.flush(run()))
        assert await chosen.seqs() == [1, 4]
        assert await chosen.store.offsets(feed.journal_id) == StoredOffsets(5, 0)
        await chosen.close()


async def test_the_same_rows_again_are_refused_and_nothing_is_doubled(store, harness, feed):
    student = Student().apply(run())
    flush = feed.flush(run(), run(), snapshots=[student.snapshot()])
    await store.write(flush)
    with pytest.raises(StoreUnavailableError):
        await store.write(flush)
    await store.open()
    assert await store.offsets(feed.journal_id) == StoredOffsets(2, 0)
    assert await harness.seqs() == [1, 2]
    await store.write(feed.flush(run()))
    assert await harness.seqs() == [1, 2, 3]


async def test_a_flush_is_all_or_nothing(store, harness, feed):
    """The second flush brings a row that is there already, beside everything else that a flush can hold."""
    first = run(user_name="before")
    await store.write(feed.flush(first, snapshots=[Student().apply(first).snapshot()]))
    feed.seq = 0
    commit = feed.commit(first)
    failing = feed.flush(run(), event())
    failing.commits.insert(0, commit.pack())
    failing.snapshots.append(Student().apply(run(), run()).snapshot())
    failing.snapshots.append(Student("bob").apply(run("bob", notebook_path="b.ipynb")).snapshot())
    failing.notebooks.append(("default", "c.ipynb", NotebookTotals(5)))
    failing.dead_letters.append(DeadLetter(3, event(), "KeyError", "x:1"))
    with pytest.raises(StoreDataError):
        await store.write(failing)
    assert await store.offsets(feed.journal_id) == StoredOffsets(1, 0)
    assert await harness.seqs() == [1]
    assert [state.executions for state in await store.recent_snapshots(0)] == [1]
    assert [path for _, path, _ in await store.notebooks()] == ["a.ipynb"]
    assert await harness.dead_letters() == []
    assert len(await harness.queries.user_sessions("ann", "default", None, 10, None)) == 1
    assert await harness.queries.user_sessions("bob", "default", None, 10, None) == []


# --- states


async def test_a_state_comes_back_as_it_went(store, feed):
    student = Student("ann@école.fr", "7b").apply(
        run(
            "ann@école.fr",
            class_id="7b",
            user_name="Ann \U0001f600",
            team="reds",
            has_error=True,
            error_message="E: no",
        ),
        event("ann@école.fr", class_id="7b", event_type="help_requested"),
        run("ann@école.fr", class_id="7b", notebook_path="quo'te\\.ipynb", session_id=None, total_cells=12),
        event("ann@école.fr", class_id="7b", event_type="session_end"),
    )
    await store.write(feed.flush(snapshots=[student.snapshot(7, feed.journal_id)]))
    (state,) = await store.snapshots([("7b", "ann@école.fr"), ("7b", "nobody"), ("default", "ann@école.fr")])
    assert state == student.state
    assert state.position(feed.journal_id.hex) == 7


async def test_the_latest_state_holds(store, feed):
    student = Student()
    for _ in range(3):
        student.apply(run())
        await store.write(feed.flush(snapshots=[student.snapshot()]))
    (state,) = await store.snapshots([("default", "ann")])
    assert state.executions == 3


async def test_a_state_that_was_read_is_the_readers_own(store, feed):
    await store.write(feed.flush(snapshots=[Student().apply(run()).snapshot()]))
    (state,) = await store.snapshots([("default", "ann")])
    state.executions = 99
    (again,) = await store.snapshots([("default", "ann")])
    assert again.executions == 1


async def test_recent_states_are_those_received_since(store, feed):
    for days, user_id in enumerate(("today", "yesterday", "before")):
        student = Student(user_id).apply(run(user_id), received_at=NOW - days * DAY)
        await store.write(feed.flush(snapshots=[student.snapshot()]))
    assert {state.user_id for state in await store.recent_snapshots(NOW - DAY)} == {"today", "yesterday"}
    assert [state.user_id for state in await store.recent_snapshots(NOW)] == ["today"]
    assert await store.recent_snapshots(NOW + 1) == []


async def test_a_student_has_a_state_in_each_class(store, feed):
    snapshots = [Student(class_id=name).apply(run(class_id=name)).snapshot() for name in ("a", "b")]
    await store.write(feed.flush(snapshots=snapshots))
    assert [state.class_id for state in await store.snapshots([("b", "ann")])] == ["b"]


async def test_a_state_without_any_event_can_be_stored(store, feed):
    student = Student()
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    assert await store.snapshots([("default", "ann")]) == [UserState(class_id="default", user_id="ann")]


# --- notebooks


async def test_totals_come_back_and_the_latest_hold(store, feed):
    given = NotebookTotals(4, Latest(Order(NOW, "e1"), 12))
    await store.write(feed.flush(notebooks=[("default", "a.ipynb", NotebookTotals(2)), ("b", "a.ipynb", given)]))
    await store.write(feed.flush(notebooks=[("default", "a.ipynb", NotebookTotals(7))]))
    assert {(class_id, path): totals for class_id, path, totals in await store.notebooks()} == {
        ("default", "a.ipynb"): NotebookTotals(7),
        ("b", "a.ipynb"): given,
    }


async def test_a_session_in_a_notebook_does_not_undo_its_totals(store, feed):
    totals = NotebookTotals(-1, Latest(Order(NOW, "e1"), 12))  # opened, and nothing was run in it
    await store.write(feed.flush(notebooks=[("default", "a.ipynb", totals)]))
    await store.close()
    await store.open()
    student = Student().apply(event(event_type="notebook_opened", notebook_path="a.ipynb", session_id="s1"))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    assert await store.notebooks() == [("default", "a.ipynb", totals)]


async def test_a_session_makes_its_notebook_known(store, feed):
    await store.write(feed.flush(snapshots=[Student().apply(run(cell_index=3)).snapshot()]))
    assert await store.notebooks() == [("default", "a.ipynb", NotebookTotals())]
    await store.write(feed.flush(notebooks=[("default", "a.ipynb", NotebookTotals(3))]))
    assert await store.notebooks() == [("default", "a.ipynb", NotebookTotals(3))]


# --- sessions


async def sessions_of(harness, user_id="ann", **wanted):
    given = {"class_id": "default", "notebook": None, "limit": 10, "before": None, **wanted}
    return await harness.queries.user_sessions(user_id, **given)


async def test_sessions_are_stored_as_they_are_and_rewritten_in_place(store, harness, feed):
    student = Student().apply(run(time=NOW), run(time=NOW + 5000, has_error=True))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    (row,) = await sessions_of(harness)
    assert (row.notebook_path, row.client_session, row.started_at, row.ended_at) == ("a.ipynb", "s1", NOW, NOW + 5000)
    assert (row.executions, row.errors, row.closed) == (2, 1, False)
    student.apply(event(event_type="notebook_closed", notebook_path="a.ipynb", session_id="s1", time=NOW + 9000))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    (row,) = await sessions_of(harness)
    assert (row.ended_at, row.closed) == (NOW + 9000, True)


@pytest.mark.parametrize("earlier", [60_000, 29 * DAY])
async def test_a_session_that_began_earlier_after_all_moves(store, harness, feed, earlier):
    assert datetime.fromtimestamp((NOW - 29 * DAY) / 1000, UTC).month != datetime.fromtimestamp(NOW / 1000, UTC).month
    student = Student().apply(run())
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    (before,) = await sessions_of(harness)
    student.apply(run(time=NOW - earlier))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    (after,) = await sessions_of(harness)
    assert after.id == before.id
    assert (after.started_at, after.ended_at, after.executions) == (NOW - earlier, NOW, 2)


async def test_nameless_sessions_that_turn_out_to_be_one_leave_one_row(store, harness, feed):
    student = Student().apply(run(session_id=None), run(session_id=None, time=NOW + 3_000_000))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    assert len(await sessions_of(harness)) == 2
    student.apply(run(session_id=None, time=NOW + 1_500_000))
    await store.write(feed.flush(snapshots=[student.snapshot()]))
    (row,) = await sessions_of(harness)
    assert (row.started_at, row.executions) == (NOW, 3)


async def test_sessions_come_newest_first_in_pages_and_by_notebook(store, harness, feed):
    student = Student()
    for day in range(5):
        student.apply(run(time=NOW - day * DAY, session_id=f"s{day}", notebook_path=f"{'ab'[day % 2]}.ipynb"))
    student.apply(run(time=NOW - DAY, session_id="at the same time"))
    other = Student("bob").apply(run("bob"))
    elsewhere = Student(class_id="other").apply(run(class_id="other"))
    await store.write(feed.flush(snapshots=[student.snapshot(), other.snapshot(), elsewhere.snapshot()]))
    everything = await sessions_of(harness)
    assert len(everything) == 6
    assert [(row.started_at, row.id) for row in everything] == sorted(
        ((row.started_at, row.id) for row in everything), reverse=True
    )
    paged, before = [], None
    while page := await sessions_of(harness, limit=2, before=before):
        paged += page
        before = (page[-1].started_at, page[-1].id)
    assert paged == everything
    assert {row.client_session for row in await sessions_of(harness, notebook="b.ipynb")} == {"s1", "s3"}
    assert await sessions_of(harness, notebook="nowhere.ipynb") == []
    assert await sessions_of(harness, "nobody") == []


# --- dead letters


async def test_dead_letters_are_kept_once(store, harness, feed):
    letter = DeadLetter(1, event(data='{"a": "quo\'te"}'), "KeyError", "engine.session:1")
    await store.write(feed.flush(run(), dead_letters=[letter]))
    await store.write(feed.flush(run(), dead_letters=[letter, DeadLetter(2, run(), "ValueError", "engine.session:2")]))
    assert await harness.dead_letters() == [
        (1, "KeyError", "engine.session:1"),
        (2, "ValueError", "engine.session:2"),
    ]


async def test_sessions_of_a_class_newest_first_page_by_page(store, harness, feed):
    students = [
        Student("ann").apply(run(time=NOW - 3000, user_name="Ann"), run(time=NOW - 1000, session_id="s2")),
        Student("bob").apply(run("bob", time=NOW - 3000), run("bob", time=NOW - DAY, notebook_path="old.ipynb")),
        Student("eve", "other").apply(run("eve", class_id="other")),
    ]
    snapshots = [msgspec.structs.replace(students[0].snapshot(), profile=("Ann", None))]
    snapshots += [student.snapshot() for student in students[1:]]
    await store.write(feed.flush(snapshots=snapshots))
    found, before = [], None
    while page := await harness.queries.class_sessions("default", NOW - 3000, 1, before):
        found += page
        before = (page[0].row.started_at, page[0].row.id)
    assert [(each.user_id, each.user_name, each.row.started_at) for each in found[:1]] == [("ann", "Ann", NOW - 1000)]
    assert {each.user_id for each in found[1:]} == {"ann", "bob"}
    assert found[1].row.id > found[2].row.id
    assert found == await harness.queries.class_sessions("default", NOW - 3000, 10, None)
    assert len(await harness.queries.class_sessions("default", NOW - DAY, 10, None)) == 4
    assert await harness.queries.class_sessions("default", NOW - 999, 10, None) == []
    assert [each.user_id for each in await harness.queries.class_sessions("other", 0, 10, None)] == ["eve"]
