"""The live stream, from outside."""

import json
import signal
import socket

import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.samples import failed_run, new_user, run
from tests.e2e.subscriber import STREAM, Subscriber

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


async def deaf_subscriber(nursery: trio.Nursery, port: int) -> trio.SocketStream:
    """A subscriber with small buffers that never reads a frame after its handshake."""
    connected = trio.socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await connected.connect(("127.0.0.1", port))
    stream = trio.SocketStream(connected)
    websocket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", STREAM, message_queue_size=0)
    await websocket.send_message(json.dumps({"type": "subscribe", "topics": [CLASS]}))
    return stream


@pytest.mark.slow
async def test_a_subscriber_that_does_not_read_delays_nobody(database, data_dir, nursery):
    """Names of some hundred bytes that change with each round soon fill the deaf one's buffers."""
    rounds, users = 40, [f"u{n:03}" for n in range(300)]
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        deaf = await deaf_subscriber(nursery, daemon.port)
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
