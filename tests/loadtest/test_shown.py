"""What subscribers see at the end, against the overview; and what they were told that nobody sent."""

from collections import Counter

import msgspec
import pytest
import trio

from loadtest import accounts, verification
from loadtest.check import Check
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry
from loadtest.notifications import unfounded
from loadtest.plan import clock
from loadtest.subscribers import Subscriber, _read
from loadtest.target import Target
from loadtest.verification import Shown, by_stream
from loadtest.views import View
from tests.loadtest.peer import answer, serving

ANN, BOB = {"status": "active", "cell_executions": 2}, {"status": "help"}


def following(class_id="a", **state):
    """A subscriber of the class who sees that; nothing said: one who has no snapshot."""
    found = Subscriber(Target("http://127.0.0.1:1"), class_id, {"ann": 0, "bob": 1}, clock(0))
    if state:
        found.view = View("e", 1, {"summary": {}} | state)
    return found


async def shown(monkeypatch, subscribers, *overviews, fresh=True):
    """The daemon tells one overview after the other, the last one again and again; None: it answers 503."""
    monkeypatch.setattr(verification, "_AGREE_S", 0.3)
    monkeypatch.setattr(verification, "_AGREE_POLL_S", 0.01)
    left = list(overviews)

    async def script(number, head, body):
        told = left.pop(0) if len(left) > 1 else left[0]
        return answer(503, b"{}") if told is None else answer(200, msgspec.json.encode({"state": told}))

    async with serving(script) as peer:
        return await by_stream(Target(peer.url), subscribers, fresh=fresh)


def overview(summary=None, **users):
    return {"users": users, "summary": summary or {}}


async def test_views_that_are_as_the_overview_are(monkeypatch):
    subscribers = [following(users={"ann": ANN, "bob": BOB}), following(users={"ann": ANN, "bob": BOB})]
    check, students = await shown(monkeypatch, subscribers, overview(ann=ANN, bob=BOB))
    assert (check.held, check.expected, check.found, students) == (True, 4, 4, set())


async def test_what_is_on_its_way_is_waited_for(monkeypatch):
    subscribers = [following(users={"ann": ANN}), following(users={"ann": ANN, "bob": BOB})]
    first = overview(ann=ANN | {"cell_executions": 1})
    check, _ = await shown(monkeypatch, subscribers, None, first, overview(ann=ANN), overview(ann=ANN, bob=BOB))
    assert check.held, "each agreed once, though not at the same moment"


@pytest.mark.parametrize(
    ("users", "faults", "students", "note"),
    [
        ({"ann": ANN | {"status": "stuck"}, "bob": BOB}, 1, {"ann"}, "differ in status"),
        (
            {"ann": {"status": "active"}, "bob": {"status": "idle"}},
            2,
            {"ann", "bob"},
            "differ in cell_executions, status",
        ),
        ({"ann": ANN, "bob": BOB | {"help_since": "t"}}, 1, {"bob"}, "differ in help_since"),
        ({"ann": ANN}, 1, {"bob"}, "differ in who is there"),
        ({"ann": ANN, "bob": BOB, "cem": BOB}, 1, {"cem"}, "differ in who is there"),
    ],
)
async def test_a_view_that_is_otherwise_is_a_fault(monkeypatch, users, faults, students, note):
    subscribers = [following(users={"ann": ANN, "bob": BOB}), following(users=users)]
    check, found = await shown(monkeypatch, subscribers, overview(ann=ANN, bob=BOB))
    assert (check.faults, check.astray, check.expected - check.found) == (faults, faults, faults)
    assert (found, check.note) == (students, note)


async def test_a_summary_that_is_otherwise_is_a_fault(monkeypatch):
    subscribers = [following(users={"ann": ANN}, summary={"active": 2})]
    check, students = await shown(monkeypatch, subscribers, overview({"active": 1}, ann=ANN))
    assert (check.faults, students, check.note) == (1, set(), "differ in summary")


async def test_of_a_class_of_others_only_the_runs_own_students_are_compared(monkeypatch):
    theirs = {"cem": BOB}
    subscribers = [following(users={"ann": ANN, "cem": ANN}, summary={"active": 2})]
    check, _ = await shown(monkeypatch, subscribers, overview(ann=ANN, **theirs), fresh=False)
    assert (check.held, check.expected) == (True, 1)
    check, students = await shown(monkeypatch, subscribers, overview(ann=BOB, **theirs), fresh=False)
    assert (check.faults, students) == (1, {"ann"})


async def test_who_has_no_snapshot_sees_nothing(monkeypatch):
    check, students = await shown(monkeypatch, [following()], overview(ann=ANN, bob=BOB))
    assert (check.faults, students, check.note) == (
        3,
        {"ann", "bob"},
        "differ in everything: no snapshot, who is there",
    )
    check, _ = await shown(monkeypatch, [following()], overview())
    assert check.faults == 1
    check, students = await shown(monkeypatch, [following()], overview(ann=ANN, cem=BOB), fresh=False)
    assert (check.faults, students) == (2, {"ann"}), "others are not this run's"


async def test_only_what_differs_at_every_look_is_a_fault(monkeypatch):
    """Students who change by time alone are never all the same at one moment: one is, the other, and both at none."""
    idle = ANN | {"status": "idle"}
    subscribers = [following(users={"ann": ANN, "bob": ANN})]
    first, second = overview(ann=idle, bob=ANN), overview(ann=ANN, bob=idle)
    check, _ = await shown(monkeypatch, subscribers, first, second)
    assert check.held
    check, students = await shown(monkeypatch, subscribers, overview(ann=idle, bob=idle), first)
    assert (check.faults, students) == (1, {"ann"})
    check, _ = await shown(monkeypatch, subscribers, overview({"idle": 1}, ann=idle, bob=ANN), second)
    assert check.held


async def test_many_classes_that_are_told_slowly_are_all_compared(monkeypatch):
    """Together they take longer than views have to agree."""
    monkeypatch.setattr(verification, "_AGREE_S", 0.2)

    async def script(number, head, body):
        await trio.sleep(0.02)
        return answer(200, msgspec.json.encode({"state": overview(ann=ANN)}))

    subscribers = [following(f"class{number}", users={"ann": ANN}) for number in range(200)]
    async with serving(script) as peer:
        check, _ = await by_stream(Target(peer.url), subscribers, fresh=True)
    assert (check.held, check.expected, check.found) == (True, 200, 200)


async def test_a_daemon_that_says_nothing_is_told_so(monkeypatch):
    monkeypatch.setattr(verification, "_API_S", 0.1)
    monkeypatch.setattr(verification, "_AGREE_S", 0.1)

    async def script(number, head, body):
        await trio.sleep_forever()

    async with serving(script) as peer:
        check, _ = await by_stream(Target(peer.url), [following(users={}), following(users={})], fresh=True)
    assert (check.faults, check.note) == (2, "not told in time")


@pytest.mark.parametrize(
    ("told", "note"),
    [(None, "cannot ask: HTTP 503"), ({"users": {}}, "cannot ask: no overview: 'summary' is not in it")],
)
async def test_a_daemon_that_does_not_tell_is_at_fault(monkeypatch, told, note):
    check, _ = await shown(monkeypatch, [following(users={}), following(users={})], told)
    assert (check.faults, check.note) == (2, note)


def entry(name, at_ms, *, user=0, execution=True, failed=False, alert="", state=ACKNOWLEDGED):
    return Entry(name, user, at_ms, execution, failed, alert, "s", state)


SENT = [
    entry("run", 1),
    entry("failed", 2, failed=True, alert="error"),
    entry("call", 3, execution=False, alert="help_requested"),
    entry("call again", 4, execution=False),
    entry("perhaps failed", 5, failed=True, alert="error", state=UNKNOWN),
    entry("refused", 6, failed=True, alert="error", state=REFUSED),
]


@pytest.mark.parametrize(
    ("kind", "at_ms", "name"),
    [
        ("error", 2, None),
        ("stuck", 2, None),
        ("help_requested", 3, None),
        ("help_requested", 4, None),
        ("error", 5, None),
        ("unstuck", 1, None),
        ("error_cluster", 2, None),
        ("error_cluster", 1, "run"),
        ("nonsense", 2, "failed"),
        ("error", 1, "run"),
        ("stuck", 1, "run"),
        ("help_requested", 1, "run"),
        ("help_requested", 2, "failed"),
        ("help_resolved", 3, "call"),
        ("error", 3, "call"),
        ("error", 6, "error of student 0 at 0.006"),
        ("unstuck", 7, "unstuck of student 0 at 0.007"),
    ],
)
def test_an_alert_has_a_reason(kind, at_ms, name):
    listening = following()
    listening.alerts[0, kind, at_ms] = 0.1
    assert unfounded([listening, following()], SENT) == ([] if name is None else [name])


def test_who_never_failed_cannot_be_unstuck():
    listening = following()
    listening.alerts[0, "unstuck", 1] = 0.1
    assert unfounded([listening], SENT[:1]) == ["run"]


def told_frame(kind, seq, **body):
    return msgspec.json.encode({"type": kind, "topic": "class:a", "epoch": "e", "seq": seq} | body)


def test_a_subscriber_notes_what_cannot_be():
    listening = following()
    alert = {"id": "x", "alert": "error", "user_id": "eve", "at": "2026-11-28T00:00:00Z"}
    at = {"last_activity": "2026-11-28T00:00:00Z"}
    stranger = {"dan": {"status": "active"}}
    for frame in (
        told_frame("snapshot", 3, state={"users": {}, "summary": {}}),
        told_frame("alerts", 4, alerts=[alert]),
        told_frame("delta", 7, changes={"users": {"ann": at} | stranger}),
        told_frame("delta", 7, changes={"users": {"bob": at}}),
        msgspec.json.encode({"type": "pong"}),
        told_frame("delta", 8, changes={"users": {"ann": None}}).replace(b"class:a", b"class:b"),
    ):
        listening._take(_read(frame), 1.0)
    assert listening.strangers == {"eve", "dan"}
    assert listening.skipped == 2
    assert listening.misplaced == Counter({"a seq that does not rise": 1, "a frame of another topic": 1})
    assert listening.view == View("e", 7, {"users": {"ann": at, "bob": at} | stranger, "summary": {}})
    check = accounts._nothing_else([listening, following()], [], fresh=True)
    assert (check.faults, check.note) == (
        4,
        "2 users who are no students of the class, 1 times a seq that does not rise, 1 times a frame of another topic",
    )
    assert accounts._nothing_else([listening], [], fresh=False).faults == 2


def test_of_a_student_who_looks_otherwise_the_latest_event_is_told():
    check = Check("views", 2, 1, faults=1)
    sent = [entry("old", 1), entry("new", 2), entry("perhaps", 3, state=UNKNOWN), entry("bob's", 4, user=1)]
    accounts._suspect(Shown(check, {"ann"}), {0: "ann", 1: "bob"}, sent)
    assert (check.candidates, check.suspects) == (["new"], 1)
