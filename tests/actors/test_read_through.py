"""Reading through a cache: one computation however many ask, failures not kept, broken values made anew."""

import pytest
import trio

from actors.read_through import CachedSeries, ReadThrough
from adapters.asyncio_bridge import RedisLink, open_loop
from adapters.bus.remote import RemoteBus
from adapters.memory import MemoryCache
from engine.errors import StoreUnavailableError
from engine.keys import summary_key
from tests.e2e.waiting import eventually

KEY = summary_key("default", "a.ipynb")


class Source:
    """Counts how often it is asked; each answer takes a while."""

    def __init__(self):
        self.asked = []
        self.error = None

    activity = errors = None  # nobody asks for them here

    async def notebook_summary(self, class_id, path):
        self.asked.append((class_id, path))
        number = len(self.asked)
        await trio.sleep(0.05)
        if self.error is not None:
            raise self.error
        return {"total_students": number, "cells": [{"cell_index": 0, "median_duration_ms": None}]}


class Forgetful(MemoryCache):
    """A cache that may lose anything does."""

    def put(self, key, value, ttl_s):
        pass


@pytest.fixture
def source():
    return Source()


async def ask_at_once(summaries, times):
    answers = []

    async def ask():
        try:
            answers.append(await summaries.notebook_summary("default", "a.ipynb"))
        except StoreUnavailableError as error:
            answers.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(ask)
    return answers


@pytest.mark.parametrize("cache", [MemoryCache, Forgetful])
async def test_many_who_ask_at_once_share_one_computation(autojump_clock, source, cache):
    summaries = CachedSeries(cache(), source)
    answers = await ask_at_once(summaries, 100)
    assert len(source.asked) == 1
    assert answers == [answers[0]] * 100
    assert answers[0]["total_students"] == 1
    assert summaries._read._flights == {}


async def test_an_answer_is_kept_for_five_minutes(autojump_clock, source):
    summaries = CachedSeries(MemoryCache(), source)
    first = await summaries.notebook_summary("default", "a.ipynb")
    await trio.sleep(290)
    assert await summaries.notebook_summary("default", "a.ipynb") == first
    assert await summaries.notebook_summary("default", "b.ipynb") != first
    assert await summaries.notebook_summary("other", "a.ipynb") != first
    await trio.sleep(11)
    assert (await summaries.notebook_summary("default", "a.ipynb"))["total_students"] == 4
    assert len(source.asked) == 4


async def test_a_failure_is_told_to_all_who_waited_and_not_kept(autojump_clock, source):
    summaries = CachedSeries(MemoryCache(), source)
    source.error = StoreUnavailableError("away")
    assert await ask_at_once(summaries, 10) == [source.error] * 10
    assert len(source.asked) == 1
    source.error = None
    assert (await summaries.notebook_summary("default", "a.ipynb"))["total_students"] == 2


async def test_who_goes_away_leaves_the_work_to_the_next(autojump_clock, source):
    summaries = CachedSeries(MemoryCache(), source)
    answers = []

    async def ask():
        answers.append(await summaries.notebook_summary("default", "a.ipynb"))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as impatient:
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel()
    assert [answer["total_students"] for answer in answers] == [2, 2]
    assert summaries._read._flights == {}


@pytest.mark.parametrize("broken", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":1}]'])
async def test_a_broken_value_is_made_anew(autojump_clock, source, broken):
    cache = MemoryCache()
    cache.put(KEY, broken, 60)
    summaries = CachedSeries(cache, source)
    assert (await summaries.notebook_summary("default", "a.ipynb"))["total_students"] == 1
    assert (await summaries.notebook_summary("default", "a.ipynb"))["total_students"] == 1
    assert len(source.asked) == 1


async def test_any_kind_of_value(autojump_clock):
    made = []

    async def compute():
        made.append([1, 2, 3])
        return made[0]

    read = ReadThrough(MemoryCache(), kind=list[int], ttl_s=10)
    assert await read.get("k", compute) == await read.get("k", compute) == [1, 2, 3]
    assert len(made) == 1


async def test_on_a_real_redis(redis_server, source):
    async with open_loop():
        bus = RemoteBus(RedisLink(redis_server.url, max_connections=5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            path = "week 1/ä:%.ipynb"
            key = summary_key("default", path)
            first, second = CachedSeries(bus, source), CachedSeries(bus, source)
            answer = await first.notebook_summary("default", path)
            await redis_server.until(lambda client: client.get(key), what="the summary in Redis")
            assert 290_000 < redis_server.do("PTTL", key) <= 300_000
            assert await second.notebook_summary("default", path) == answer  # as another daemon would
            assert len(source.asked) == 1
            redis_server.do("SET", key, "{broken")
            assert (await first.notebook_summary("default", path))["total_students"] == 2

            async def mended():
                return redis_server.do("GET", key).startswith(b'{"total_students":2')

            await eventually(mended)
            nursery.cancel_scope.cancel()
        await bus.close()
