"""Counters against what was acknowledged."""

import msgspec
import pytest
import trio

from loadtest import verification
from loadtest.check import TOLD, Check
from loadtest.counters import compare, may_be
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry
from loadtest.target import Target
from loadtest.users import Person
from tests.loadtest.peer import answer, serving


def events(*states, failed=()):
    return [
        Entry(f"e{number}", 0, number, True, number in failed, "", "s", state) for number, state in enumerate(states)
    ]


def compared(given, executions, errors=0, *, known=True):
    check = Check("sessions", 0, 0)
    compare(given, executions, errors, check, known=known)
    return check


def test_all_is_there():
    assert compared(events(ACKNOWLEDGED, ACKNOWLEDGED), 2).held


@pytest.mark.parametrize("executions", [1, 2])
def test_a_doubtful_one_may_be_there_or_not(executions):
    assert compared(events(ACKNOWLEDGED, UNKNOWN), executions).held


@pytest.mark.parametrize("executions", [0, 3])
def test_too_few_and_too_many_are_faults(executions):
    check = compared(events(ACKNOWLEDGED, UNKNOWN), executions)
    assert not check.held
    assert check.candidates == ["e0"]


def test_a_refused_one_must_not_be_there():
    assert not compared(events(ACKNOWLEDGED, REFUSED), 2).held


def test_where_there_is_too_much_the_refused_are_named_first():
    given = events(ACKNOWLEDGED, REFUSED, ACKNOWLEDGED, REFUSED, failed={2, 3})
    assert compared(given, 3, 1).candidates == ["e1", "e3"]
    assert compared(given, 2, 2).candidates == ["e3"]


def health(**parts):
    """As the daemon tells it; a number is a store's lag."""
    checks = {
        name: {"status": "healthy", "lag_events": part} if isinstance(part, int) else {"status": part}
        for name, part in parts.items()
    }
    return msgspec.json.encode({"status": "healthy", "checks": checks})


async def test_all_is_stored_when_the_slowest_store_has_it():
    told = [
        health(postgresql=3, influxdb=9),
        health(postgresql=0, influxdb=5),
        b"not now",
        health(journal="healthy"),
        health(journal="healthy", postgresql=0, influxdb=0),
    ]

    left = iter(told)

    async def script(number, head, body):
        return answer(200, next(left)) if b"/health" in head else answer(404, b"")

    async with serving(script) as peer:
        assert await verification.drained(Target(peer.url), 10) is not None
    assert not [*left]


def counters(accepted, *lags):
    """Ten times as many are rejected, which nobody stores."""
    rejected = accepted if accepted == "NaN" else 10 * accepted
    lines = [f'classpulse_events_total{{result="accepted"}} {accepted}']
    lines += [f'classpulse_events_total{{result="rejected"}} {rejected}']
    lines += [f'classpulse_store_lag_events{{store="{number}"}} {lag}' for number, lag in enumerate(lags)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("told", "looks"),
    [
        # Others post all the time, and the lag is never 0: more is stored than there was at first.
        ([counters(100, 30, 0), counters(120, 30, 2), counters(150, 55, 3), counters(160, 60, 60)], 4),
        # A daemon that was killed counts from 0 again, and does not seem to have more than it has.
        ([counters(100, 30), counters(10, 5), counters(90, 5), counters(105, 5)], 4),
        ([b"", b"classpulse_store_lag_events NaN", counters("NaN", 0)], None),
    ],
)
async def test_what_there_was_is_stored_though_there_is_always_more(told, looks):
    asked = []

    async def script(number, head, body):
        if b"/health" in head:
            return answer(200, health(postgresql=5))
        asked.append(head)
        return answer(200, told[min(len(asked), len(told)) - 1])

    async with serving(script) as peer:
        drain_s = await verification.drained(Target(peer.url), 1.0)
    assert (drain_s is None) == (looks is None)
    assert looks in (None, len(asked))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sessions", {"sessions": [None]}),
        ("/sessions", {"sessions": [{"cell_executions": "many", "error_count": 0}]}),
        ("/sessions", []),
        ("/overview", {"state": {"users": {"user0": {"cell_executions": "many"}}, "summary": {}}}),
        ("/overview", {"state": {"users": [], "summary": {}}}),
        ("/overview", {}),
    ],
)
async def test_an_answer_of_no_known_shape_is_a_fault_and_ends_nothing(path, body):
    async def script(number, head, _):
        wrong = path.encode() in head
        whole = {"sessions": [], "state": {"users": {}, "summary": {}}}
        return answer(200, msgspec.json.encode(body if wrong else whole))

    given = [Entry("e0", 0, 0, True, False, "", "s", UNKNOWN)]
    async with serving(script) as peer:
        checks = await verification.by_api(
            Target(peer.url), given, lambda user: Person(user, "class", f"user{user}", "", ""), fresh=True
        )
    (faulty,) = [check for check in checks if check.faults]
    assert faulty.name.startswith("counted in sessions" if path == "/sessions" else "counted in the live")
    assert faulty.note


@pytest.mark.parametrize(
    ("told", "elsewhere"),
    [
        (health(postgresql=0, influxdb=0), True),
        (health(postgresql=0, influxdb="unhealthy"), True),
        (health(postgresql=0, influxdb="not_configured"), False),
        (health(postgresql=0), False),
        (b"{}", False),
    ],
)
async def test_health_says_whether_cell_events_are_in_influxdb(told, elsewhere):
    async def script(number, head, body):
        return answer(503, told)

    async with serving(script) as peer:
        assert await verification.cells_elsewhere(Target(peer.url)) == elsewhere


async def test_a_daemon_that_says_nothing_is_not_asked_class_after_class(monkeypatch):
    monkeypatch.setattr(verification, "_API_S", 0.3)
    monkeypatch.setattr("loadtest.transports.PATIENCE_S", 2.0)

    async def script(number, head, body):
        await trio.sleep_forever()

    given = [Entry(f"e{user}", user, user, True, False, "", "s", ACKNOWLEDGED) for user in range(12)]
    async with serving(script) as peer:
        with trio.fail_after(10):
            checks = await verification.by_api(
                Target(peer.url), given, lambda user: Person(user, f"class{user}", f"user{user}", "", ""), fresh=True
            )
    assert not any(check.held for check in checks)
    assert all(check.note.startswith("not all were told within") for check in checks)


def test_a_missing_error_names_the_failed_runs_only():
    check = compared(events(*[ACKNOWLEDGED] * 5, failed={1, 3}), 4, 1)
    assert check.candidates == ["e1", "e3"]
    assert check.faults == 1


def test_each_student_whose_counters_differ_is_a_fault_of_its_own():
    check = Check("sessions", 0, 0)
    for user in range(5):
        given = [Entry(f"e{user}-{n}", user, n, True, n == 0, "", "s", ACKNOWLEDGED) for n in range(30)]
        compare(given, 30, 0, check, known=True)
        assert (check.faults, check.astray, check.suspects) == (user + 1,) * 3
        assert f"e{user}-0" in check.candidates
    compare(given, 29, 1, check, known=True)
    assert (check.faults, check.astray, check.suspects, check.more_suspects) == (6, 6, 35, 35 - TOLD)
    assert {event.event_id for event in given} <= set(check.candidates), "any of them may be the one"


@pytest.mark.parametrize(
    ("executions", "errors", "faults"),
    [(4, 1, 0), (5, 2, 0), (3, 1, 1), (2, 1, 2), (6, 2, 1), (4, 0, 1), (4, 4, 2), (3, 0, 1), (2, 0, 2)],
)
def test_a_fault_is_each_event_that_the_counters_cannot_be_of(executions, errors, faults):
    """Four runs, one of them failed, and one that failed and may have been taken."""
    given = events(*[ACKNOWLEDGED] * 4, UNKNOWN, failed={3, 4})
    assert compared(given, executions, errors).faults == faults


@pytest.mark.parametrize(
    ("states", "there", "expected"),
    [
        ([ACKNOWLEDGED], True, True),
        ([ACKNOWLEDGED], False, False),
        ([UNKNOWN], True, True),
        ([UNKNOWN, REFUSED], False, True),
        ([REFUSED], True, False),
        ([REFUSED], False, True),
        ([], True, False),
    ],
)
def test_a_session_is_there_for_what_was_taken_or_may_be(states, there, expected):
    assert may_be(events(*states), there=there) == expected


def test_a_session_that_only_a_refused_event_began_names_it():
    check = compared([Entry("opened", 0, 0, False, False, "", "s", REFUSED)], 0, known=False)
    assert (check.faults, check.candidates) == (1, ["opened"])


def test_a_student_of_whom_nothing_is_known():
    check = compared([Entry("opened", 0, 0, False, False, "", "s", ACKNOWLEDGED)], 0, known=False)
    assert not check.held
    assert check.candidates == ["opened"]
