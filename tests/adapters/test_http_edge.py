"""What clients may say, how large and how slow they may be, on the wire; beside `test_http`."""

import gzip
import json
import socket
import zlib

import pytest
import structlog
import trio

from tests.adapters.framing import BAD_FRAMING
from tests.adapters.test_http import (
    EVENTS,
    JSON,
    MAX_BODY,
    MAX_HEADER,
    Edge,
    assert_error,
    edge,
    upgrade,
)
from tests.e2e.wire import Disconnected, request_bytes

__all__ = ["edge"]  # a fixture
EVENT = b'{"event_id": "e", "event_type": "seen", "user_id": "ann"}'


@pytest.fixture
def make_edge(nursery):
    async def make(**settings):
        made = Edge(nursery)
        await made.start(**settings)
        return made

    return make


def post(edge, body, *headers):
    return request_bytes("POST", EVENTS, host=f"127.0.0.1:{edge.port}", headers=headers, body=body)


# --- versions and targets


async def test_http_1_0_is_told_that_the_connection_is_kept(edge):
    for request, status in (
        (b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200),
        (
            b"POST %b HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: %d\r\n\r\n%b"
            % (EVENTS.encode(), len(EVENT), EVENT),
            202,
        ),
    ):
        async with edge.connect() as connection:
            for _ in range(3):
                await connection.send(request)
                answer = await connection.answer()
                assert (answer.status, answer.header("connection")) == (status, "keep-alive")
            assert (await connection.request("GET", "/livez")).header("connection") is None
            await connection.send(request.replace(b"eep-", b"-"))
            assert (await connection.answer()).header("connection") == "close"
            assert await connection.closed()


async def test_the_absolute_form_names_its_own_host(edge):
    async with edge.connect() as connection:
        for target in (f"http://127.0.0.1:{edge.port}/livez", "HTTP://localhost/livez?x=1"):
            assert (await connection.request("GET", target, host="ignored.example")).status == 200
        assert (await connection.request("GET", "http://localhost")).status == 404  # as for "/"
        await connection.send(post(edge, EVENT).replace(b"POST /", b"POST http://localhost/"))
        assert (await connection.answer()).status == 202
    assert_error(await edge.ask("GET", "http://evil.example/livez"), 421)


@pytest.mark.parametrize("target", ["http://ann@localhost/livez", "ftp://localhost/livez", "rtsp://localhost/", "*"])
async def test_other_forms_of_targets_are_400(edge, target):
    assert_error(await edge.raw(edge.get(target)), 400, "malformed")


async def test_options_of_the_server_as_a_whole(edge):
    answer = await edge.ask("OPTIONS", "*")
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize(
    "asked",
    [
        {"Origin": "https://evil.example"},
        {"Access-Control-Request-Method": "POST"},
        {"Access-Control-Request-Headers": "authorization"},
    ],
    ids=str,
)
async def test_a_page_that_may_not_ask_is_told_in_the_shape_of_every_error(make_edge, asked):
    edge = await make_edge(cors_origins=["https://hub.example"])
    headers = {"Origin": "https://hub.example", "Access-Control-Request-Method": "GET"}
    assert (await edge.ask("OPTIONS", "/livez", headers=list(headers.items()))).status == 200
    assert_error(await edge.ask("OPTIONS", "/livez", headers=list((headers | asked).items())), 400, "cors_refused")


async def test_the_stream_without_an_upgrade_is_426(edge):
    answer = await edge.ask("GET", "/api/v1/stream")
    assert_error(answer, 426, "upgrade_required")
    assert answer.header("upgrade") == "websocket"


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 8", 426),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", 400),
        (b"Version: 13\r\n", b"Version: 13\r\nSec-WebSocket-Protocol: classpulse.v1, cl\xc3\xa9\r\n", 400),
        (b"Version: 13\r\n", b"Version: 13\r\nSec-WebSocket-Extensions: \xe9\r\n", 400),
        (b"Version: 13\r\n", b"Version: 13\r\nConnection: \xe9\r\n", 400),
        (b"Version: 13\r\n", b"Version: 13\r\nUpgrade: \xe9\r\n", 400),
        (b"Version: 13\r\n", b"Version: 13\r\nSec-WebSocket-Version: 8\r\n", 426),
        (b"Sec-WebSocket-Key", b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Key", 400),
        (b"HTTP/1.1", b"HTTP/1.0", 400),
    ],
    ids=repr,
)
async def test_what_is_no_handshake_is_told_why(edge, old, new, status):
    assert old in upgrade(edge)
    with structlog.testing.capture_logs() as logs:
        answer = await edge.raw(upgrade(edge).replace(old, new))
    assert_error(answer, status, {400: "bad_upgrade", 426: "upgrade_required"}[status])
    asked = ("websocket", "13") if status == 426 else (None, None)
    assert (answer.header("upgrade"), answer.header("sec-websocket-version")) == asked
    assert not logs


@pytest.mark.parametrize(
    "extra", [b"Cookie: name=\xe9", b"Connection: keep-alive", b"Upgrade: h2c", b"Sec-WebSocket-Extensions: x; y=1"]
)
async def test_what_has_nothing_to_do_with_the_handshake_does_not_hinder_it(edge, extra):
    async with edge.connect() as connection:
        await connection.send(upgrade(edge)[:-2] + extra + b"\r\n\r\n")
        assert (await connection._until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("target", "host"),
    [(b"/api/v1/stream", b"xn--80a1acny.xn--p1ai:8765"), (b"http://localhost/api/v1/stream", b"xn--a")],
)
async def test_names_that_no_codec_knows_listen_too(make_edge, target, host):
    edge = await make_edge(allowed_hosts=("xn--80a1acny.xn--p1ai", "localhost"))
    head = upgrade(edge).replace(b"/api/v1/stream", target).replace(b"127.0.0.1:%d" % edge.port, host)
    async with edge.connect() as connection:
        await connection.send(head)
        assert (await connection._until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "user", ["a\nb", "a/b", "/", "a/sessions", "%2F", "ünï", "\u200b", "a?b#c", "..", "__proto__", "\0"]
)
async def test_user_ids_of_any_characters(edge, user):
    path = "".join(f"%{byte:02X}" for byte in user.encode())
    answer = await edge.ask("GET", f"/api/v1/users/{path}/sessions?class=default")
    assert (answer.status, answer.json()["user_id"]) == (200, user)


# --- framing that the parser may let through


async def test_nothing_behind_bad_framing_is_a_request(edge):
    """Smuggling: what one reader takes for a body must not be a request to another."""
    for data in BAD_FRAMING.values():
        async with edge.connect() as connection:
            await connection.send(data.replace(b"Host: h", b"Host: 127.0.0.1") + post(edge, EVENT))
            assert (await connection.answer()).status == 400
            assert await connection.closed()
    assert edge.intake.ids == []


@pytest.mark.parametrize(
    "extra", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
async def test_an_upgrade_with_a_body_is_400(edge, extra):
    assert_error(await edge.raw(upgrade(edge)[:-2] + extra), 400, "bad_upgrade")


async def test_chunk_extensions_are_ignored_up_to_a_bound(edge):
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with edge.connect() as connection:
        await connection.send(head + b'%x;a=b;c="d e"\r\n%b\r\n0;last\r\nTrailer: x\r\n\r\n' % (len(EVENT), EVENT))
        assert (await connection.answer()).status == 202
        await connection.send(head)
        await connection.send((b"1;" + b"x" * MAX_HEADER + b"\r\n \r\n") * 10)
        assert_error(await connection.answer(), 431, "headers_too_large")
    assert edge.intake.ids == ["e"]


# --- expectations


async def test_100_continue_only_when_the_body_will_be_read(edge):
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\n"
    async with edge.connect() as connection:
        for framing in (f"Content-Length: {len(EVENT)}", "Transfer-Encoding: chunked"):
            await connection.send(f"{head}{framing}\r\n\r\n".encode())
            assert (await connection.answer()).status == 100
            await connection.send(EVENT if "Length" in framing else b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT))
            assert (await connection.answer()).status == 202
        # A client that does not wait is not told to go on, nor is one without a body.
        await connection.send(f"{head}Content-Length: {len(EVENT)}\r\n\r\n".encode() + EVENT)
        assert (await connection.answer()).status == 202
        await connection.send(f"{head}Content-Length: 0\r\n\r\n".encode())
        assert (await connection.answer()).status == 400
        await connection.send(f"{head}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        assert_error(await connection.answer(), 413, "body_too_large")
        assert await connection.closed()
    assert len(edge.intake.ids) == 3


async def test_100_continue_comes_after_the_answers_before_it(edge):
    edge.intake.holding = True
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(EVENT)}\r\n\r\n"
    async with edge.connect() as connection:
        await connection.send(post(edge, EVENT) + edge.get("/livez") + head.encode())
        await edge.intake.until_held()
        await trio.testing.wait_all_tasks_blocked()
        edge.intake.release()
        assert [(await connection.answer()).status for _ in range(3)] == [202, 200, 100]
        await connection.send(EVENT)
        await edge.intake.until_held()
        edge.intake.release()
        assert (await connection.answer()).status == 202


async def test_other_expectations_are_417_and_http_1_0_has_none(edge):
    assert_error(await edge.raw(edge.get("/livez", ("Expect", "cake"))), 417, "expectation_failed")
    assert (await edge.raw(b"GET /livez HTTP/1.0\r\nExpect: cake\r\n\r\n")).status == 200
    waits = f"POST {EVENTS} HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: {len(EVENT)}\r\n\r\n".encode()
    assert (await edge.raw(waits + EVENT)).status == 202


@pytest.mark.parametrize("cut", [None, 30])
async def test_a_length_past_the_limit_is_refused_before_the_body(edge, cut):
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode()
    async with edge.connect() as connection:
        if cut is not None:
            await connection.send(head[:cut])
            await trio.testing.wait_all_tasks_blocked(0.01)
        await connection.send(head[cut or 0 :])
        assert_error(await connection.answer(), 413, "body_too_large")


# --- gzip

GZIP = (*JSON, ("Content-Encoding", "gzip"))


async def test_gzip_bodies(edge):
    many = b"[" + b",".join([EVENT] * 100) + b"]"
    async with edge.connect() as connection:
        for body, headers, accepted in (
            (gzip.compress(EVENT), GZIP, 1),
            (gzip.compress(many), GZIP, 100),
            (gzip.compress(EVENT), (("content-encoding", " X-GZip "),), 1),
            (gzip.compress(EVENT[:9]) + gzip.compress(b"") + gzip.compress(EVENT[9:]), GZIP, 1),
            (gzip.compress(EVENT + b"\n") * 3, (("Content-Type", "application/x-ndjson"), GZIP[1]), 3),
            (EVENT, (("Content-Encoding", "identity"),), 1),
        ):
            await connection.send(post(edge, body, *headers))
            answer = await connection.answer()
            assert (answer.status, answer.json()["accepted"]) == (202, accepted)


@pytest.mark.parametrize(
    "body",
    [
        EVENT,
        b"",
        gzip.compress(EVENT)[:-1],
        gzip.compress(EVENT) + b"junk",
        gzip.compress(EVENT)[:-8] + b"\0" * 8,
        zlib.compress(EVENT),
        gzip.compress(b"") * 101,
    ],
    ids=["plain", "empty", "cut", "junk behind", "checksum", "zlib", "members"],
)
async def test_bad_gzip_is_400(edge, body):
    async with edge.connect() as connection:
        await connection.send(post(edge, body, *GZIP))
        assert_error(await connection.answer(), 400, "malformed")
        assert (await connection.request("GET", "/livez")).status == 200


async def test_the_limit_holds_for_what_a_body_inflates_to(edge):
    async with edge.connect() as connection:
        await connection.send(post(edge, gzip.compress(EVENT.ljust(MAX_BODY)), *GZIP))
        assert (await connection.answer()).status == 202
        for bomb in (
            gzip.compress(EVENT.ljust(MAX_BODY + 1)),
            gzip.compress(EVENT.ljust(MAX_BODY)) + gzip.compress(b" "),
            gzip.compress(b" " * 5_000_000),
            gzip.compress(b" " * 5_000_000)[:-4] + bytes(4),  # which says of itself that it is empty
        ):
            await connection.send(post(edge, bomb, *GZIP))
            assert_error(await connection.answer(), 413, "body_too_large")


@pytest.mark.parametrize("headers", [["br"], ["gzip, gzip"], ["gzip", "gzip"], ["deflate"]], ids=str)
async def test_other_encodings_are_415_and_told_what_is_understood(edge, headers):
    encoded = [("Content-Encoding", value) for value in headers]
    answer = await edge.ask("POST", EVENTS, headers=encoded, body=gzip.compress(EVENT))
    assert_error(answer, 415, "unsupported_encoding")
    assert answer.header("accept-encoding") == "gzip"


# --- time


async def test_an_idle_connection_is_closed_without_a_word(make_edge):
    edge = await make_edge(idle_timeout_s=0.2)
    async with edge.connect() as never, edge.connect() as once:
        assert (await once.request("GET", "/livez")).status == 200
        assert await never.closed()
        assert await once.closed()


async def test_what_is_not_idle_is_not_closed(make_edge):
    edge = await make_edge(idle_timeout_s=0.4)
    edge.intake.holding = True
    async with edge.connect() as quiet, edge.connect() as waiting, edge.connect() as busy:
        await waiting.send(post(edge, EVENT))
        with trio.move_on_after(10):
            async with trio.open_nursery() as asking:

                async def ask():
                    while True:
                        assert (await busy.request("GET", "/livez")).status == 200

                asking.start_soon(ask)
                assert await quiet.closed()
                asking.cancel_scope.cancel()
        edge.intake.release()
        assert (await waiting.answer()).status == 202


@pytest.mark.parametrize("start", ["G", "GET /livez HTTP/1.1\r\nHost: localhost\r\nx: "])
async def test_a_slow_head_is_408_however_steadily_it_comes(make_edge, start):
    edge = await make_edge(header_timeout_s=0.3)
    async with edge.connect() as connection, trio.open_nursery() as nursery:
        await connection.send(edge.get("/livez"))
        assert (await connection.answer()).status == 200
        await connection.send(start.encode())

        async def drip():
            while True:
                await trio.sleep(0.05)
                await connection.send(b"E" if start == "G" else b"x")

        if start != "G":
            nursery.start_soon(drip)
        answer = await connection.answer()
        nursery.cancel_scope.cancel()
    assert_error(answer, 408, "timeout")
    assert answer.header("connection") == "close"


async def test_a_slow_body_is_408_however_steadily_it_comes(make_edge):
    edge = await make_edge(body_timeout_s=0.3)
    async with edge.connect() as connection, trio.open_nursery() as nursery:
        await connection.send(post(edge, EVENT.ljust(1000))[:-900])

        async def drip():
            while True:
                await trio.sleep(0.05)
                await connection.send(b" ")

        nursery.start_soon(drip)
        answer = await connection.answer()
        nursery.cancel_scope.cancel()
    assert_error(answer, 408, "timeout")
    assert answer.header("connection") == "close"
    assert edge.intake.ids == []


async def test_a_peer_that_does_not_read_is_let_go(make_edge):
    edge = await make_edge(idle_timeout_s=0.3)
    edge.live.size = 20_000_000
    async with edge.connect() as connection:
        await connection.send(edge.get("/api/v1/classes/default/overview"))
        with trio.fail_after(10):
            while not edge.server.unsent_bytes:
                await trio.lowlevel.checkpoint()
            while edge.server.unsent_bytes:
                await trio.sleep(0.01)
            with pytest.raises(Disconnected):
                await connection.answer()


# --- how many


async def test_past_the_most_connections_a_new_one_is_answered_503(make_edge):
    edge = await make_edge(max_connections=2)
    async with edge.connect() as one, edge.connect() as two:
        for connection in (one, two):
            assert (await connection.request("GET", "/livez")).status == 200
        answer = await edge.raw(edge.get("/livez"))
        assert_error(answer, 503, "overloaded")
        assert (answer.header("retry-after"), answer.header("connection")) == ("1", "close")
        assert answer.header("access-control-allow-origin") == "*"
        await one.reset()
        with trio.fail_after(10):
            while (await edge.ask("GET", "/livez")).status == 503:
                pass
        assert (await two.request("GET", "/livez")).status == 200


async def test_answers_that_nobody_reads_are_bounded(edge):
    edge.live.size = 30_000_000
    query = edge.get("/api/v1/classes/default/overview")
    async with edge.connect() as one, edge.connect() as two, edge.connect() as three:
        for connection in (one, two, three):
            await connection.send(query)
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert_error(await edge.raw(query), 503, "overloaded")
        assert (await edge.ask("POST", EVENTS, body=EVENT)).status == 202
        for connection in (one, two, three):
            assert len((await connection.answer()).json()["filler"]) == 30_000_000
        assert (await edge.ask("GET", "/api/v1/classes/default/overview")).status == 200


# --- proxies and names

PROXY = [
    ("X-Forwarded-For", "203.0.113.9, 192.0.2.1"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "pulse.example"),
]


@pytest.mark.parametrize(
    "headers",
    [
        PROXY,
        [("Forwarded", 'for=192.0.2.1;host=evil.example, for="[2001:db8::1]:80";proto=https;host="pulse.example"')],
    ],
    ids=["x-forwarded", "forwarded"],
)
async def test_a_trusted_proxy_says_which_host_was_asked_for(make_edge, headers):
    edge = await make_edge(trusted_proxies=("127.0.0.0/8",), allowed_hosts=("pulse.example",))
    assert (await edge.ask("GET", "/livez", headers=headers, host="backend:8765")).status == 200
    assert_error(await edge.ask("GET", "/livez", host="backend:8765"), 421)
    foreign = [(name, value.replace("pulse.example", "evil.example")) for name, value in headers]
    assert_error(await edge.ask("GET", "/livez", headers=foreign, host="pulse.example"), 421)


async def test_another_peer_is_not_believed(make_edge):
    edge = await make_edge(trusted_proxies=("192.0.2.0/24", "::1"), allowed_hosts=("pulse.example",))
    assert_error(await edge.ask("GET", "/livez", headers=PROXY, host="backend"), 421)
    assert (await edge.ask("GET", "/livez", headers=[("X-Forwarded-Host", "evil")], host="pulse.example")).status == 200


async def test_forwarded_requests_are_refused_where_they_must_be_even_from_a_trusted_proxy(make_edge):
    edge = await make_edge(trusted_proxies=("127.0.0.1",), refuse_forwarded=True)
    for header in PROXY:
        assert_error(await edge.ask("GET", "/livez", headers=[header]), 403, "forwarded")


async def test_the_public_urls_host_is_answered(make_edge):
    for url, host in (("https://Pulse.example:8443/", "pulse.EXAMPLE"), ("http://[2001:db8::1]:80", "[2001:db8::1]")):
        edge = await make_edge(public_url=url)
        for name in (host, f"{host}:443", "localhost"):
            assert (await edge.ask("GET", "/livez", host=name)).status == 200
        assert (await edge.ask("GET", "/livez", host="other.example")).status == 421


async def test_no_task_is_left_when_clients_are_gone(edge):
    """Each connection has one task; whatever became of it, it ends."""
    assert (await edge.raw(edge.get("/livez", ("Connection", "close")))).status == 200
    await trio.testing.wait_all_tasks_blocked(0.05)
    before = trio.lowlevel.current_statistics().tasks_living
    for data in [*BAD_FRAMING.values(), b"GET", post(edge, EVENT)[:-5], upgrade(edge), b"", edge.get("/livez")]:
        async with edge.connect() as connection:
            await connection.send(data.replace(b"Host: h", b"Host: 127.0.0.1"))
            connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await trio.testing.wait_all_tasks_blocked(0.001)
            await connection.reset()
    with trio.fail_after(10):
        while trio.lowlevel.current_statistics().tasks_living > before:
            await trio.sleep(0.01)
    assert json.loads((await edge.ask("GET", "/livez")).body) == {"status": "alive"}
