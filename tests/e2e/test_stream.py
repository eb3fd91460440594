"""The live stream, from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote
from uuid import UUID

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from tests.e2e.api import Api
from tests.e2e.daemon import REPOSITORY, Daemon, in_thread
from tests.e2e.recording import written
from tests.e2e.samples import failed_run, new_user, run
from tests.e2e.subscriber import FRAME_BYTES, STREAM, Subscriber
from tests.e2e.waiting import eventually

CLASS = "class:default"


@pytest.fixture
async def subscriber(shared_daemon, nursery):
    return await Subscriber.connect(nursery, shared_daemon.port, CLASS)


async def test_a_snapshot_and_then_what_changes(api, subscriber):
    user = new_user()
    snapshot = subscriber.frames[0]
    assert snapshot["type"] == "snapshot"
    assert snapshot["topic"] == CLASS
    assert isinstance(snapshot["epoch"], str)
    assert set(snapshot["state"]) == {"users", "summary"}
    assert user not in snapshot["state"]["users"]

    await api.accept(run(user, user_name="Ada", team="red"))
    await subscriber.until(lambda: subscriber.user(user), what="the user")
    delta = next(frame for frame in subscriber.frames if user in frame.get("changes", {}).get("users", {}))
    assert delta["type"] == "delta"
    assert (delta["topic"], delta["epoch"]) == (CLASS, snapshot["epoch"])
    assert delta["seq"] > snapshot["seq"]
    first = subscriber.user(user)
    assert {key: first[key] for key in ("user_id", "user_name", "team", "status", "notebook_path", "cell_index")} == {
        "user_id": user,
        "user_name": "Ada",
        "team": "red",
        "status": "active",
        "notebook_path": "intro.ipynb",
        "cell_index": 0,
    }
    assert (first["cell_executions"], first["error_count"], first["consecutive_errors"]) == (1, 0, 0)
    assert first["progress"] == 1.0  # the one cell that anybody has run
    assert "help_since" not in first
    assert "stuck_since" not in first
    assert None not in first.values()

    await api.accept([failed_run(user, cell_index=1) for _ in range(3)])
    await subscriber.until(lambda: subscriber.user(user)["error_count"] == 3, what="the errors")
    stuck = subscriber.user(user)
    assert (stuck["status"], stuck["consecutive_errors"], stuck["progress"]) == ("stuck", 3, 0.5)
    assert "stuck_since" in stuck
    await api.accept(run(user, cell_index=1))
    await subscriber.until(lambda: subscriber.user(user)["status"] == "active", what="no longer stuck")
    assert "stuck_since" not in subscriber.user(user)
    assert subscriber.faults == []


async def test_the_summary_adds_up(api, subscriber):
    users = [new_user() for _ in range(3)]
    await api.accept([run(users[0]), failed_run(users[1]), {**run(users[2]), "event_type": "help"}])
    await subscriber.until(lambda: all(subscriber.user(user) for user in users), what="three users")
    state = subscriber.state()
    everybody, summary = list(state["users"].values()), state["summary"]
    assert summary["total_students"] == len(everybody)
    for status in ("active", "idle", "error", "stuck", "help", "offline"):
        assert summary[status] == sum(user["status"] == status for user in everybody), status
    for counter in ("cell_executions", "error_count"):
        assert summary[counter] == sum(user[counter] for user in everybody)
    assert 0 <= summary["avg_progress"] <= 1
    assert [subscriber.user(user)["status"] for user in users] == ["active", "error", "help"]


async def test_every_subscriber_sees_the_same(api, subscriber, shared_daemon, nursery):
    late = await Subscriber.connect(nursery, shared_daemon.port, CLASS)
    user = new_user()
    for count in range(1, 6):
        await api.accept(run(user, cell_index=count))
        for each in (subscriber, late):
            await each.until(lambda each=each, count=count: each.user(user).get("cell_executions") == count)
    assert late.state() == subscriber.state()
    assert late.topics[CLASS].seq == subscriber.topics[CLASS].seq
    assert (await api.overview())["state"] == subscriber.state()
    assert subscriber.faults == late.faults == []


async def test_changes_are_conflated(api, subscriber):
    user = new_user()
    before = len(subscriber.frames)
    await api.accept([run(user, cell_index=index) for index in range(200)])
    await subscriber.until(lambda: subscriber.user(user).get("cell_executions") == 200, what="200 runs")
    assert len(subscriber.frames) - before < 20
    assert subscriber.faults == []


async def test_classes_are_apart(api, subscriber, shared_daemon, nursery):
    other = await Subscriber.connect(nursery, shared_daemon.port, "class:physics")
    user = new_user()
    await api.accept([run(user, class_id="physics"), run(user), run(user)])
    await other.until(lambda: other.user(user, "class:physics").get("cell_executions") == 1)
    await subscriber.until(lambda: subscriber.user(user).get("cell_executions") == 2)
    assert set(other.topics) == {"class:physics"}


async def test_after_unsubscribing_nothing_comes(api, subscriber, shared_daemon, nursery):
    witness = await Subscriber.connect(nursery, shared_daemon.port, CLASS)
    await subscriber.unsubscribe(CLASS)
    await subscriber.send({"type": "ping"})
    await subscriber.frame("pong")
    before = len(subscriber.frames)
    user = new_user()
    await api.accept(run(user))
    await witness.until(lambda: witness.user(user))
    await subscriber.send({"type": "ping"})
    await subscriber.until(lambda: len(subscriber.frames) > before)
    assert [frame["type"] for frame in subscriber.frames[before:]] == ["pong"]
    await subscriber.send({"type": "subscribe", "topics": [CLASS]})
    await subscriber.until(lambda: subscriber.user(user), what="a new snapshot")


# --- topics


async def test_a_student_is_a_topic(api, subscriber, shared_daemon, nursery):
    user = f"{new_user()}/a b@x.org"
    topic = f"user:default/{quote(user, safe='')}"
    page = await Subscriber.connect(nursery, shared_daemon.port, topic)
    assert page.state(topic) == {}
    await api.accept(run(user, user_name="Ada"))
    await page.until(lambda: page.state(topic), what="the student")
    await api.accept([run(user, session_id=f"tab{number}", cell_index=number) for number in range(12)])
    await page.until(lambda: page.state(topic).get("cell_executions") == 13, what="13 runs")
    seen = dict(page.state(topic))
    assert (
        seen.pop("sessions") == (await api.get(f"/api/v1/users/{quote(user, safe='')}/sessions?limit=10"))["sessions"]
    )
    await subscriber.until(lambda: subscriber.user(user).get("cell_executions") == 13)
    assert seen == subscriber.user(user)
    await api.accept(failed_run(user))
    await page.until(lambda: page.alerts_of(user, topic) == ["error"], what="the alert")
    await api.accept(failed_run(new_user()))
    await subscriber.until(lambda: len(subscriber.alerts.get(CLASS, [])) == 2)
    assert len(page.alerts[topic]) == 1
    assert page.faults == []


async def test_a_notebook_is_a_topic(api, shared_daemon, nursery):
    path = f"week 1/{new_user()}%.ipynb"
    topic = f"notebook:default/{quote(path, safe='')}"
    ann, ben = new_user(), new_user()
    await api.accept(run(ann, notebook_path=path, total_cells=4, execution_duration_ms=10))
    page = await Subscriber.connect(nursery, shared_daemon.port, topic)
    cell = {"cell_index": 0, "students": 1, "executions": 1, "errors": 0, "median_duration_ms": 10}
    assert page.state(topic) == {"total_students": 1, "avg_progress": 0.25, "total_cells": 4, "cells": [cell]}
    await api.accept([failed_run(ben, notebook_path=path, execution_duration_ms=20), run(ben)])
    await page.until(lambda: page.state(topic)["total_students"] == 2, what="two students")
    cell |= {"students": 2, "executions": 2, "errors": 1, "median_duration_ms": 15}
    assert page.state(topic) == {"total_students": 2, "avg_progress": 0.125, "total_cells": 4, "cells": [cell]}
    await page.until(lambda: page.alerts_of(ben, topic) == ["error"], what="the alert")
    assert page.faults == []


async def test_operators_have_a_topic(subscriber):
    ops = await subscriber.subscribe("ops")
    assert ops.state["journal"]["status"] == "healthy"
    assert ops.state["topics_watched"] >= 1


async def test_a_subscriber_has_at_most_fifty_topics(subscriber):
    await subscriber.send({"type": "subscribe", "topics": [f"user:default/u{number}" for number in range(50)]})
    assert (await subscriber.frame("error"))["code"] == "too_many_topics"
    await subscriber.send({"type": "subscribe", "topics": [f"user:default/u{number}" for number in range(49)]})
    await subscriber.until(lambda: len(subscriber.topics) == 50)


# --- alerts


async def test_each_kind_of_alert_is_told_once(api, subscriber):
    user, begin = new_user(), datetime.now(UTC)

    def at(second, event):
        return {**event, "timestamp": written(begin + timedelta(seconds=second))}

    third = at(3, failed_run(user, error_message="KeyError: 'x'"))
    for sent, kinds in (
        ([at(1, failed_run(user)), at(2, failed_run(user))], ["error", "error"]),
        ([third], ["error", "stuck"]),
        ([third], []),  # a repeat
        ([at(4, run(user))], ["unstuck"]),
        ([at(5, {**run(user), "event_type": "help"})], ["help_requested"]),
        ([at(6, {**run(user), "event_type": "help"})], []),
        ([at(7, {**run(user), "event_type": "help_stop"})], ["help_resolved"]),
    ):
        told = subscriber.alerts_of(user) + kinds
        await api.accept(sent)
        await subscriber.until(lambda told=told: subscriber.alerts_of(user) == told, what=f"{kinds} more")
    alerts = [alert for alert in subscriber.alerts[CLASS] if alert["user_id"] == user]
    assert len({alert["id"] for alert in alerts}) == len(alerts)
    assert {UUID(alert["id"]).version for alert in alerts} == {5}
    (stuck,) = [alert for alert in alerts if alert["alert"] == "stuck"]
    assert datetime.fromisoformat(stuck["at"]) - begin - timedelta(seconds=3) < timedelta(milliseconds=1)
    assert (stuck["error_class"], stuck["notebook_path"], stuck["cell_index"]) == ("KeyError", "intro.ipynb", 0)
    assert subscriber.faults == []


async def test_many_who_fail_on_one_cell_are_a_cluster(api, subscriber):
    path, users = f"{new_user()}.ipynb", [new_user() for _ in range(8)]
    await api.accept([failed_run(user, notebook_path=path) for user in users])
    await subscriber.until(lambda: all(subscriber.alerts_of(user) for user in users), what="the errors")
    (cluster,) = [alert for alert in subscriber.alerts[CLASS] if alert["alert"] == "error_cluster"]
    assert (cluster["notebook_path"], cluster["cell_index"]) == (path, 0)
    assert len(cluster["students"]) == 5
    assert set(cluster["students"]) < set(users)


# --- resume


async def test_who_resumes_gets_what_changed_and_every_alert(api, subscriber, shared_daemon, nursery):
    gone, here = await Subscriber.connect(nursery, shared_daemon.port, CLASS), subscriber
    user, odd = new_user(), "__proto__"
    await api.accept(failed_run(user))
    await gone.until(lambda: gone.alerts_of(user) == ["error"] and gone.user(user), what="the first error")
    held = gone.topics[CLASS]
    await gone.close()
    await api.accept([failed_run(user), failed_run(user), run(odd)])
    await here.until(lambda: len(here.alerts_of(user)) == 4 and here.user(user).get("error_count") == 3)
    back = await Subscriber.connect(nursery, shared_daemon.port)
    await back.resume(CLASS, held)
    await back.until(lambda: back.state() == here.state(), what="the same state")
    await back.until(lambda: back.alerts_of(user) == ["error", "error", "stuck"], what="the alerts")
    assert {frame["type"] for frame in back.frames} == {"delta", "alerts"}
    await api.accept(run(user, cell_index=1))
    for each in (back, here):
        await each.until(lambda each=each: each.user(user)["cell_executions"] == 4)
    assert back.topics[CLASS].seq == here.topics[CLASS].seq
    assert back.faults == here.faults == []


async def test_who_was_alone_resumes_what_nobody_watched(api, shared_daemon, nursery):
    class_id, user = new_user(), new_user()
    topic = f"class:{class_id}"
    first = await Subscriber.connect(nursery, shared_daemon.port, topic)
    await api.accept(run(user, class_id=class_id))
    await first.until(lambda: first.user(user, topic))
    held = first.topics[topic]
    await first.close()
    await api.accept(failed_run(user, class_id=class_id))

    async def applied():
        return (await api.user(user, class_id))["error_count"]

    await eventually(applied)
    back = await Subscriber.connect(nursery, shared_daemon.port)
    await back.resume(topic, held)
    await back.until(
        lambda: back.user(user, topic).get("error_count") == 1 and back.alerts_of(user, topic) == ["error"]
    )
    assert "snapshot" not in {frame["type"] for frame in back.frames}


@pytest.mark.parametrize("change", [{"epoch": "another"}, {"seq": 10**9}, {"seq": -1}], ids=str)
async def test_a_resume_that_cannot_be_served_gets_a_snapshot(subscriber, shared_daemon, nursery, change):
    back = await Subscriber.connect(nursery, shared_daemon.port)
    held = attrs.evolve(subscriber.topics[CLASS], **change)
    await back.resume(CLASS, held)
    assert back.frames[0]["type"] == "snapshot"
    assert back.state() == subscriber.state()


async def test_who_missed_more_alerts_than_are_kept_gets_a_snapshot(api, subscriber, shared_daemon, nursery):
    held = attrs.evolve(subscriber.topics[CLASS])
    user = new_user()
    for _ in range(2):
        await api.accept([failed_run(user) for _ in range(600)])
    await subscriber.until(lambda: subscriber.alerts_of(user).count("error") == 1200, what="every alert")
    back = await Subscriber.connect(nursery, shared_daemon.port)
    await back.resume(CLASS, held)
    assert back.frames[0]["type"] == "snapshot"
    assert subscriber.faults == []


async def test_a_daemon_that_was_killed_tells_recent_alerts_again(database, data_dir, nursery):
    """And no older ones: those who come back find the lesson as it is."""
    user, gone = new_user(), new_user()
    daemon = await in_thread(Daemon(data_dir, dsn=database.dsn).start)
    try:
        api = Api(daemon)
        before = await Subscriber.connect(nursery, daemon.port, CLASS)
        await api.accept([failed_run(user), run(gone)])
        await before.until(lambda: before.alerts_of(user) and before.user(user), what="the alert")
        held = before.topics[CLASS]
        await in_thread(daemon.kill)
        await before.until(lambda: before.close_code is not None)
        await in_thread(daemon.start)
        after = await Subscriber.connect(nursery, daemon.port)
        await after.resume(CLASS, held)
        assert after.frames[0]["type"] == "snapshot"
        assert after.topics[CLASS].epoch != held.epoch
        await after.until(lambda: after.user(user).get("error_count") == 1, what="the student")
        await api.accept(failed_run(user))
        await after.until(lambda: after.alerts_of(user), what="an alert")
        again = {alert["id"] for alert in after.alerts[CLASS]} & {alert["id"] for alert in before.alerts[CLASS]}
        assert len(after.alerts[CLASS]) == 1 + len(again)
        assert await in_thread(daemon.stop) == 0, daemon.stderr
    finally:
        daemon.kill()


async def test_a_ping_is_answered(subscriber):
    await subscriber.send({"type": "ping"})
    assert await subscriber.frame("pong") == {"type": "pong"}


@pytest.mark.parametrize(
    "frame",
    [
        "not json",
        "[]",
        "7",
        {"type": "dance"},
        {},
        {"type": "subscribe"},
        {"type": "subscribe", "topics": "class:default"},
        {"type": "subscribe", "topics": [7]},
        {"type": "subscribe", "topics": ["nonsense"]},
        {"type": "subscribe", "topics": ["class:"]},
        {"type": "subscribe", "topics": ["class:a b"]},
        {"type": "subscribe", "topics": ["user:default"]},
        {"type": "subscribe", "topics": ["notebook:default/"]},
        {"type": "subscribe", "topics": ["class:default"], "resume": 7},
        {"type": "subscribe", "topics": ["class:default"], "resume": {"class:default": {"epoch": "x"}}},
        {"type": "subscribe", "topics": ["class:default"], "resume": {"class:default": {"epoch": "x", "seq": True}}},
    ],
    ids=json.dumps,
)
async def test_a_bad_frame_is_answered_and_forgiven(subscriber, frame):
    await subscriber.send(frame)
    error = await subscriber.frame("error")
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    await subscriber.send({"type": "ping"})
    await subscriber.frame("pong")


async def test_a_frame_that_is_too_large_ends_the_connection(subscriber):
    await subscriber.send(" " * 70_000)
    await subscriber.until(lambda: subscriber.close_code is not None, what="the end")
    assert subscriber.close_code == 1009


async def test_a_message_without_end_ends_the_connection_though_it_holds_nothing(subscriber):
    """Fragments that are empty never reach the limit on a message's size; masked with zeros (RFC 6455 section 5.4)."""
    first, more = b"\x01\x80" + bytes(4), b"\x00\x80" + bytes(4)
    await subscriber.send_raw(first + more * 90_000)
    await subscriber.until(lambda: subscriber.close_code is not None, what="the end")
    assert subscriber.close_code == 1009


async def test_an_ordinary_request_for_the_stream_is_refused(api):
    answer = await api.call("GET", STREAM)
    assert 400 <= answer.status < 500, answer


async def test_a_foreign_page_may_not_listen(api):
    handshake = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Origin", "https://evil.example"),
    ]
    answer = await api.call("GET", STREAM, handshake)
    assert answer.status == 403, answer
    own = [*handshake[:-1], ("Origin", f"http://127.0.0.1:{api.port}")]
    assert (await api.call("GET", STREAM, own)).status == 101


async def test_a_frame_sent_with_the_handshake_is_not_lost(shared_daemon, nursery):
    """A client that does not wait for the answer to its handshake: both come in one segment."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    head = (
        f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
    ping = b'{"type":"ping"}'
    masked = bytes([0x81, 0x80 | len(ping), 0, 0, 0, 0]) + ping  # a mask of zeros changes nothing
    for _ in range(10):
        async with await trio.open_tcp_stream("127.0.0.1", shared_daemon.port) as stream:
            await stream.send_all(head + masked)
            received = b""
            with trio.fail_after(5):
                while b'"pong"' not in received:
                    data = await stream.receive_some()
                    assert data, received
                    received += data
            assert received.startswith(b"HTTP/1.1 101 ")


async def deaf_subscriber(nursery: trio.Nursery, port: int, *topics: str) -> trio.SocketStream:
    """A subscriber with small buffers that never reads a frame after its handshake."""
    connected = trio.socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await connected.connect(("127.0.0.1", port))
    stream = trio.SocketStream(connected)
    websocket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", STREAM, message_queue_size=0)
    await websocket.send_message(json.dumps({"type": "subscribe", "topics": topics}))
    return stream


@pytest.mark.slow
async def test_a_subscriber_that_does_not_read_delays_nobody(database, data_dir, nursery):
    """Names of some hundred bytes that change with each round soon fill the deaf one's buffers."""
    rounds, users = 40, [f"u{n:03}" for n in range(300)]
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        deaf = await deaf_subscriber(nursery, daemon.port, CLASS)
        quick = await Subscriber.connect(nursery, daemon.port, CLASS)
        for count in range(1, rounds + 1):
            name = ("漢" if count % 2 else "字") * 200
            await api.accept([run(user, user_name=name) for user in users])
            await quick.until(
                lambda count=count: quick.user(users[-1]).get("cell_executions") == count,
                within=5,
                what=f"round {count} at the quick subscriber",
            )
        await quick.until(lambda: quick.state()["summary"]["cell_executions"] == rounds * len(users))
        assert quick.faults == []
        await trio.aclose_forcefully(deaf)


async def closing_code(websocket) -> int:
    """Read until the end."""
    with trio.fail_after(30):
        try:
            while True:
                await websocket.get_message()
        except ConnectionClosed as closed:
            return closed.reason.code if closed.reason else 1006


@pytest.mark.slow
async def test_who_reads_too_slowly_for_the_alerts_is_closed_with_1013(database, data_dir, nursery):
    """Alerts cannot be conflated: when more wait than the topic keeps, the reader is told to come again."""
    async with Daemon(data_dir, dsn=database.dsn, settings={"BROADCAST__OUTBOX_FRAMES": "8"}) as daemon:
        api = Api(daemon)
        connected = trio.socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await connected.connect(("127.0.0.1", daemon.port))
        stream = trio.SocketStream(connected)
        slow = await wrap_client_stream(
            nursery, stream, f"127.0.0.1:{daemon.port}", STREAM, message_queue_size=0, max_message_size=FRAME_BYTES
        )
        await slow.send_message(json.dumps({"type": "subscribe", "topics": [CLASS]}))
        quick = await Subscriber.connect(nursery, daemon.port, CLASS)
        before, rounds = daemon.rss_bytes(), 16
        for count in range(1, rounds + 1):
            await api.accept([failed_run("ann", error_message="漢" * 200) for _ in range(600)])
            await quick.until(lambda count=count: len(quick.alerts_of("ann")) >= count * 600, what="the alerts")
        assert daemon.rss_bytes() - before < 64e6
        assert quick.alerts_of("ann").count("error") == rounds * 600
        assert quick.faults == []
        assert await closing_code(slow) == 1013
        await trio.aclose_forcefully(stream)


async def test_a_shutdown_closes_with_1012(database, data_dir, nursery):
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        subscriber = await Subscriber.connect(nursery, daemon.port, CLASS)
        idle = await Subscriber.connect(nursery, daemon.port)
        daemon.signal(signal.SIGTERM)
        for each in (subscriber, idle):
            await each.until(lambda each=each: each.close_code is not None, what="the close frame")
            assert each.close_code == 1012
        assert await in_thread(daemon.wait) == 0


async def test_a_client_that_goes_away_is_forgotten(api, shared_daemon, nursery):
    leaving = await Subscriber.connect(nursery, shared_daemon.port, CLASS)
    await leaving.close()
    assert leaving.close_code == 1000
    with pytest.raises(ConnectionClosed):
        await leaving.send({"type": "ping"})
    staying = await Subscriber.connect(nursery, shared_daemon.port, CLASS)
    user = new_user()
    await api.accept(run(user))
    await staying.until(lambda: staying.user(user))


async def test_the_client_in_the_docs_follows_a_class(api, shared_daemon):
    text = (REPOSITORY / "docs" / "stream.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("127.0.0.1:8765", f"127.0.0.1:{shared_daemon.port}")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        )
        user, said = new_user(), b""
        with trio.fail_after(20):
            while b"snapshot" not in said:
                said += await process.stdout.receive_some()
            await api.accept(failed_run(user))
            while b"delta" not in said or f"error {user}\n".encode() not in said:
                said += await process.stdout.receive_some()
        nursery.cancel_scope.cancel()
