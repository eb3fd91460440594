"""Redis goes away, stalls, cuts and refuses: nobody who publishes waits, what is lost is counted, and it comes back."""

import time
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from adapters.asyncio_bridge import RedisLink, open_loop
from adapters.bus.backlog import Backlog
from adapters.bus.remote import RemoteBus
from engine.errors import StoreMisconfiguredError, StoreUnavailableError
from engine.measures import Histograms
from tests.e2e.postgres_server import free_port
from tests.e2e.waiting import eventually
from tests.servers.redis_server import Listener

CHANNEL = "progress_events"


@asynccontextmanager
async def running(url, *, max_connections=4, backlog=None, times=None):
    async with open_loop():
        bus = RemoteBus(RedisLink(url, max_connections=max_connections, times=times), backlog)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.run)
                yield bus
                nursery.cancel_scope.cancel()
        finally:
            await bus.close()


async def status(bus, wanted, within=10):
    async def reached():
        return bus.health["status"] == wanted

    await eventually(reached, within=within, what=f"{wanted}: {bus.health}")


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_while_it_is_away_nobody_waits_and_the_newest_go_out_after(make_redis, how):
    server = make_redis()
    async with running(server.url, backlog=Backlog(max_items=100)) as bus:
        await status(bus, "healthy")
        await trio.to_thread.run_sync(getattr(server, how))
        for n in range(1000):
            bus.publish([(CHANNEL, b"%d" % n)])
            bus.put(f"session:default:{n % 50}", b"%d" % n, 60)
            if n % 100 == 0:
                await trio.lowlevel.checkpoint()
        await status(bus, "unhealthy")
        began = time.monotonic()
        assert await bus.get("session:default:7") == b"957"  # its own writes are there all the same
        assert await bus.get("another") is None
        assert time.monotonic() - began < 2
        assert bus.health["error"]
        await trio.to_thread.run_sync(server.start if how == "kill" else server.resume)
        if how == "kill":
            async with Listener(server, CHANNEL) as listener:
                await status(bus, "healthy")
                bus.publish([(CHANNEL, b"last")])
                heard = [text for _, text in await listener.hears(1)]
                await server.until(lambda client: client.get("session:default:7") == b"957", what="the newest value")

                async def last_heard():
                    return listener.heard[-1][1] == b"last"

                await eventually(last_heard)
            assert all(int(text) >= 900 for text in heard if text != b"last")
            assert bus.dropped >= 800
        else:
            await status(bus, "healthy")
            await server.until(lambda client: client.get("session:default:7") == b"957", what="the newest value")


async def test_connections_that_are_killed_are_made_anew(redis_server):
    """What was under way when a connection was cut may be lost, and is counted; nothing comes twice or out of order."""
    async with running(redis_server.url) as bus, Listener(redis_server, CHANNEL) as listener:
        await status(bus, "healthy")
        published = 0

        def cut(client):
            mine = client.client_id()
            others = [
                each["id"] for each in client.client_list() if each["cmd"] != "subscribe" and each["id"] != str(mine)
            ]
            for each in others:
                client.client_kill_filter(_id=each)
            return bool(others)

        async def publish():
            nonlocal published
            while True:
                for _ in range(20):
                    bus.publish([(CHANNEL, b"%d" % published)])
                    published += 1
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for _ in range(100):
                await redis_server.until(cut, what="connections are cut")
            nursery.cancel_scope.cancel()

        async def accounted():
            return len(listener.heard) + bus.dropped >= published

        await eventually(accounted, within=30)
        bus.publish([(CHANNEL, b"%d" % published)])

        async def last():
            return listener.heard[-1][1] == b"%d" % published

        await eventually(last)
        heard = [int(text) for _, text in listener.heard]
        assert heard == sorted(set(heard))
        assert 0 < bus.dropped < published // 2, "no cut met anything under way"


async def test_a_refusal_is_told_once_and_stays_until_it_takes_something(make_redis):
    server = make_redis()
    server.do("ACL", "SETUSER", "pulse", "on", ">pw", "~*", "&*", "+@all", "-eval")
    url = server.url.replace("redis://", "redis://pulse:pw@")
    times = Histograms()

    def pinged():
        return sum(times.of("redis", "ping").counts)

    async def later(before):
        return pinged() > before

    with structlog.testing.capture_logs() as logs:
        async with running(url, times=times) as bus:
            await status(bus, "healthy")
            for _ in range(5):
                bus.publish([(CHANNEL, b"x")])
                await status(bus, "unhealthy")
                pings = pinged()
                await eventually(lambda before=pings: later(before), what="a ping of its own")
                assert bus.health["status"] == "unhealthy"
            assert "eval" in bus.health["error"]
            server.do("ACL", "SETUSER", "pulse", "+eval")
            bus.publish([(CHANNEL, b"x")])
            await status(bus, "healthy")
    assert [line["event"] for line in logs] == [
        "redis is away; what it is told meanwhile may be lost",
        "redis is there",
    ]
    assert logs[1]["dropped"] >= 1


async def test_a_start_without_it_names_the_fault_in_one_line(database):
    other = database.server.port
    for port, named in ((free_port(), "is away"), (other, "PostgreSQL answers there: correct redis.url")):
        with structlog.testing.capture_logs() as logs:
            async with running(f"redis://:s3cret@127.0.0.1:{port}") as bus:

                async def told(logs=logs):
                    return logs

                await eventually(told)
                await status(bus, "unhealthy")
        (line,) = logs
        assert named in line["reason"]
        assert "s3cret" not in str(logs)


async def test_the_pool_is_as_large_as_it_may_be_and_times_are_taken(redis_server):
    times = Histograms()
    async with running(redis_server.url, max_connections=3, times=times) as bus:
        await status(bus, "healthy")
        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(bus.get, f"key{n}")
        assert 1 <= bus.connections <= 3
    assert bus.connections == 0
    assert sum(times.by_labels["redis", "get"].counts) == 50
    assert sum(times.by_labels["redis", "ping"].counts) >= 1


async def test_a_stalled_server_costs_a_reader_no_more_than_its_patience(make_redis):
    server = make_redis()
    async with running(server.url) as bus:
        await status(bus, "healthy")
        await trio.to_thread.run_sync(server.pause)
        began = trio.current_time()
        assert await bus.get("x") is None
        assert trio.current_time() - began < 2
        await trio.to_thread.run_sync(server.resume)
        server.do("SET", "x", "1")

        async def back():
            return await bus.get("x") == b"1"

        await eventually(back)


async def test_errors_of_the_library_stop_here(make_redis):
    server = make_redis()
    async with open_loop():
        link = RedisLink(server.url, max_connections=1)
        with pytest.raises(StoreMisconfiguredError, match="unknown command"):
            await link.call("x", "NO_SUCH_COMMAND")
        with pytest.raises(StoreMisconfiguredError, match="WRONGTYPE"):
            await link.pipeline("x", [["SET", "a", "1"], ["HSET", "a", "b", "c"], ["SET", "z", "1"]])
        assert await link.call("x", "GET", "z") == b"1"  # the commands behind it ran
        server.kill()
        with pytest.raises(StoreUnavailableError, match="is away"):
            await link.call("x", "PING")
        await link.close()
        for url in ("redis://127.0.0.1:99999", "redis://127.0.0.1/0?socket_timeout=soon"):
            with pytest.raises(StoreMisconfiguredError, match=r"redis\.url cannot be used"):
                await RedisLink(url, max_connections=1).call("x", "PING")
