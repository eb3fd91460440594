"""Rows against what was sent."""

from contextlib import suppress
from functools import partial

import pytest
import trio

from loadtest import columns, rows
from loadtest.columns import NAMES
from loadtest.errors import LoadTestError, UsageError
from loadtest.ledger import ACKNOWLEDGED, UNKNOWN
from loadtest.users import Person
from tests.loadtest.test_verification import events

ANN = Person(0, "a", "ann", "Ann", "")


RUN = {"eventType": "cell_executed", "notebookPath": "a.ipynb", "cellIndex": 3, "executionDurationMs": 5}
FAILED = RUN | {"hasError": True, "errorMessage": "KeyError: 1", "executionCount": 2}
VALUES = ("cell_executed", "a.ipynb", 3, 5.0, True, "KeyError: 1", 2)


def row(event_id, at_ms=0, *, user="ann", class_id="a", **other):
    """As `sent` was posted, but for what is other."""
    return event_id, user, class_id, at_ms, *(other.get(name, value) for name, value in zip(NAMES, VALUES, strict=True))


def sent(*states):
    """Failed runs."""
    given = events(*states, failed=range(len(states)))
    for entry in given:
        entry.columns = columns.of_fields(FAILED)
    return given


async def told(monkeypatch, given, stored, **how):
    """Of the rows of events."""
    *of_events, _ = await all_told(monkeypatch, given, stored, [], **how)
    return of_events


async def all_told(monkeypatch, given, stored, counted, **how):
    """`counted`: user, executions and errors of their sessions."""

    async def tell(dsn, questions, look):
        for each in counted if "learning_sessions" in questions[0][0] else stored:
            look(each)

    monkeypatch.setattr(rows, "_rows", tell)
    return await rows.by_sql("", given, lambda user: ANN, ["a"], **{"fresh": True} | how)


async def test_what_is_not_there_yet_is_not_lost_where_nobody_waited_for_it(monkeypatch):
    given = sent(ACKNOWLEDGED, ACKNOWLEDGED, ACKNOWLEDGED)
    stored, once, as_sent = await told(monkeypatch, given, [row("e1", 2), row("other")], settled=False)
    assert (stored.skipped, stored.expected, stored.found) == (True, 3, 1)
    assert stored.held
    assert stored.note == "2 not yet there, and not waited for"
    assert (once.event_ids, as_sent.event_ids) == (["other"], ["e1"])
    stored, _, _ = await told(monkeypatch, given, [row("e0"), row("e1", 1), row("e2", 2)], settled=False)
    assert (stored.skipped, stored.note, stored.found) == (False, "", 3)
    stored, _, _ = await told(monkeypatch, given, [row("e1", 1)])
    assert (stored.skipped, stored.event_ids) == (False, ["e0", "e2"])


async def test_cell_events_that_are_in_influxdb_need_no_row(monkeypatch):
    given = sent(*[ACKNOWLEDGED] * 4)
    given[1].execution = False  # an `execution_error`
    for entry in given[2:]:
        entry.execution = entry.failed = False
    stored, _, _ = await told(monkeypatch, given, [row("e3", 3)], cells=False)
    assert (stored.name, stored.expected, stored.found, stored.event_ids) == (rows.STORED_BUT_CELLS, 2, 1, ["e2"])
    assert stored.note == "cell events are in InfluxDB, which is not asked"
    stored, _, _ = await told(monkeypatch, given, [row("e3", 3)], cells=False, settled=False)
    assert (stored.skipped, stored.faults) == (True, 0)
    assert stored.note == "1 not yet there, and not waited for; cell events are in InfluxDB, which is not asked"


async def test_rows_of_events_that_nobody_sent_are_faults_where_the_class_is_the_runs_own(monkeypatch):
    given = sent(ACKNOWLEDGED, ACKNOWLEDGED)
    stored = [row("e0"), row("e1", 1), row("other"), row("other")]
    _, once, as_sent = await told(monkeypatch, given, stored)
    assert once.event_ids == ["other"]
    assert (as_sent.expected, as_sent.found, as_sent.held) == (2, 2, True)
    _, once, _ = await told(monkeypatch, given, stored, fresh=False)
    assert once.held  # somebody else's, who may send what they want
    _, once, _ = await told(monkeypatch, given, [row("e0"), row("e0"), row("e1", 1)], fresh=False)
    assert once.event_ids == ["e0"]


@pytest.mark.parametrize(
    ("counted", "faults", "candidates"),
    [
        ([("ann", 2, 1)], 0, []),
        ([("ann", 3, 2), ("bob", 9, 9)], 0, []),  # the doubtful one was taken; bob is somebody else's
        ([("ann", 1, 1)], 1, ["e0", "e1"]),
        ([("ann", 2, 0)], 1, ["e1"]),
        ([], 2, ["e1"]),
    ],
)
async def test_sessions_that_do_not_count_what_was_acknowledged_are_faults(monkeypatch, counted, faults, candidates):
    given = events(ACKNOWLEDGED, ACKNOWLEDGED, UNKNOWN, failed={1, 2})
    *_, sessions = await all_told(monkeypatch, given, [], counted)
    assert (sessions.name, sessions.faults) == ("counted in sessions, by SQL", faults)
    assert sessions.candidates == candidates
    *_, sessions = await all_told(monkeypatch, given, [], [], settled=False)
    assert (sessions.skipped, sessions.faults) == (True, 0)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (row("e1", 1, user="bob"), "user"),
        (row("e1", 1, class_id="b"), "class"),
        (row("e1", 2), "time"),
        (row("e1", 1, type="execution_error"), "type"),
        (row("e1", 1, notebook="b.ipynb"), "notebook"),
        (row("e1", 1, cell=2), "cell"),
        (row("e1", 1, duration=5.5), "duration"),
        (row("e1", 1, duration=None), "duration"),
        (row("e1", 1, error=None), "error"),
        (row("e1", 1, message="KeyError: 2"), "message"),
        (row("e1", 1, count=None), "count"),
        (row("e1", 7, user="bob", cell=4, type="seen"), "cell, count, duration, error, message, time, type, user"),
    ],
)
async def test_a_row_that_is_not_as_the_event_was_sent_is_a_fault(monkeypatch, other, what):
    stored, once, as_sent = await told(monkeypatch, sent(ACKNOWLEDGED, ACKNOWLEDGED), [row("e0"), other])
    assert stored.held
    assert once.held
    assert as_sent.event_ids == ["e1"]
    assert (as_sent.expected, as_sent.found) == (2, 1)
    assert as_sent.note == f"differ in {what}"


@pytest.mark.parametrize(
    ("dsn", "no_dsn"),
    [
        ("postgresql://u:s3cret@127.0.0.1:{port}/x", False),
        ("postgresql://u:s3cret@127.0.0.1:99999/x", False),
        ("postgresql://u:s3cret@127.0.0.1:abc/x", True),
        ("postgresql://[::1", True),
        ("postgresql://127.0.0.1:{port}/x?sslmode=bogus", True),
        ("foo", True),
    ],
)
async def test_a_database_that_cannot_be_asked_is_told_in_a_line(dsn, no_dsn, unused_port):
    """Before the load, where it can still be mended; after it, as an account that is not held."""
    dsn = dsn.format(port=unused_port)
    with pytest.raises(LoadTestError, match="cannot ask for rows") as told:
        await rows.can_ask(dsn)
    assert isinstance(told.value, UsageError) == no_dsn
    assert "\n" not in str(told.value)
    assert "s3cret" not in str(told.value)
    (check,) = await rows.by_sql(dsn, events(ACKNOWLEDGED), lambda user: ANN, ["a"], fresh=True)
    assert not check.held
    assert check.note.startswith("cannot ask: ")


def message(kind, payload):
    return kind + (len(payload) + 4).to_bytes(4, "big") + payload


async def silent_database(stream):
    """Lets in whoever comes, and says nothing any more."""
    with suppress(trio.BrokenResourceError):
        await stream.receive_some()  # whether there is TLS
        await stream.send_all(b"N")
        await stream.receive_some()
        version = message(b"S", b"server_version\x0018.0\0")
        await stream.send_all(message(b"R", bytes(4)) + version + message(b"Z", b"I"))
        while await stream.receive_some():
            pass


async def test_a_database_that_says_nothing_is_given_up(monkeypatch, nursery):
    monkeypatch.setattr(rows, "_SQL_S", 0.3)
    (listener,) = await nursery.start(partial(trio.serve_tcp, silent_database, 0, host="127.0.0.1"))
    dsn = f"postgresql://u:p@127.0.0.1:{listener.socket.getsockname()[1]}/x"
    with trio.fail_after(10), pytest.raises(LoadTestError, match="no answer within"):
        await rows.can_ask(dsn)
    nursery.cancel_scope.cancel()
