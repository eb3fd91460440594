"""Queries of what happened, from outside, against an oracle that reads the posted events."""

import itertools
import random
from urllib.parse import quote, urlencode

import pytest

from adapters.http.parameters import MAX_LIMIT
from engine.clock import parse_rfc3339, rfc3339, wall_clock
from engine.event import Event
from tests.adapters.series_oracle import SeriesOracle, assert_like
from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.postgres_server import PostgresServer, free_port
from tests.e2e.samples import activity, run
from tests.e2e.waiting import eventually

HOUR = 3_600_000
PATHS = ("a.ipynb", "ä b/c&d=1.ipynb")
_classes = itertools.count(1)


@pytest.fixture
def class_id():
    return f"queries{next(_classes)}"


def some_events(class_id, seed, count=120):
    """Two hours of four students, in any order."""
    dice = random.Random(seed)
    now = wall_clock()
    for _ in range(count):
        kind = dice.choice(["cell_executed"] * 6 + ["execution_error", "notebook_saved"])
        yield {
            **activity(f"student{dice.randrange(4)}", class_id=class_id),
            "event_type": kind,
            "timestamp": rfc3339(now - dice.randrange(2 * HOUR)),
            "notebook_path": dice.choice(PATHS),
            "session_id": dice.choice(["s1", "s2"]),
            "cell_index": dice.randrange(5),
            "has_error": dice.choice([None, False, False, True]),
            "execution_duration_ms": dice.choice([None, 3, dice.uniform(0, 500)]),
        }


def oracle_of(posted):
    """The daemon numbers events as they came."""
    fields = ("event_id", "event_type", "user_id", "class_id", "notebook_path", "cell_index", "has_error")
    return SeriesOracle(
        [
            (
                seq,
                Event(
                    time=parse_rfc3339(event["timestamp"]),
                    execution_duration_ms=event["execution_duration_ms"],
                    **{name: event[name] for name in fields},
                ),
            )
            for seq, event in enumerate(posted, 1)
        ]
    )


@pytest.fixture
async def posted(api, class_id):
    events = list(some_events(class_id, class_id))
    await api.accept(events)
    await api.wait_flushed()
    return events


@pytest.mark.parametrize("by", ["user_id", "notebook_path", "none"])
@pytest.mark.parametrize(("since", "every"), [("1h", "10m"), ("3h", "7m"), ("90s", "30s"), ("30d", "1d")])
@pytest.mark.parametrize("what", ["activity", "errors"])
async def test_series_are_those_of_the_posted_events(api, class_id, posted, what, since, every, by):
    query = urlencode({"class": class_id, "since": since, "every": every, "by": by})
    answer = await api.get(f"/api/v1/series/{what}?{query}")
    window = parse_rfc3339(answer["start"]), parse_rfc3339(answer["end"]), answer["every_ms"]
    assert window[0] % window[2] == 0
    assert window[1] - window[2] <= wall_clock()
    expected = getattr(oracle_of(posted), what)(class_id, *window, by)
    assert_like(answer["series"], expected)
    assert (answer["class_id"], answer["by"]) == (class_id, by)


async def test_series_have_the_contracts_defaults(api, class_id, posted):
    for what, defaults in (
        ("activity", {"since": "1h", "every": "10m", "by": "user_id"}),
        ("errors", {"since": "24h", "every": "1h", "by": "notebook_path"}),
    ):
        path = f"/api/v1/series/{what}"
        assert await api.get(f"{path}?class={class_id}") == await api.get(
            f"{path}?{urlencode({'class': class_id, **defaults})}"
        )


@pytest.mark.parametrize("path", PATHS)
async def test_a_notebooks_summary_is_that_of_the_posted_events(api, class_id, posted, path):
    answer = await api.get(f"/api/v1/notebooks/summary?{urlencode({'class': class_id, 'path': path})}")
    assert_like(answer, oracle_of(posted).summary(class_id, path, None))


async def test_a_given_size_of_a_notebook_is_what_progress_is_of(api, class_id):
    await api.accept([run(class_id=class_id, total_cells=8), run("bob", class_id=class_id, cell_index=1)])
    await api.wait_flushed()
    answer = await api.get(f"/api/v1/notebooks/summary?class={class_id}&path=intro.ipynb")
    assert (answer["total_students"], answer["total_cells"], answer["avg_progress"]) == (2, 8, 0.125)


async def test_what_nobody_knows_is_empty(api):
    assert (await api.get("/api/v1/series/activity?class=nobody"))["series"] == []
    assert (await api.get("/api/v1/classes/nobody/sessions"))["sessions"] == []
    assert await api.get("/api/v1/notebooks/summary?class=nobody&path=x") == {
        "total_students": 0,
        "avg_progress": 0.0,
        "total_cells": 0,
        "cells": [],
    }


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("series/activity?class=a+b", 400, "class: "),
        ("series/activity?since=1", 400, "since: "),
        ("series/activity?every=0m", 400, "every: "),
        ("series/errors?by=cell_id", 400, "by: must be one of user_id, notebook_path, none"),
        ("series/errors?since=30d&every=1m", 422, "43201 buckets are more than"),
        ("notebooks/summary?class=default", 400, "path: "),
        (f"notebooks/summary?path={'x' * 501}", 400, "path: "),
        ("classes/default/sessions?since=never", 400, "since: "),
        (f"classes/default/sessions?limit={MAX_LIMIT + 1}", 400, "limit: "),
        ("classes/default/sessions?cursor=abc", 400, "cursor: "),
    ],
)
async def test_what_cannot_be_answered_says_why(api, path, status, said):
    answer = await api.call("GET", f"/api/v1/{path}")
    assert answer.status == status, answer
    assert said in answer.json()["error"]["message"]
    assert set(answer.json()) == {"error"}


# Sessions of a class


async def pages(api, class_id, limit, since="24h"):
    found, cursor = [], ""
    while True:
        page = await api.get(f"/api/v1/classes/{class_id}/sessions?since={since}&limit={limit}{cursor}")
        assert len(page["sessions"]) <= limit
        found += page["sessions"]
        if "next_cursor" not in page:
            return found
        cursor = f"&cursor={quote(page['next_cursor'], safe='')}"


async def test_sessions_of_a_class_are_those_of_its_students(api, class_id, posted):
    names = {event["user_id"] for event in posted}
    expected = [each for name in names for each in await api.sessions(name, class_id)]
    expected.sort(key=lambda each: (each["started_at"], each["id"]), reverse=True)
    assert len(expected) == 16
    for limit in (1, 3, 16, 100):
        assert await pages(api, class_id, limit) == expected
    started = sorted(parse_rfc3339(each["started_at"]) for each in expected)
    minutes = (wall_clock() - started[8]) // 60_000 + 1
    assert len(await pages(api, class_id, 5, f"{minutes}m")) < 16


async def test_a_session_is_told_before_it_is_stored_and_with_its_name(class_id, database, data_dir):
    daemon = Daemon(data_dir, dsn=database.dsn, settings={"POSTGRES__FLUSH_INTERVAL_MS": "60000"})
    async with daemon:
        api = Api(daemon)
        await api.accept([run(class_id=class_id, user_name="Ann"), run("bob", class_id=class_id, session_id=None)])

        async def both():
            return len(await pages(api, class_id, 1)) == 2

        await eventually(both, what="both sessions")
        assert await database.value("select count(*) from learning_sessions") == 0
        by_user = {each["user_id"]: each for each in await pages(api, class_id, 10)}
        assert by_user["alice"]["user_name"] == "Ann"
        assert "user_name" not in by_user["bob"]
        assert (by_user["bob"]["cell_executions"], by_user["bob"]["notebook_path"]) == (1, "intro.ipynb")


async def test_a_session_that_began_earlier_after_all_is_told_once(api, class_id):
    now = wall_clock()
    await api.accept(run(class_id=class_id, timestamp=rfc3339(now - HOUR)))
    await api.wait_flushed()
    await api.accept(run(class_id=class_id, timestamp=rfc3339(now - 2 * HOUR)))

    async def moved():
        return [each["started_at"] for each in await pages(api, class_id, 10)] == [rfc3339(now - 2 * HOUR)]

    await eventually(moved, what="the session's new start")
    assert await pages(api, class_id, 10, "90m") == []


# With InfluxDB


@pytest.mark.parametrize("tags", ['["cell_index"]', "[]"])
async def test_where_influxdb_has_the_events_the_answers_are_the_same(
    class_id, database, influx_database, data_dir, tags
):
    settings = {
        "INFLUXDB__URL": influx_database.server.url,
        "INFLUXDB__API": "v1",
        "INFLUXDB__BUCKET": influx_database.name,
        "INFLUXDB__TAGS": tags,
        "INFLUXDB__FLUSH_INTERVAL_MS": "20",
    }
    events = list(some_events(class_id, 1))
    oracle = oracle_of(events)
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        api = Api(daemon)
        await api.accept(events)
        await api.wait_flushed()
        await api.wait_flushed(store="influxdb")
        assert await database.value("select count(*) from cell_executions") == 0
        for what, by in itertools.product(("activity", "errors"), ("user_id", "notebook_path", "none")):
            answer = await api.get(f"/api/v1/series/{what}?class={class_id}&since=3h&every=10m&by={by}")
            window = parse_rfc3339(answer["start"]), parse_rfc3339(answer["end"]), answer["every_ms"]
            assert_like(answer["series"], getattr(oracle, what)(class_id, *window, by))
        for path in PATHS:
            answer = await api.get(f"/api/v1/notebooks/summary?{urlencode({'class': class_id, 'path': path})}")
            assert_like(answer, oracle.summary(class_id, path, None))


async def test_without_influxdb_series_say_503(database, data_dir):
    settings = {
        "INFLUXDB__URL": f"http://127.0.0.1:{free_port()}",
        "INFLUXDB__API": "v1",
        "INFLUXDB__BUCKET": "x",
    }
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        for path in ("series/activity", "series/errors", "notebooks/summary?path=intro.ipynb"):
            answer = await Api(daemon).call("GET", f"/api/v1/{path}")
            assert answer.status == 503, (path, answer)
            assert answer.header("retry-after") == "1"
        await Api(daemon).get("/api/v1/classes/default/sessions")


# PostgreSQL away


async def test_without_postgresql_queries_say_503_and_come_back(make_data_dir):
    server = PostgresServer()
    with server:
        database = server.create_database()
        async with Daemon(make_data_dir(), dsn=database.dsn) as daemon:
            api = Api(daemon)
            await api.accept(run())
            await api.wait_flushed()
            paths = [
                "series/activity",
                "series/errors",
                "notebooks/summary?path=intro.ipynb",
                "classes/default/sessions",
            ]
            for path in paths:
                await api.get(f"/api/v1/{path}")
            await in_thread(server.kill)
            kept = paths[2]  # a summary is, for 300 s
            assert (await api.call("GET", f"/api/v1/{kept}")).status == 200
            paths[2] = "notebooks/summary?path=other.ipynb"
            for path in paths:
                answer = await api.call("GET", f"/api/v1/{path}")
                assert answer.status == 503, (path, answer)
                assert answer.header("retry-after") == "1"
                assert answer.json()["error"]["code"] == "store_unavailable"
            await in_thread(server.start)

            async def back():
                answers = [await api.call("GET", f"/api/v1/{path}") for path in paths]
                return all(answer.status == 200 for answer in answers)

            await eventually(back, within=30, what="queries")
