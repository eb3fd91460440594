"""Both transports do the same."""

import gc
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from loadtest.errors import TransportError
from loadtest.target import Target
from loadtest.transports import TRANSPORTS
from tests.loadtest.peer import answer, serving


@pytest.fixture(params=TRANSPORTS)
def open_transport(request):
    return TRANSPORTS[request.param]


def always(*said):
    """Each in turn, the last again and again."""

    async def script(number, head, body):
        return said[min(number, len(said)) - 1]

    return script


@contextmanager
def collecting_never():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_post_and_its_answer(open_transport):
    async with serving(always(answer())) as peer, open_transport(Target(peer.url, key="secret")) as transport:
        line = transport.line()
        found = await line.post("/api/v1/events", b'[{"a":1}]')
        assert (found.status, found.body[:9]) == (202, b'{"status"')
        ((head, body),) = peer.requests
        assert head.startswith(b"POST /api/v1/events HTTP/1.1\r\n")
        assert body == b'[{"a":1}]'
        lines = head.lower().split(b"\r\n")
        assert b"content-type: application/json" in lines
        assert b"authorization: bearer secret" in lines
        assert f"host: {peer.url.removeprefix('http://')}".encode() in lines
        await line.aclose()


async def test_a_get(open_transport):
    async with serving(always(answer(200, b"[]"))) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        found = await line.get("/api/v1/health?a=b")
        assert (found.status, found.body) == (200, b"[]")
        assert peer.requests[0][0].startswith(b"GET /api/v1/health?a=b HTTP/1.1\r\n")
        await line.aclose()


async def test_a_connection_is_kept(open_transport):
    async with serving(always(answer())) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        for _ in range(5):
            await line.post("/", b"{}")
        assert (peer.connections, len(peer.requests)) == (1, 5)
        await line.aclose()


async def test_answers_leave_nothing_for_the_cyclic_collector():
    async with serving(always(answer())) as peer, TRANSPORTS["lean"](Target(peer.url)) as transport:
        line = transport.line()
        await line.post("/", b"{}")
        with collecting_never():
            for _ in range(100):
                await line.post("/", b"{}")
            assert gc.collect() < 100
        await line.aclose()


async def test_a_connection_that_the_server_ends_is_opened_again(open_transport):
    said = answer(202, b"{}", "Connection: close")
    async with serving(always(said)) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        assert [(await line.post("/", b"{}")).status for _ in range(3)] == [202] * 3
        assert peer.connections == 3
        await line.aclose()


async def test_a_request_that_is_cut_off_on_a_kept_connection_is_not_sent_again(open_transport):
    """It may have been taken: whoever sends again must know, and count it."""
    async with serving(always(answer(), None, answer())) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        await line.post("/", b"{}")
        with pytest.raises(TransportError):
            await line.post("/", b"{}")
        assert (await line.post("/", b"{}")).status == 202
        assert len(peer.requests) == 3
        await line.aclose()


async def test_a_connection_that_ended_while_it_was_idle_is_nobodys_fault(open_transport, nursery):
    ended = trio.Event()
    served = 0

    async def serve(stream):
        nonlocal served, ended
        served += 1
        await stream.receive_some()
        await stream.send_all(answer())
        await stream.aclose()
        ended.set()

    (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with open_transport(Target(url)) as transport:
        line = transport.line()
        for _ in range(3):
            assert (await line.post("/", b"{}")).status == 202
            await ended.wait()
            ended = trio.Event()
        await line.aclose()
    assert served == 3


async def test_chunks_and_interim_answers(open_transport):
    said = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    async with serving(always(said)) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        found = await line.post("/", b"{}")
        assert (found.status, found.body) == (202, b"{}")
        assert (await line.post("/", b"{}")).status == 202
        await line.aclose()


@pytest.mark.parametrize("status", [400, 429, 503])
async def test_refusals_are_answers(open_transport, status):
    async with serving(always(answer(status, b"{}"))) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        assert (await line.post("/", b"{}")).status == status
        await line.aclose()


@pytest.mark.parametrize("said", [None, b"HTTP/1.1 202 Acc", b"nonsense\r\n\r\n"])
async def test_no_whole_answer_is_an_error_and_the_next_request_goes_on_a_new_connection(open_transport, said):
    async def script(number, head, body):
        return answer() if number > 1 else said

    async with serving(script) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        with pytest.raises(TransportError):
            await line.post("/", b"{}")
        assert (await line.post("/", b"{}")).status == 202
        await line.aclose()


async def test_nobody_listens(open_transport, unused_port):
    async with open_transport(Target(f"http://127.0.0.1:{unused_port}")) as transport:
        line = transport.line()
        with pytest.raises(TransportError, match="no connection"):
            await line.post("/", b"{}")
        await line.aclose()


async def test_silence_is_given_up(open_transport, monkeypatch):
    monkeypatch.setattr("loadtest.transports.PATIENCE_S", 0.2)

    async def script(number, head, body):
        await trio.sleep_forever()

    async with serving(script) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        with pytest.raises(TransportError, match="no answer in time"):
            await line.post("/", b"{}")
        await line.aclose()


async def test_a_large_answer(open_transport):
    async with serving(always(answer(200, b"x" * 300_000))) as peer, open_transport(Target(peer.url)) as transport:
        line = transport.line()
        assert len((await line.get("/")).body) == 300_000
        await line.aclose()
