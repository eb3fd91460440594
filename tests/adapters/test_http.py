"""The edge, over real sockets on loopback, with somebody behind it who decides what becomes of events."""

import json
import os
import socket
import tracemalloc
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio_websocket import open_websocket, wrap_client_stream

from adapters.http.api import api
from adapters.http.asgi import AsgiBridge
from adapters.http.ingest import Ingest
from adapters.http.server import HttpServer
from adapters.memory import MemoryStore
from adapters.websocket import StreamEndpoint
from engine.errors import StartError, UnavailableError
from tests.adapters.events import NOW
from tests.adapters.framing import BAD_FRAMING
from tests.e2e.wire import Connection, Disconnected, request_bytes

BROKEN = "/api/v1/classes/broken/overview"
EVENTS = "/api/v1/events"
MAX_HEADER, MAX_BODY = 4096, 10_000
JSON = (("Content-Type", "application/json"),)


class Intake:
    """Settles at once, or when told to."""

    def __init__(self):
        self.events = []
        self.fault = None
        self.holding = False
        self.held = []
        self._arrived = trio.Event()

    def accept(self, events, settle):
        if self.fault is not None:
            raise self.fault
        self.events += events
        if self.holding:
            self.held.append(lambda: settle([True] * len(events)))
            self._arrived.set()
        else:
            settle([True] * len(events))

    async def until_held(self, count=1):
        with trio.fail_after(10):
            while len(self.held) < count:
                self._arrived = trio.Event()
                await self._arrived.wait()

    def release(self):
        held, self.held = self.held, []
        for settle in held:
            settle()

    @property
    def ids(self):
        return [event.event_id for event in self.events]


class Outbox:
    """Says which topic was asked for."""

    conflated = 0
    received_at = 0

    def __init__(self):
        self._send, self._receive = trio.open_memory_channel(10)

    def subscribe(self, topic, resume=None):
        self._send.send_nowait(json.dumps({"subscribed": topic}))

    def unsubscribe(self, topic):
        pass

    async def next_frame(self):
        return await self._receive.receive()

    def write_through(self, write):
        pass

    def close(self):
        self._send.close()
        self._receive.close()


class Live:
    """A class of as many bytes as wanted."""

    def __init__(self):
        self.size = 10

    def overview(self, class_id):
        if class_id == "broken":
            raise RuntimeError("the test wants it")
        return {"class_id": class_id, "filler": "x" * self.size}

    def sessions(self, class_id, user_id):
        return [], set()

    def connect(self):
        return Outbox()


class Edge:
    def __init__(self, nursery):
        self.nursery = nursery
        self.intake = Intake()
        self.live = Live()
        self.health = {"status": "healthy", "checks": {}}
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    async def start(self, *, cors_origins=(), **settings):
        async def health():
            return self.health

        application = api(
            self.live,
            MemoryStore(),
            None,
            health,
            ready=lambda: True,
            metrics=lambda: (b"", "text/plain"),
            description={},
            cors_origins=cors_origins,
        )
        limits = {
            "allowed_hosts": (),
            "refuse_forwarded": False,
            "max_header_bytes": MAX_HEADER,
            "max_body_bytes": MAX_BODY,
            "max_connections": 1000,
            "idle_timeout_s": 60,
            "header_timeout_s": 60,
            "body_timeout_s": 60,
        }
        self.stream = StreamEndpoint(self.live)
        self.server = HttpServer(
            Ingest(self.intake, max_events=100, max_body_bytes=MAX_BODY, clock=lambda: NOW),
            AsgiBridge(application),
            self.stream.serve,
            **{"host": "127.0.0.1", "port": 0, **limits, **settings},
        )
        url = await self.server.bind()
        self.port = int(url.rpartition(":")[2])
        self.nursery.start_soon(self._run)

    async def _run(self):
        with self.scope:
            await self.server.run()
        self.ended.set()

    @asynccontextmanager
    async def connect(self):
        async with await Connection.open(self.port) as connection:
            yield connection

    async def ask(self, method, path, **parts):
        async with self.connect() as connection:
            return await connection.request(method, path, **parts)

    async def raw(self, data):
        """What one connection answers to these bytes, and that it ends."""
        async with self.connect() as connection:
            await connection.send(data)
            answer = await connection.answer()
            assert await connection.closed()
            return answer

    def post(self, *ids, path=EVENTS, headers=JSON):
        body = json.dumps([{"event_id": name, "event_type": "seen", "user_id": "ann"} for name in ids]).encode()
        return request_bytes("POST", path, host=f"127.0.0.1:{self.port}", headers=headers, body=body)

    def get(self, path, *headers):
        return request_bytes("GET", path, host=f"127.0.0.1:{self.port}", headers=headers)


@pytest.fixture
async def edge(nursery):
    made = Edge(nursery)
    await made.start()
    return made


def assert_error(answer, status, code=None):
    assert answer.status == status
    fault = answer.json()["error"]
    assert set(fault) == {"code", "message"}
    assert fault["message"]
    if code is not None:
        assert fault["code"] == code


# --- connections


async def test_a_connection_is_kept_for_the_next_request(edge):
    async with edge.connect() as connection:
        for number in range(5):
            await connection.send(edge.post(f"e{number}"))
            answer = await connection.answer()
            assert answer.status == 202
            assert answer.header("connection") is None
            assert answer.header("date")
            assert answer.json() == {"status": "received", "accepted": 1, "duplicates": 0, "rejected": []}
            assert (await connection.request("GET", "/livez")).status == 200
    assert edge.intake.ids == [f"e{number}" for number in range(5)]


async def test_a_client_that_asks_for_the_end_gets_it(edge):
    answer = await edge.raw(edge.post("e", headers=(*JSON, ("Connection", "close"))))
    assert answer.status == 202
    assert answer.header("connection") == "close"
    answer = await edge.raw(edge.get("/livez", ("Connection", "close")))
    assert answer.status == 200
    assert answer.header("connection") == "close"


async def test_http_1_0_ends_after_its_answer_and_needs_no_host(edge):
    assert (await edge.raw(b"GET /livez HTTP/1.0\r\n\r\n")).status == 200


async def test_pipelined_requests_are_answered_in_order(edge):
    edge.intake.holding = True
    async with edge.connect() as connection:
        await connection.send(
            edge.post("a") + edge.get("/livez") + edge.post("b", "c") + edge.get("/nowhere") + edge.post("d")
        )
        for expected in (202, 200, 202, 404, 202):
            if expected == 202:
                await edge.intake.until_held()
                edge.intake.release()
            assert (await connection.answer()).status == expected
    assert edge.intake.ids == ["a", "b", "c", "d"]


async def test_many_pipelined_at_once(edge):
    async with edge.connect() as connection:
        await connection.send(b"".join(edge.post(f"e{number}") for number in range(300)))
        for _ in range(300):
            assert (await connection.answer()).status == 202
    assert edge.intake.ids == [f"e{number}" for number in range(300)]


async def test_what_was_sent_before_a_fault_is_answered_before_it(edge):
    async with edge.connect() as connection:
        await connection.send(edge.post("a") + edge.get("/livez") + b"NONSENSE\r\n\r\n")
        assert [(await connection.answer()).status for _ in range(3)] == [202, 200, 400]
        assert await connection.closed()
    assert edge.intake.ids == ["a"]


async def test_nothing_is_taken_behind_the_last_request(edge):
    async with edge.connect() as connection:
        await connection.send(edge.get("/livez", ("Connection", "close")) + edge.post("after"))
        assert (await connection.answer()).status == 200
        assert await connection.closed()
    assert edge.intake.ids == []


async def test_the_last_request_is_answered_though_one_that_upgrades_was_pipelined_behind_it(edge):
    answer = await edge.raw(edge.get("/livez", ("Connection", "close")) + upgrade(edge))
    assert answer.status == 200


async def test_many_connections_at_once(edge):
    async def client(number):
        async with edge.connect() as connection:
            for turn in range(3):
                await connection.send(edge.post(f"{number}.{turn}"))
                assert (await connection.answer()).status == 202

    async with trio.open_nursery() as clients:
        for number in range(150):
            clients.start_soon(client, number)
    assert len(set(edge.intake.ids)) == 450


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_what_waits_for_its_commit_holds_no_body(edge, version):
    """A disk that stalls would otherwise fill the memory with what clients sent, and was never to be kept."""
    clients = 20
    event = {"event_id": "e", "event_type": "seen", "user_id": "ann", "code": "x" * 9000}
    body = json.dumps([event]).encode()
    headers = (*JSON, ("Connection", "keep-alive"))
    request = request_bytes("POST", EVENTS, host=f"127.0.0.1:{edge.port}", headers=headers, body=body)
    request = request.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(edge.connect()) for _ in range(clients)]
        for connection in connections:
            await connection.send(request)
            assert (await connection.answer()).status == 202
        edge.intake.holding = True
        tracemalloc.start()
        try:
            for connection in connections:
                await connection.send(request)
            await edge.intake.until_held(clients)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        edge.intake.release()
        for connection in connections:
            assert (await connection.answer()).status == 202
    assert held < clients * len(body) / 2


async def test_a_client_that_has_shut_down_its_side_gets_its_answer(edge):
    edge.intake.holding = True
    async with edge.connect() as connection:
        await connection.send(edge.post("a"))
        await connection.stream.send_eof()
        await edge.intake.until_held()
        edge.intake.release()
        assert (await connection.answer()).status == 202
        assert await connection.closed()


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_client_that_is_gone_before_its_answer_harms_nobody(edge, end):
    edge.intake.holding = True
    async with edge.connect() as connection:
        await connection.send(edge.post("a"))
        await edge.intake.until_held()
        if end == "reset":
            await connection.reset()
    await trio.testing.wait_all_tasks_blocked(0.01)
    edge.intake.release()
    edge.intake.holding = False
    async with edge.connect() as connection:
        await connection.send(edge.post("b"))
        assert (await connection.answer()).status == 202
    assert edge.intake.ids == ["a", "b"]


async def test_an_answer_that_comes_after_its_connection_goes_nowhere_else(edge):
    """The descriptor of a connection that is gone is soon another's."""
    edge.intake.holding = True
    for number in range(5):
        async with edge.connect() as connection:
            await connection.send(edge.post("late"))
            await edge.intake.until_held(number + 1)
            await connection.reset()
    await trio.testing.wait_all_tasks_blocked(0.01)
    async with edge.connect() as one, edge.connect() as two:
        for connection in (one, two):
            assert (await connection.request("GET", "/livez")).status == 200
        edge.intake.release()
        for connection in (one, two):
            assert (await connection.request("GET", "/livez")).json() == {"status": "alive"}


async def test_an_answer_that_comes_after_the_server_was_cut_goes_nowhere_else(edge, tmp_path):
    """A shutdown that takes too long cuts the edge, and the journal commits once more."""
    edge.intake.holding = True
    async with AsyncExitStack() as stack:
        logged = stack.enter_context(capture_logs())
        for number in range(6):
            connection = await stack.enter_async_context(edge.connect())
            await connection.send(edge.post(f"late{number}"))
        await edge.intake.until_held(6)
        edge.scope.cancel()
        await edge.ended.wait()
        # The lowest free descriptors are what connections and server had.
        files = [stack.enter_context((tmp_path / str(number)).open("wb", buffering=0)) for number in range(16)]
        edge.intake.release()
        assert {os.fstat(each.fileno()).st_size for each in files} == {0}
    assert logged == []


async def test_a_slow_reader_of_answers_delays_only_itself(edge):
    edge.live.size = 1_000_000
    async with edge.connect() as slow, edge.connect() as other:
        await slow.send(edge.get("/api/v1/classes/default/overview") * 20)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(2):
            for number in range(20):
                await other.send(edge.post(f"e{number}"))
                assert (await other.answer()).status == 202
        for _ in range(20):
            assert len((await slow.answer()).json()["filler"]) == 1_000_000


async def test_a_reader_that_leaves_within_a_large_answer_harms_nobody(edge):
    edge.live.size = 20_000_000
    for half_closed in (True, False):
        async with edge.connect() as connection:
            await connection.send(edge.get("/api/v1/classes/default/overview"))
            if half_closed:
                await connection.stream.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert (await edge.ask("GET", "/livez")).status == 200


async def test_a_large_receipt_that_the_socket_does_not_take_at_once(edge):
    """Receipts are written in passing; what the socket does not take then is sent by the connection's task."""
    body = json.dumps(["x"] * 90).encode()  # each is rejected, by index
    request = request_bytes("POST", EVENTS, host=f"127.0.0.1:{edge.port}", headers=JSON, body=body)
    async with edge.connect() as connection, trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, request * 1500)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await edge.ask("GET", "/livez")).status == 200
        for _ in range(1500):
            answer = await connection.answer()
            assert answer.status == 422, answer
            assert len(answer.json()["rejected"]) == 90


# --- framing


async def test_a_request_split_at_every_byte(edge):
    data = edge.post("split")
    async with edge.connect() as connection:
        connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            await connection.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert (await connection.answer()).status == 202
    assert edge.intake.ids == ["split"]


async def test_two_segments_wherever_they_are_cut(edge):
    data = edge.post("cut")
    async with edge.connect() as connection:
        for at in range(1, len(data)):
            await connection.send(data[:at])
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            await connection.send(data[at:])
            assert (await connection.answer()).status == 202
    assert set(edge.intake.ids) == {"cut"}
    assert len(edge.intake.ids) == len(data) - 1


def chunked(edge, *chunks, end=b"0\r\n\r\n", headers=b""):
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\nTransfer-Encoding: chunked\r\n".encode()
    return head + headers + b"\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


async def test_a_chunked_body(edge):
    body = b'{"event_id": "c", "event_type": "seen", "user_id": "ann"}'
    async with edge.connect() as connection:
        for chunks in ([body], [body[:5], body[5:]], [bytes([byte]) for byte in body]):
            await connection.send(chunked(edge, *chunks))
            answer = await connection.answer()
            assert (answer.status, answer.json()["event_id"]) == (202, "c")
    assert edge.intake.ids == ["c"] * 3


async def test_a_chunked_body_may_not_grow_past_the_limit(edge):
    answer = await edge.raw(chunked(edge, *[b" " * 1000] * 11))
    assert_error(answer, 413, "body_too_large")
    assert answer.header("access-control-allow-origin") == "*"


async def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(edge):
    event = b'{"event_type": "seen", "user_id": "ann"}'
    host = f"127.0.0.1:{edge.port}"
    most = request_bytes("POST", EVENTS, host=host, body=event.ljust(MAX_BODY))
    async with edge.connect() as connection:
        await connection.send(most)
        assert (await connection.answer()).status == 202
        await connection.send(request_bytes("POST", EVENTS, host=host, body=event.ljust(MAX_BODY + 1)))
        assert_error(await connection.answer(), 413, "body_too_large")
        assert await connection.closed()
    assert len(edge.intake.events) == 1


async def test_a_body_far_past_the_limit_is_refused_before_it_is_all_sent(edge):
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\nContent-Length: 1000000000\r\n\r\n".encode()
    async with edge.connect() as connection:
        await connection.send(head + b" " * (MAX_BODY + 1))
        assert_error(await connection.answer(), 413, "body_too_large")


async def test_a_head_past_the_limit_is_431(edge):
    assert_error(await edge.raw(edge.get("/livez", ("X-Large", "x" * MAX_HEADER))), 431, "headers_too_large")
    assert_error(await edge.raw(edge.get("/" + "x" * MAX_HEADER)), 431)
    assert_error(await edge.raw(edge.get("/livez", *[("a", "b")] * 200)), 431, "headers_too_large")  # and Host
    async with edge.connect() as connection:
        await connection.send(edge.get("/livez", *[("a", "b")] * 199))
        assert (await connection.answer()).status == 200
    ok = edge.get("/livez", ("X-Large", "x" * (MAX_HEADER - 200)))
    async with edge.connect() as connection:
        for _ in range(3):
            await connection.send(ok)
            assert (await connection.answer()).status == 200


async def test_what_came_before_it_does_not_count_as_head(edge):
    many = edge.post("a") * (3 * MAX_HEADER // len(edge.post("a")))
    last = edge.post("b")
    async with edge.connect() as connection:
        await connection.send(many + last[:40])
        for _ in range(many.count(b"POST")):
            assert (await connection.answer()).status == 202
        await connection.send(last[40:])
        assert (await connection.answer()).status == 202


async def test_a_head_that_never_ends_is_431(edge):
    async with edge.connect() as connection:
        with trio.fail_after(10):
            await connection.send(b"GET /livez HTTP/1.1\r\nX-Endless: ")
            for _ in range(20):
                await connection.send(b"x" * 500)
                await trio.lowlevel.checkpoint()
        assert_error(await connection.answer(), 431)


@pytest.mark.parametrize("data", BAD_FRAMING.values(), ids=BAD_FRAMING)
async def test_bad_framing_is_400_and_the_end(edge, data):
    answer = await edge.raw(data.replace(b"Host: h", b"Host: 127.0.0.1"))
    assert_error(answer, 400, "malformed")
    assert answer.header("connection") == "close"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "127.0.0.1:x", "[::2]"])
async def test_another_host_is_421(edge, host):
    answer = await edge.raw(request_bytes("GET", "/livez", host=host))
    assert_error(answer, 421, "misdirected")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "localhost:", "127.0.0.1:80", "[::1]", "[::1]:8080"])
async def test_loopback_names_are_ours_whatever_the_port(edge, host):
    assert (await edge.ask("GET", "/livez", host=host)).status == 200


async def test_configured_hosts_replace_the_loopback_names(nursery):
    edge = Edge(nursery)
    await edge.start(allowed_hosts=("Pulse.School.example",))
    assert (await edge.ask("GET", "/livez", host="pulse.school.EXAMPLE:443")).status == 200
    assert (await edge.ask("GET", "/livez", host="localhost")).status == 421


async def test_a_port_that_is_taken_is_a_start_error(edge, nursery):
    with pytest.raises(StartError, match=r"http\.port"):
        await Edge(nursery).start(port=edge.port)


# --- the ingest endpoint


async def test_every_answer_of_the_ingest_endpoint_lets_browsers_read_it(edge):
    good = b'{"event_type": "seen", "user_id": "ann"}'
    post = {"method": "POST", "path": EVENTS}
    answers = {
        202: await edge.ask(**post, body=good),
        400: await edge.ask(**post, body=b"{"),
        405: await edge.ask("GET", EVENTS),
        413: await edge.ask(**post, body=b"[" + b",".join([good] * 101) + b"]"),
        415: await edge.ask(**post, body=good, headers=[("Content-Type", "text/plain")]),
        422: await edge.ask(**post, body=b"[]"),
        431: await edge.ask(**post, body=good, headers=[("X", "x" * MAX_HEADER)]),
    }
    edge.intake.fault = UnavailableError("no room", retry_after_s=7)
    answers[503] = await edge.ask(**post, body=good)
    edge.intake.fault = RuntimeError("the test wants it")
    answers[500] = await edge.ask(**post, body=good)
    for status, answer in answers.items():
        assert answer.status == status
        assert answer.header("access-control-allow-origin") == "*", status
        assert answer.header("access-control-allow-credentials") is None
        if status >= 400:
            assert answer.json()["error"]["code"]
    assert answers[503].header("retry-after") == "7"
    assert "the test wants it" not in answers[500].body.decode()
    encoded = await edge.ask(**post, body=b"\x1f\x8b", headers=[("Content-Encoding", "br")])
    assert encoded.status == 415
    assert encoded.header("access-control-allow-origin") == "*"


async def test_preflight(edge):
    asked = [
        ("Origin", "https://jupyter.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ]
    answer = await edge.ask("OPTIONS", EVENTS, headers=asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("access-control-allow-origin") == "*"
    assert answer.header("access-control-max-age") == "600"
    assert "POST" in answer.header("access-control-allow-methods")
    assert "content-type" in answer.header("access-control-allow-headers").lower()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_told_which_there_are(edge, method):
    answer = await edge.ask(method, EVENTS)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.header("allow") == "POST, OPTIONS"


async def test_the_answer_to_head_has_no_body(edge):
    async with edge.connect() as connection:
        for path, status in (("/livez", 200), ("/nowhere", 404), (EVENTS, 405), ("/api/v1/stream", 426), (BROKEN, 500)):
            await connection.send(request_bytes("HEAD", path, host=f"127.0.0.1:{edge.port}"))
            head = (await connection._until(b"\r\n\r\n")).decode()
            assert head.startswith(f"HTTP/1.1 {status} ")
            assert "content-length: " in head.lower()
            assert (await connection.request("GET", "/livez")).status == 200  # a body would come before it


async def test_the_query_does_not_change_the_route(edge):
    async with edge.connect() as connection:
        await connection.send(edge.post("q", path=f"{EVENTS}?from=page"))
        assert (await connection.answer()).status == 202


async def test_a_batch_is_refused_as_a_whole_when_it_cannot_be_kept_later_either(edge):
    """The journal takes the events, and its commit fails."""
    edge.intake.accept = lambda events, settle: settle(UnavailableError("disk full", retry_after_s=5))
    answer = await edge.ask("POST", EVENTS, body=b'{"event_type": "seen", "user_id": "ann"}')
    assert_error(answer, 503, "unavailable")
    assert answer.header("retry-after") == "5"


# --- other routes


async def test_other_routes_go_over_the_bridge(edge):
    answer = await edge.ask("GET", "/api/v1/classes/a-1/overview?x=%20")
    assert answer.status == 200
    assert answer.header("content-type") == "application/json"
    assert answer.json()["class_id"] == "a-1"
    answer = await edge.ask("GET", "/api/v1/users/ann%40x.org%2Fb/sessions")
    assert answer.json()["user_id"] == "ann@x.org/b"


async def test_an_unknown_route_and_method_have_the_shape_of_errors(edge):
    assert_error(await edge.ask("GET", "/nowhere"), 404, "not_found")
    answer = await edge.ask("POST", "/livez", body=b"{}")
    assert_error(answer, 405, "method_not_allowed")
    assert "GET" in answer.header("allow")
    assert_error(await edge.ask("GET", "/api/v1/classes/no%20class/overview"), 400, "bad_request")


async def test_a_route_that_fails_is_a_500_and_the_connection_goes_on(edge):
    async with edge.connect() as connection:
        answer = await connection.request("GET", BROKEN)
        assert_error(answer, 500, "internal")
        assert (await connection.request("GET", "/livez")).status == 200


async def test_an_unhealthy_daemon_says_so_by_its_status(edge):
    assert (await edge.ask("GET", "/api/v1/health")).status == 200
    edge.health = {"status": "degraded", "checks": {}}
    assert (await edge.ask("GET", "/api/v1/health")).status == 200
    edge.health = {"status": "unhealthy", "checks": {}}
    assert (await edge.ask("GET", "/api/v1/health")).status == 503


# --- the end


async def test_stop_closes_idle_connections_and_answers_what_is_in_hand(edge):
    edge.intake.holding = True
    async with edge.connect() as idle, edge.connect() as used, edge.connect() as busy, edge.connect() as half:
        assert (await used.request("GET", "/livez")).status == 200
        await busy.send(edge.post("a"))
        await edge.intake.until_held()
        late = edge.post("b")
        await half.send(late[:50])
        await trio.testing.wait_all_tasks_blocked(0.02)
        edge.server.stop()
        assert await idle.closed()
        assert await used.closed()
        await half.send(late[50:])
        await edge.intake.until_held(2)
        edge.intake.release()
        assert (await busy.answer()).status == 202
        assert await busy.closed()
        answer = await half.answer()
        assert (answer.status, answer.header("connection")) == (202, "close")
        assert await half.closed()
        with trio.fail_after(5):
            await edge.ended.wait()
        with pytest.raises(Disconnected):
            await Connection.open(edge.port)


async def test_stop_answers_what_was_pipelined(edge):
    edge.intake.holding = True
    async with edge.connect() as connection:
        await connection.send(edge.post("a") + edge.post("b"))
        await edge.intake.until_held()
        edge.server.stop()
        edge.intake.release()
        await edge.intake.until_held()
        edge.intake.release()
        assert (await connection.answer()).status == 202
        answer = await connection.answer()
        assert (answer.status, answer.header("connection")) == (202, "close")
        assert await connection.closed()
    with trio.fail_after(5):
        await edge.ended.wait()


# --- the hand-over to a WebSocket


def upgrade(edge, path="/api/v1/stream", *, method="GET", to="websocket"):
    headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", to),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    return request_bytes(method, path, host=f"127.0.0.1:{edge.port}", headers=headers)


def frame(text):
    """A client's text frame, masked with zeros (RFC 6455 section 5.2)."""
    payload = text.encode()
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def server_frame(connection):
    opcode, length = await connection._exactly(2)
    assert opcode == 0x81
    return json.loads(await connection._exactly(length))


SUBSCRIBE = frame('{"type":"subscribe","topics":["class:default"]}')


@pytest.mark.parametrize("way", ["one segment", "two segments", "frame cut in two", "after another request"])
async def test_a_frame_that_comes_with_the_request_is_not_lost(edge, way):
    async with edge.connect() as connection:
        connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way == "one segment":
            await connection.send(upgrade(edge) + SUBSCRIBE)
        elif way == "two segments":
            await connection.send(upgrade(edge))
            await connection.send(SUBSCRIBE)
        elif way == "frame cut in two":
            await connection.send(upgrade(edge) + SUBSCRIBE[:10])
            await connection.send(SUBSCRIBE[10:])
        else:
            await connection.send(edge.post("a") + edge.get("/livez") + upgrade(edge) + SUBSCRIBE)
            assert [(await connection.answer()).status for _ in range(2)] == [202, 200]
        head = await connection._until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        with trio.fail_after(5):
            assert await server_frame(connection) == {"subscribed": "class:default"}


async def test_frames_that_follow_the_request_closely_are_not_lost(edge):
    """Forty clients at once, so that reading, handing over and answering meet in every order."""

    async def client():
        async with edge.connect() as connection:
            connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await connection.send(upgrade(edge))
            await connection.send(SUBSCRIBE)
            assert (await connection._until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await server_frame(connection) == {"subscribed": "class:default"}

    with trio.fail_after(10):
        async with trio.open_nursery() as clients:
            for _ in range(40):
                clients.start_soon(client)


async def test_a_websocket_client_is_served(edge):
    async with open_websocket("127.0.0.1", edge.port, "/api/v1/stream", use_ssl=False) as websocket:
        await websocket.send_message('{"type":"ping"}')
        assert json.loads(await websocket.get_message()) == {"type": "pong"}


@pytest.mark.parametrize(
    "wrong",
    [{"path": "/api/v1/events"}, {"path": "/livez"}, {"method": "POST"}, {"to": "h2c"}, {"path": "/api/v1/stream/"}],
    ids=str,
)
async def test_nothing_else_upgrades(edge, wrong):
    answer = await edge.raw(upgrade(edge, **wrong))
    assert_error(answer, 400, "bad_upgrade")


async def test_after_stop_websockets_are_told_to_come_back(edge):
    async with await trio.open_tcp_stream("127.0.0.1", edge.port) as stream, trio.open_nursery() as nursery:
        websocket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{edge.port}", "/api/v1/stream")
        await websocket.send_message('{"type":"ping"}')
        await websocket.get_message()
        edge.server.stop()
        await edge.stream.close()
        with trio.fail_after(5):
            await edge.ended.wait()
        assert websocket.closed.code == 1012
