"""The contract's event table and answers, from outside. One daemon; each test has a user of its own."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.e2e import stored
from tests.e2e.api import EVENTS, JSON, Api, ndjson
from tests.e2e.daemon import Daemon
from tests.e2e.postgres_server import free_port
from tests.e2e.recording import parsed
from tests.e2e.samples import activity, new_user, now, run
from tests.e2e.waiting import eventually
from tests.e2e.wire import Connection, request_bytes, send_raw

NDJSON = ("Content-Type", "application/x-ndjson")


async def stored_row(api, database, event):
    """Post one event that must be accepted, and get its row."""
    body = await api.accept(event)
    assert (body["accepted"], body["duplicates"]) == (1, 0), body
    await api.wait_flushed()
    return await stored.row_of(database, body["event_id"])


def files_with(folder: Path, text: str) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if text.encode() in path.read_bytes()]


async def refusal(api, event) -> str:
    """Post one event that must be rejected, and get the reason."""
    answer = await api.post([event, activity(new_user())])
    assert answer.status == 202, answer
    body = answer.json()
    assert body["accepted"] == 1, body
    (rejected,) = body["rejected"]
    assert rejected["index"] == 0
    return rejected["error"]


# Forms of a body


async def test_a_single_event_is_answered_with_its_id(api, shared_database):
    event = run(new_user())
    answer = await api.post(event)
    assert answer.status == 202
    body = answer.json()
    assert body == {"status": "received", "accepted": 1, "duplicates": 0, "event_id": event["event_id"]} | (
        {"rejected": []} if "rejected" in body else {}
    )
    await api.wait_flushed()
    row = await stored.row_of(shared_database, event["event_id"])
    assert row["table"] == "cell_executions"
    assert row["user_id"] == event["user_id"]
    assert row["class_id"] == "default"
    assert row["notebook_path"] == "intro.ipynb"
    assert row["cell_index"] == 0
    assert row["has_error"] is False
    assert parsed(row["event_timestamp"]) == parsed(event["timestamp"])


async def test_an_array_is_taken_in_part(api, shared_database):
    user = new_user()
    good, bad, twin = run(user), {**run(user), "user_id": None}, run(user)
    answer = await api.post([good, bad, twin, twin, 7])
    assert answer.status == 202
    body = answer.json()
    assert (body["accepted"], body["duplicates"]) == (2, 1)
    assert [(each["index"], each.get("event_id")) for each in body["rejected"]] == [(1, bad["event_id"]), (4, None)]
    assert body["rejected"][0]["error"] == "user_id: missing"
    await api.wait_flushed()
    rows = await stored.event_ids(shared_database)
    assert (rows[good["event_id"]], rows[twin["event_id"]], rows[bad["event_id"]]) == (1, 1, 0)


async def test_bad_lines_of_ndjson_are_rejected_by_their_index(api):
    user = new_user()
    body = ndjson([run(user), b'{"event_id": "x", ', b'"text"', run(user)]) + b"\n"
    answer = await api.post(body, [NDJSON])
    assert answer.status == 202
    assert answer.json()["accepted"] == 2
    assert [each["index"] for each in answer.json()["rejected"]] == [1, 2]


async def test_ndjson_without_a_good_line_is_422(api):
    answer = await api.post(b"{\nnope\n", [NDJSON])
    assert answer.status == 422
    assert [each["index"] for each in answer.json()["rejected"]] == [0, 1]


@pytest.mark.parametrize(
    "headers",
    [[], [("Content-Type", "application/json; charset=utf-8")], [("content-type", "Application/JSON")]],
    ids=["none", "charset", "case"],
)
async def test_content_types_of_json(api, headers):
    answer = await api.post(run(new_user()), headers)
    assert answer.status == 202, answer


async def test_a_chunked_body(api):
    event = run(new_user(), user_name="山田 太郎")
    body = json.dumps(event, ensure_ascii=False).encode()
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost:{api.port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = [body[at : at + 37] for at in range(0, len(body), 37)]  # cuts some characters in two
    async with await Connection.open(api.port) as connection:
        await connection.send(head)
        for piece in pieces:
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await connection.send(b"0\r\n\r\n")
        answer = await connection.answer()
        assert answer.status == 202, answer
        assert answer.json()["event_id"] == event["event_id"]
        again = await connection.request("POST", EVENTS, headers=[JSON], body=body)
        assert again.json()["duplicates"] == 1


async def test_pipelined_requests_are_answered_in_order(api):
    user = new_user()
    events = [run(user, event_id=str(uuid4())) for _ in range(5)]
    bodies = [json.dumps(event).encode() for event in events]
    bodies.insert(2, b"not json")
    host = f"127.0.0.1:{api.port}"
    async with await Connection.open(api.port) as connection:
        await connection.send(b"".join(request_bytes("POST", EVENTS, host=host, body=body) for body in bodies))
        answers = [await connection.answer() for _ in bodies]
    assert [answer.status for answer in answers] == [202, 202, 400, 202, 202, 202]
    answered = [answer.json()["event_id"] for answer in answers if answer.status == 202]
    assert answered == [event["event_id"] for event in events]


async def test_requests_share_a_connection_until_one_asks_for_its_end(api):
    async with await Connection.open(api.port) as connection:
        for _ in range(3):
            answer = await connection.request("POST", EVENTS, headers=[JSON], body=json.dumps(run(new_user())).encode())
            assert answer.status == 202
        last = [JSON, ("Connection", "close")]
        answer = await connection.request("POST", EVENTS, headers=last, body=json.dumps(run(new_user())).encode())
        assert answer.status == 202
        assert (answer.header("connection") or "").lower() == "close"
        assert await connection.closed()


async def test_an_http_1_0_client_is_answered_and_let_go(api):
    body = json.dumps(run(new_user())).encode()
    head = f"POST {EVENTS} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with await Connection.open(api.port) as connection:
        await connection.send(head + body)
        assert (await connection.answer()).status == 202
        assert await connection.closed()


async def test_a_request_in_single_bytes(api):
    data = request_bytes("POST", EVENTS, host="localhost", body=json.dumps(run(new_user())).encode())
    async with await Connection.open(api.port) as connection:
        for at in range(len(data)):
            await connection.send(data[at : at + 1])
        assert (await connection.answer()).status == 202


# Fields


SPELLINGS = [
    {"event_id": "event_id", "event_type": "event_type", "timestamp": "timestamp", "user_id": "user_id"},
    {"event_id": "eventId", "event_type": "eventType", "timestamp": "eventTime", "user_id": "userId"},
    {"event_id": "id", "event_type": "event", "timestamp": "event_timestamp", "user_id": "emailAddress"},
    {"event_id": "id", "event_type": "event", "timestamp": "time", "user_id": "userId"},
]


@pytest.mark.parametrize("names", SPELLINGS, ids=lambda names: "-".join(names.values()))
async def test_spellings_of_the_fields_of_every_event(api, shared_database, names):
    event = run(new_user())
    renamed = {names.get(key, key): value for key, value in event.items()}
    row = await stored_row(api, shared_database, renamed)
    assert row["event_id"] == event["event_id"]
    assert row["user_id"] == event["user_id"]
    assert row["event_type"] == "cell_executed"
    assert parsed(row["event_timestamp"]) == parsed(event["timestamp"])


@pytest.mark.parametrize("camel", [False, True], ids=["snake", "camel"])
async def test_spellings_of_the_fields_of_a_cell(api, shared_database, camel):
    user = new_user()
    cell = {
        ("userName" if camel else "display_name"): "Alice",
        ("teamName" if camel else "team"): "blue",
        ("classId" if camel else "class_id"): "algebra",
        ("sessionId" if camel else "session_id"): "tab1",
        ("notebookPath" if camel else "notebook_path"): "a/b c.ipynb",
        ("cellId" if camel else "cell_id"): "c7",
        ("cellIndex" if camel else "cell_index"): 7,
        ("cellType" if camel else "cell_type"): "code",
        ("executionCount" if camel else "execution_count"): 3,
        ("executionDurationMs" if camel else "duration"): 12.5,
        ("hasError" if camel else "has_error"): True,
        ("errorMessage" if camel else "error_message"): "KeyError: 'x: y'",
        ("totalCells" if camel else "total_cells"): 10,
    }
    row = await stored_row(api, shared_database, activity(user, event_type="cell_executed", **cell))
    assert row["class_id"] == "algebra"
    assert row["notebook_path"] == "a/b c.ipynb"
    assert (row["cell_index"], row["execution_count"]) == (7, 3)
    assert float(row["execution_duration_ms"]) == 12.5
    assert row["has_error"] is True
    assert row["error_message"] == "KeyError: 'x: y'"
    live = await api.user(user, "algebra")
    assert (live["user_name"], live["team"]) == ("Alice", "blue")
    assert (live["cell_executions"], live["error_count"], live["status"]) == (1, 1, "error")


@pytest.mark.parametrize(
    ("sent", "kept", "table"),
    [
        ("cell_execution", "cell_executed", "cell_executions"),
        ("execution_error", "execution_error", "cell_executions"),
        ("help", "help_requested", "activity_events"),
        ("help_stop", "help_resolved", "activity_events"),
        ("notebook_saved", "notebook_saved", "activity_events"),
        ("session_start", "session_start", "activity_events"),
        ("my.own_type2", "my.own_type2", "activity_events"),
    ],
)
async def test_event_types_are_stored_canonical(api, shared_database, sent, kept, table):
    row = await stored_row(api, shared_database, activity(new_user(), event_type=sent, notebook_path="n.ipynb"))
    assert (row["event_type"], row["table"]) == (kept, table)


async def test_an_error_event_is_an_error_and_no_execution(api):
    user = new_user()
    await api.accept([run(user), activity(user, event_type="execution_error", notebook_path="n.ipynb", cell_index=1)])
    live = await api.user(user)
    assert (live["cell_executions"], live["error_count"]) == (1, 1)


async def test_fields_are_lifted_from_data(api, shared_database):
    user = new_user()
    event = {
        "event_type": "cell_executed",
        "user_id": user,
        "data": {"notebook_path": "deep.ipynb", "cellIndex": 4, "duration": 3, "hasError": True, "mood": "good"},
    }
    row = await stored_row(api, shared_database, event)
    assert (row["notebook_path"], row["cell_index"], row["has_error"]) == ("deep.ipynb", 4, True)


async def test_lifted_fields_do_not_count_for_the_size_of_data(api):
    long = "x" * 20_000
    await api.accept(run(new_user(), data={"code": long, "mood": "good"}))
    assert (await refusal(api, run(new_user(), data={"mood": long}))).startswith("data: ")


async def test_data_of_an_activity_is_stored(api, shared_database):
    row = await stored_row(api, shared_database, activity(new_user(), data={"mood": "good", "n": [1, None, 2.5]}))
    assert row["data"]["mood"] == "good"
    assert row["data"]["n"] == [1, None, 2.5]


async def test_an_id_is_made_where_there_is_none(api, shared_database):
    event = run(new_user())
    del event["event_id"]
    first, second = await api.accept(event), await api.accept(event)
    assert first["event_id"] != second["event_id"]
    assert UUID(first["event_id"]).version == 7
    assert (second["accepted"], second["duplicates"]) == (1, 0)
    await api.wait_flushed()
    assert (await stored.row_of(shared_database, second["event_id"]))["user_id"] == event["user_id"]


async def test_an_id_is_unique_for_a_user_in_a_class(api):
    event = run(new_user())
    others = [event, {**event, "user_id": new_user()}, {**event, "class_id": "other"}]
    assert [(await api.accept(each))["accepted"] for each in others] == [1, 1, 1]
    for each in others:
        body = await api.accept(each)
        assert (body["accepted"], body["duplicates"]) == (0, 1)
    assert (await api.user(event["user_id"]))["cell_executions"] == 1


async def test_null_means_missing(api, shared_database):
    nothing = dict.fromkeys(("team", "cell_id", "execution_duration_ms", "error_message", "data", "class_id"))
    row = await stored_row(api, shared_database, run(new_user(), **nothing))
    assert row["class_id"] == "default"
    assert row["execution_duration_ms"] is None
    assert await refusal(api, run(new_user(), event_type=None)) == "event_type: missing"
    assert (await refusal(api, run(new_user(), notebook_path=None))).startswith("notebook_path: missing")


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "event_id": ["", "x" * 129, 7, True],
        "event_type": ["", "Bad Type!", "x" * 65, 1],
        "timestamp": ["yesterday", "2026-11-23T10:00:00", True, [], "", "2026-13-01T00:00:00Z"],
        "user_id": ["", "   ", "x" * 255, 42, ["a"]],
        "user_name": ["x" * 201, 1, {}],
        "class_id": ["", "a b", "x" * 65, "é", "a/b", 1],
        "session_id": ["x" * 129, 5],
        "notebook_path": ["", "x" * 501, 1],
        "cell_index": [-1, 1.5, "1", True, 2**31, 2**63, 10**30],
        "cell_type": ["Code", "", 1],
        "execution_count": ["1", 1.5, False, 2**63],
        "execution_duration_ms": [-1, "1", True, 10**400],
        "has_error": ["true", 0, 1, "false"],
        "error_message": [1, False, ["x"]],
        "code": [1, ["x"]],
        "result": [{}, 3],
        "total_cells": ["10", 1.5, 2**63],
        "completed_cells": ["10", 1.5, 2**63],
        "data": [[], "x", 1, {"x": "y" * 17_000}],
        "metadata": [[], "x", 1, {"x": "y" * 17_000}],
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_nothing_is_coerced_and_no_id_is_cut(api, field, values):
    for value in values:
        reason = await refusal(api, run(new_user(), **{field: value}))
        assert reason.startswith(f"{field}: "), (value, reason)


async def test_a_number_beyond_every_double_is_refused(api):
    body = json.dumps([run(new_user(), execution_duration_ms=123456), run(new_user())])
    answer = await api.post(body.replace("123456", "1e999").encode())
    assert answer.status == 202
    assert [each["index"] for each in answer.json()["rejected"]] == [0]


@pytest.mark.parametrize("event_type", ["cell_executed", "execution_error", "notebook_opened", "notebook_closed"])
async def test_cell_and_notebook_events_need_a_notebook(api, event_type):
    reason = await refusal(api, activity(new_user(), event_type=event_type))
    assert reason.startswith("notebook_path: missing")


async def test_a_user_id_is_trimmed_and_an_email_is_lower_cased(api):
    user = new_user()
    await api.accept(run(f"  {user.title()}.É@Example.COM\t"))
    await api.accept(run(f"{user}.É@example.com"))
    assert (await api.user(f"{user}.É@example.com"))["cell_executions"] == 2
    await api.accept(run(f" {user.title()} "))
    assert (await api.user(user.title()))["user_id"] == user.title()  # not an email: its case is its own


async def test_text_that_no_store_holds_is_replaced(api, shared_database):
    user = new_user()
    event = run(user, has_error=True, error_message="a\0b\ud800c", user_name="x\udfffy", notebook_path="p\0.ipynb")
    row = await stored_row(api, shared_database, event)
    assert row["error_message"] == "a\u2400b\ufffdc"
    assert row["notebook_path"] == "p\u2400.ipynb"
    assert (await api.user(user))["user_name"] == "x\ufffdy"
    paired = await stored_row(api, shared_database, run(user, has_error=True, error_message="\U0001f600 \x1b[0m"))
    assert paired["error_message"] == "\U0001f600 \x1b[0m"


async def test_a_long_message_is_cut(api, shared_database):
    row = await stored_row(api, shared_database, run(new_user(), has_error=True, error_message="é" * 9000))
    assert row["error_message"] == "é" * 8192


async def test_times_with_a_zone_and_in_milliseconds(api, shared_database):
    moment = datetime.now(UTC).replace(microsecond=123000) - timedelta(hours=3)
    tokyo = (moment + timedelta(hours=9)).replace(tzinfo=None).isoformat(timespec="milliseconds") + "+09:00"
    for time in (tokyo, int(moment.timestamp() * 1000 + 0.5)):
        row = await stored_row(api, shared_database, run(new_user(), timestamp=time))
        assert parsed(row["event_timestamp"]) == moment


@pytest.mark.parametrize("off", [timedelta(minutes=11), timedelta(days=-31), timedelta(days=-20_000)], ids=str)
async def test_a_clock_that_is_far_off_is_not_believed(api, shared_database, off):
    before = parsed(now())
    time = (datetime.now(UTC) + off).isoformat()
    row = await stored_row(api, shared_database, run(new_user(), timestamp=time))
    assert before <= parsed(row["event_timestamp"]) <= datetime.now(UTC)


@pytest.mark.parametrize("off", [timedelta(minutes=9), timedelta(days=-29)], ids=str)
async def test_a_clock_that_is_a_little_off_is(api, shared_database, off):
    time = parsed(now()) + off
    row = await stored_row(api, shared_database, run(new_user(), timestamp=time.isoformat()))
    assert parsed(row["event_timestamp"]) == time


async def test_a_missing_time_is_the_time_of_receipt(api, shared_database):
    before = parsed(now())
    row = await stored_row(api, shared_database, activity(new_user()))
    assert before <= parsed(row["event_timestamp"]) <= datetime.now(UTC)


def with_secrets(user: str) -> tuple[str, list[dict]]:
    canary = f"canary{uuid4().hex}"
    secrets = {"code": f"x = '{canary}'", "result": canary * 4000}
    return canary, [run(user, **secrets), run(user, data=secrets), activity(user, **secrets, data={"n": 1} | secrets)]


async def test_code_and_result_never_reach_the_journal(data_dir):
    """PostgreSQL is away, so all that was accepted is still in the journal."""
    user = new_user()
    canary, events = with_secrets(user)
    async with Daemon(data_dir, dsn=f"postgresql://postgres@127.0.0.1:{free_port()}/nobody") as daemon:
        await Api(daemon).accept(events)
        assert files_with(data_dir, user), "the journal should be found below the data directory"
        assert files_with(data_dir, canary) == []
        assert canary not in daemon.stderr


async def test_code_and_result_are_kept_nowhere(api, shared_daemon, shared_database):
    user = new_user()
    canary, events = with_secrets(user)
    await api.accept(events)
    await api.post([activity(user, code=canary, cell_index="wrong")])
    await api.wait_flushed()
    assert files_with(shared_daemon.data_dir, canary) == []
    assert canary not in shared_daemon.stderr
    tables = await shared_database.query("select tablename from pg_tables where schemaname = 'public'")
    for table in (row["tablename"] for row in tables):
        found = await shared_database.value(f"select count(*) from \"{table}\" t where t::text like '%{canary}%'")
        assert found == 0, table


# Answers that are not 202


def check_error(answer, status: int) -> None:
    """The shape of every error answer, and the headers without which a browser hides it from its page."""
    assert answer.status == status, answer
    assert (answer.header("content-type") or "").startswith("application/json")
    error = answer.json()["error"]
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert answer.header("access-control-allow-origin") == "*", answer


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nope", b'{"a":1}{"b":2}', b'{"user_id": "\xff"}', b"[" * 100_000, b'{"x": NaN}']
)
async def test_what_is_not_json_is_400(api, body):
    answer = await api.post(body)
    check_error(answer, 400)
    assert answer.json()["error"]["code"] == "malformed"


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"', b"null", b"true", b"{}", b"[[]]", b"[null]"])
async def test_json_without_a_valid_event_is_422(api, body):
    answer = await api.post(body)
    check_error(answer, 422)
    assert [each["index"] for each in answer.json()["rejected"]] == ([] if body == b"[]" else [0])


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/x-protobuf"])
async def test_another_content_type_is_415(api, content_type):
    check_error(await api.post(run(new_user()), [("Content-Type", content_type)]), 415)


async def test_an_unknown_encoding_is_415(api):
    check_error(await api.post(run(new_user()), [JSON, ("Content-Encoding", "br")]), 415)


async def test_a_body_that_is_too_large_is_413(api):
    check_error(await api.post(b" " * 1_048_577), 413)
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    check_error(await send_raw(api.port, head + chunk * 17), 413)
    exactly = json.dumps(run(new_user())).encode()
    assert (await api.post(exactly + b" " * (1_048_576 - len(exactly)))).status == 202


async def test_too_many_events_are_413(api):
    user = new_user()
    batch = [{"event_type": "x", "user_id": user}] * 1000
    assert (await api.accept(batch))["accepted"] == 1000
    check_error(await api.post([*batch, batch[0]]), 413)


async def test_other_methods_are_405(api):
    for method in ("GET", "PUT", "DELETE"):
        answer = await api.call(method, EVENTS)
        check_error(answer, 405)
        assert "POST" in (answer.header("allow") or "")


async def test_an_unknown_path_is_404(api):
    answer = await api.call("GET", "/api/v1/nothing")
    assert answer.status == 404
    assert isinstance(answer.json()["error"]["message"], str)


async def test_another_host_is_421(api):
    body = json.dumps(run(new_user())).encode()
    for host in ("evil.example", f"evil.example:{api.port}", "127.0.0.1.evil.example"):
        answer = await send_raw(api.port, request_bytes("POST", EVENTS, host=host, body=body))
        assert answer.status == 421, (host, answer)
        assert isinstance(answer.json()["error"]["code"], str)
    for host in ("localhost", "127.0.0.1", f"127.0.0.1:{api.port}", "localhost:1", "LOCALHOST", f"[::1]:{api.port}"):
        answer = await send_raw(
            api.port, request_bytes("POST", EVENTS, host=host, body=json.dumps(run("bob")).encode())
        )
        assert answer.status == 202, (host, answer)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /api/v1/events HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n{}",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /api/v1/events HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n",
    ],
    ids=["no host", "two hosts", "bad length", "length and chunks", "bad chunk", "chunks in 1.0", "tls"],
)
async def test_bad_framing_is_400_and_the_end_of_the_connection(api, head):
    async with await Connection.open(api.port) as connection:
        await connection.send(head)
        answer = await connection.answer()
        assert answer.status == 400, answer
        assert await connection.closed()


async def test_headers_that_are_too_large_are_refused(api):
    head = (
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nX-Big: "
        + b"x" * 40_000
        + b"\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert (await send_raw(api.port, head)).status in {400, 431}


async def test_a_preflight(api):
    asked = [
        ("Origin", "https://hub.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ]
    answer = await api.call("OPTIONS", EVENTS, asked)
    assert answer.status == 204
    assert answer.header("access-control-allow-origin") == "*"
    assert answer.header("access-control-max-age") == "600"
    assert "POST" in (answer.header("access-control-allow-methods") or "")
    assert "content-type" in (answer.header("access-control-allow-headers") or "").lower()
    assert answer.header("access-control-allow-credentials") is None


async def test_health_of_a_daemon_that_is_well(api):
    status, body = await api.health()
    assert status == 200
    await api.wait_flushed()
    _, body = await api.health()
    assert body["status"] == "healthy"
    assert body["checks"]["postgresql"]["status"] == "healthy"
    assert isinstance(body["checks"]["postgresql"]["response_time_ms"], int | float)
    assert (body["checks"]["influxdb"]["status"], body["checks"]["redis"]["status"]) == ("not_configured",) * 2
    assert "journal" in body["checks"]
    for path in ("/livez", "/readyz"):
        assert (await api.call("GET", path)).status == 200


# Limits of a class


async def test_events_past_a_limit_of_their_class_are_rejected_by_their_index(database, data_dir):
    limits = {"LIMITS__USERS_PER_CLASS": "2", "LIMITS__NOTEBOOKS_PER_CLASS": "1"}
    async with Daemon(data_dir, dsn=database.dsn, settings=limits) as daemon:
        api = Api(daemon)
        ann, bob, cid = (new_user() for _ in range(3))
        events = [{"no": "event"}, run(ann), activity(cid), run(bob, notebook_path="other.ipynb"), activity(bob)]
        events[2], events[4] = events[4], events[2]
        answer = await api.post(events)
        assert answer.status == 202
        body = answer.json()
        assert body["accepted"] == 2
        assert [(each["index"], each["error"]) for each in body["rejected"][1:]] == [
            (3, "class default already has 1 notebooks: limits.notebooks_per_class"),
            (4, "class default already has 2 users: limits.users_per_class"),
        ]
        assert body["rejected"][2]["event_id"] == events[4]["event_id"]
        refused = await api.post(activity(cid))
        assert refused.status == 422
        assert "limits.users_per_class" in refused.json()["error"]["message"]
        assert (await api.post(activity(cid, class_id="other"))).status == 202
        assert (await api.post([activity(ann), activity(bob)])).json()["accepted"] == 2
        assert set((await api.overview())["state"]["users"]) == {ann, bob}
        assert "class is full" in daemon.stderr


@pytest.mark.parametrize("name", ["a\nb", "a/b", "a/sessions", "%2F", "ünï-学", "a?b#c", "..", "__proto__"])
async def test_a_student_of_any_name_is_found_again(api, name):
    user = f"{name}{new_user()}"
    await api.accept(run(user))

    async def found():  # a new student's session shows when the store was asked for an older one
        return [session["user_id"] for session in await api.sessions(user)] == [user]

    await eventually(found, within=10, what=f"the session of {user!r}")


async def test_a_gzip_body(api):
    user = new_user()
    answer = await api.post(gzip.compress(json.dumps(run(user)).encode()), (JSON, ("Content-Encoding", "gzip")))
    assert (answer.status, answer.json()["accepted"]) == (202, 1)

    async def counted():
        return (await api.user(user)).get("cell_executions") == 1

    await eventually(counted, within=10, what="the event is counted")
