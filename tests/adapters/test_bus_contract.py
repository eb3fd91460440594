"""`engine.ports.Bus` and `Cache`: one suite for Redis, a real one, and the twins in memory."""

from urllib.parse import quote

import attrs
import pytest
import trio

from adapters.asyncio_bridge import RedisLink, open_loop
from adapters.bus.remote import RemoteBus
from adapters.memory import MemoryBus, MemoryCache
from engine.keys import connection_key, session_key, summary_key
from tests.e2e.waiting import eventually
from tests.servers.redis_server import Listener

CHANNEL = "progress_events"
ODD = ["a:b", "a%3Ab", "a b", "ä/ö ☃.ipynb", "*", "[x]", "a\nb", "'\"", "{tag}"]


@attrs.frozen
class Memory:
    bus: MemoryBus
    cache: MemoryCache

    async def listen(self, nursery):
        heard = []
        self.bus.listen(CHANNEL, heard.append)
        return heard


@attrs.frozen
class Redis:
    bus: RemoteBus
    cache: RemoteBus
    server: object

    async def listen(self, nursery):
        started = trio.Event()
        heard = []

        async def listen():
            async with Listener(self.server, CHANNEL) as listener:
                started.set()
                seen = 0
                while True:
                    await listener.hears(seen + 1, within=60)
                    heard.extend(text for _, text in listener.heard[seen:])
                    seen = len(heard)

        nursery.start_soon(listen)
        await started.wait()
        return heard


@pytest.fixture(params=["redis", "memory"])
async def harness(request):
    if request.param == "memory":
        yield Memory(MemoryBus(), MemoryCache())
        return
    server = request.getfixturevalue("redis_server")
    async with open_loop():
        bus = RemoteBus(RedisLink(server.url, max_connections=4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            yield Redis(bus, bus, server)
            nursery.cancel_scope.cancel()
        await bus.close()


async def test_messages_come_in_their_order(harness):
    async with trio.open_nursery() as nursery:
        heard = await harness.listen(nursery)
        wanted = [f'{{"n":{n}}} ä\0☃'.encode() for n in range(2000)]
        for message in wanted:
            harness.bus.publish([("nobody listens", message), (CHANNEL, message)])

        async def all_heard():
            return len(heard) >= len(wanted)

        await eventually(all_heard)
        assert heard == wanted
        nursery.cancel_scope.cancel()


async def test_a_value_is_there_at_once_and_until_it_is_replaced_or_forgotten(harness):
    cache = harness.cache
    assert await cache.get("session:a:b") is None
    cache.put("session:a:b", b"one", 60)
    assert await cache.get("session:a:b") == b"one"
    cache.put("session:a:b", b"\0two\xff", 60)
    assert await cache.get("session:a:b") == b"\0two\xff"
    cache.discard("session:a:b")
    cache.discard("never there")
    assert await cache.get("session:a:b") is None


async def test_a_value_ends_with_its_time(harness):
    harness.cache.put("short", b"x", 0.05)
    harness.cache.put("long", b"y", 60)

    async def gone():
        return await harness.cache.get("short") is None

    await eventually(gone)
    assert await harness.cache.get("long") == b"y"


async def test_fields_are_not_a_value(harness):
    harness.cache.put_fields("fields", {"a": "1", "b": ""}, 60)
    assert await harness.cache.get("fields") is None
    harness.cache.put("fields", b"a value in their place", 60)
    assert await harness.cache.get("fields") == b"a value in their place"
    harness.cache.put_fields("fields", {"a": "1"}, 60)
    assert await harness.cache.get("fields") is None


@pytest.mark.parametrize("make", [session_key, summary_key])
async def test_no_two_odd_names_share_a_key(harness, make):
    names = [(first, second) for first in ODD for second in ODD]
    for names_of in names:
        harness.cache.put(make(*names_of), repr(names_of).encode(), 60)
    for names_of in names:
        assert await harness.cache.get(make(*names_of)) == repr(names_of).encode()


def test_keys_are_percent_encoded():
    assert session_key("a:b", "ann @☃%") == "session:a%3Ab:ann%20%40%E2%98%83%25"
    assert summary_key("default", "week 1/ä.ipynb") == f"class_summary:default:{quote('week 1/ä.ipynb', safe='')}"
    assert connection_key("1:2") == "websocket_connections:1%3A2"
