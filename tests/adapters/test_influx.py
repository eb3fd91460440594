"""The InfluxDB store: InfluxDB 1.6 says what points mean, VictoriaMetrics that v2's format is taken, and a scripted
peer gives the answers of 2.x that neither of them does.
"""

import email.utils
from functools import partial
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from actors.bisection import Bisection
from actors.mailboxes import Mailboxes
from adapters.influx import senders
from adapters.influx.store import InfluxStore
from adapters.influx.target import Target
from adapters.memory import MemorySeries
from engine.clock import wall_clock
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.measures import Histograms
from engine.ports import Sample
from tests.adapters.events import NOW, event, run
from tests.adapters.flushes import Feed
from tests.e2e.postgres_server import free_port
from tests.servers.influx_server import InfluxServer
from tests.servers.scripted import Reply, ScriptedPeer

SAMPLE = Sample("default", "ann", "a.ipynb", NOW, 3, 8, 37.5, 60_000, 1.5, 2.5, 0.25)


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def make_store():
    def make(url, *, api="v1", clock=wall_clock, index_is_tag=True, times=None, **target):
        target = {"bucket": "b", "org": "o" if api == "v2" else "", **target}
        return InfluxStore(Target(url=url, api=api, **target), index_is_tag=index_is_tag, clock=clock, times=times)

    return make


@pytest.fixture(scope="module")
def guarded(require_tool):
    with InfluxServer(require_tool("influxd"), password="s3cret") as server:
        server.query("create user reader with password 'r'")
        yield server


# --- what is written, on a real server


@pytest.fixture
async def v1(influx_database, make_store):
    store = make_store(influx_database.server.url, bucket=influx_database.name)
    await store.open()
    yield store
    await store.close()


async def test_cell_events_and_samples_are_points_and_other_events_are_not(v1, influx_database, feed):
    await v1.ping()
    await v1.write(feed.flush(event(), run(has_error=True, error_message="E: no"), run("bob"), samples=[SAMPLE]))
    points = await influx_database.points("select * from cell_executions")
    assert [(point["user_id"], point["has_error"], point["time"]) for point in points] == [
        ("ann", True, NOW * 10**6 + 2),
        ("bob", False, NOW * 10**6 + 3),
    ]
    (progress,) = await influx_database.points("select * from learning_progress")
    assert progress == {
        "time": NOW * 10**6, "class_id": "default", "user_id": "ann", "notebook_path": "a.ipynb",
        "completed_cells": 3, "total_cells": 8, "progress_percentage": 37.5, "session_duration_ms": 60_000,
    }  # fmt: skip
    (metrics,) = await influx_database.points("select * from performance_metrics")
    assert (metrics["cell_type"], metrics["error_rate"], metrics["max_execution_time"]) == ("code", 0.25, 2.5)


async def test_what_is_written_again_is_the_same_point(v1, influx_database, feed):
    flush = feed.flush(*(run("ab"[n % 2]) for n in range(4000)))
    for _ in range(2):
        await v1.write(flush)
    (row,) = await influx_database.points("select count(has_error) from cell_executions")
    assert row["count"] == 4000  # all in one millisecond


async def test_a_flush_without_cell_events_asks_nobody(make_store, feed):
    await make_store(f"http://127.0.0.1:{free_port()}").write(feed.flush(event(), event()))


async def test_points_past_the_retention_policy_are_let_go(influx_database, make_store, feed):
    influx_database.server.query(f"create retention policy short on {influx_database.name} duration 1h replication 1")
    store = make_store(influx_database.server.url, bucket=f"{influx_database.name}/short")
    now = wall_clock()
    await store.write(feed.flush(run(time=now), run(time=now - 7_200_000), run(time=now)))
    (row,) = await influx_database.points("select count(has_error) from short.cell_executions")
    assert row["count"] == 2
    await store.close()


async def written_in_parts(store, flush, mailboxes):
    """As the writer does when a flush is refused."""
    with pytest.raises(StoreDataError):
        await store.write(flush)
    await Bisection(store, flush, 0, mailboxes, keeps_letters=False).write()
    return mailboxes.dead_letters.take_all()


@pytest.mark.parametrize("kind", ["influx", "memory"])
async def test_a_point_that_is_refused_is_alone_in_the_end(kind, request, feed):
    """The database has `has_error` of one notebook as a number: such points cannot be in it."""
    events = [run("ab"[n % 2], notebook_path=f"{n}.ipynb") for n in range(20)]
    bad = {3, 4, 19}
    flush = feed.flush(*events, samples=[SAMPLE])
    if kind == "memory":
        store = MemorySeries()
        store.refuses = lambda each: events.index(each) in bad
        letters = await written_in_parts(store, flush, Mailboxes())
        kept = {each.notebook_path for each in store.points.values()}
        assert len(store.samples) == 1
    else:
        database = request.getfixturevalue("influx_database")
        store = request.getfixturevalue("make_store")(database.server.url, bucket=database.name)
        # A type belongs to a measurement in a shard: points of another week do not meet.
        for n in bad:
            events[n].time = NOW - 20 * 86_400_000
        flush = Feed().flush(*events, samples=[SAMPLE])
        database.write(f"cell_executions has_error=1 {(NOW - 20 * 86_400_000) * 10**6}")
        letters = await written_in_parts(store, flush, Mailboxes())
        points = await database.points(f"select has_error, notebook_path from cell_executions where time >= {NOW}ms")
        kept = {point["notebook_path"] for point in points}
        assert len(await database.points("select * from learning_progress")) == 1
        assert {letter.error_type for letter in letters.values()} == {"FieldTypeConflict"}
        await store.close()
    assert kept == {f"{n}.ipynb" for n in range(20)} - {f"{n}.ipynb" for n in bad}
    assert {seq - 1: letter.event for seq, letter in letters.items()} == {n: events[n] for n in bad}
    assert {letter.place for letter in letters.values()} == {f"store:{store.name}"}


async def test_it_counts_its_requests(influx_database, make_store, feed):
    times = Histograms()
    store = make_store(influx_database.server.url, bucket=influx_database.name, times=times)
    await store.ping()
    await store.write(feed.flush(run()))
    await store.close()
    assert {labels: sum(histogram.counts) for labels, histogram in times.by_labels.items()} == {
        ("influxdb", "ping"): 1,
        ("influxdb", "write"): 1,
    }


# --- who may, and where: each named in one line


@pytest.mark.parametrize("token", ["admin:s3cret", "reader:r"])
async def test_a_password_that_is_right(guarded, make_store, feed, token):
    database = guarded.create_database()
    guarded.query(f"grant write on {database.name} to reader")
    store = make_store(guarded.url, bucket=database.name, token=token)
    await store.open()
    await store.write(feed.flush(run()))
    assert (await store.check()).faults == ()
    assert len(await database.points("select * from cell_executions")) == 1
    await store.close()


@pytest.mark.parametrize(
    ("token", "bucket", "message"),
    [
        ("admin:wrong", "test_1", "InfluxDB: token refused by {url}: check influxdb.token"),
        ("", "test_1", "InfluxDB: token refused by {url}: check influxdb.token"),
        ("reader:r", "none", "InfluxDB: database 'none' not found at {url}: create it, or correct influxdb.bucket"),
        ("reader:r", "closed", "InfluxDB: token may not write to database 'closed' at {url}"),
        ("admin:s3cret", "closed/zz", "InfluxDB: database 'closed/zz' has no such retention policy at {url}"),
    ],
)
async def test_who_may_not_is_told_so_in_one_line(guarded, make_store, feed, token, bucket, message):
    guarded.query("create database closed")
    store = make_store(guarded.url, bucket=bucket, token=token)
    message = message.format(url=guarded.url)
    for attempt in (store.open, store.check, partial(store.write, feed.flush(run()))):
        with pytest.raises(StoreRefusedError) as refused:
            await attempt()
        assert str(refused.value) == message
    assert "s3cret" not in repr(store._target)
    await store.close()


async def test_the_wrong_api_or_server_is_told(influx_database, make_store):
    url = influx_database.server.url
    store = make_store(url, api="v2", bucket=influx_database.name)
    with pytest.raises(StoreRefusedError, match="has no v2 API: check"):
        await store.open()
    await store.close()


async def test_a_server_that_is_away_is_told(make_store, feed):
    for api in ("v1", "v2"):
        store = make_store(f"http://127.0.0.1:{free_port()}", api=api)
        for attempt in (store.open, store.ping, store.check, partial(store.write, feed.flush(run()))):
            with pytest.raises(StoreUnavailableError, match="is away"):
                await attempt()
        await store.close()


async def test_a_check_tells_version_place_and_clock(influx_database, make_store):
    store = make_store(influx_database.server.url, bucket=influx_database.name)
    found = await store.check()
    assert found.server.startswith("InfluxDB 1.6.")
    assert f"may write to database '{influx_database.name}'" in found.notes
    assert abs(found.clock_ms) < 5000
    store._clock = lambda: wall_clock() - 60_000
    assert 58_000 < (await store.check()).clock_ms < 62_000
    await store.close()


# --- v2: the format, on a server that takes it


async def test_v2s_format_is_taken(victoria, make_store, feed):
    store = make_store(victoria.url, api="v2", token="any")
    await store.open()
    user = "v2 wire,=\U0001f600"
    await store.write(feed.flush(run(user, execution_duration_ms=12.5), run(user, time=NOW + 1, has_error=True)))
    (series,) = [
        each for each in await trio.to_thread.run_sync(victoria.series, "cell_executions_has_error")
        if each["metric"]["user_id"] == user
    ]  # fmt: skip
    assert series["timestamps"] == [NOW, NOW + 1]
    assert series["values"] == [0, 1]
    assert (series["metric"]["notebook_path"], series["metric"]["cell_index"]) == ("a.ipynb", "0")
    await store.close()


# --- answers of 2.x, from a peer that plays it


@pytest.fixture
async def peer(nursery):
    peer = ScriptedPeer(lambda request: Reply())
    await nursery.start(peer.run)
    return peer


def said(code, message):
    return f'{{"code": "{code}", "message": "{message}"}}'


async def test_v2_writes_what_the_api_asks_for(peer, make_store, feed):
    store = make_store(peer.url, api="v2", token="t0k", org="my org", bucket="my bucket")
    await store.open()
    await store.write(feed.flush(run(), run("bob")))
    probe, write = peer.requests
    for request in (probe, write):
        assert request.method == "POST"
        assert urlsplit(request.target).path == "/api/v2/write"
        assert parse_qs(urlsplit(request.target).query) == {
            "org": ["my org"],
            "bucket": ["my bucket"],
            "precision": ["ns"],
        }
        assert request.headers["authorization"] == "Token t0k"
    assert probe.body == b""
    assert write.headers["content-encoding"] == "gzip"
    assert [line.partition(",")[0] for line in write.text.split("\n")] == ["cell_executions"] * 2
    await store.close()


async def test_v1_writes_what_the_api_asks_for(peer, make_store, feed):
    store = make_store(peer.url, token="me:pass word", bucket="db/policy")
    await store.write(feed.flush(run()))
    (write,) = peer.requests
    assert parse_qs(urlsplit(write.target).query) == {"db": ["db"], "rp": ["policy"], "precision": ["ns"]}
    assert urlsplit(write.target).path == "/write"
    assert write.headers["authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert write.text.startswith("cell_executions,")
    await store.close()


async def test_2x_says_that_an_empty_write_is_empty_after_it_looked_at_the_rest(peer, make_store):
    peer.answer = lambda request: Reply(400, said("invalid", "writing requires points"))
    store = make_store(peer.url, api="v2")
    await store.open()
    peer.answer = lambda request: Reply(400, "<html>what?</html>")
    with pytest.raises(StoreRefusedError):
        await store.open()
    await store.close()


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (Reply(401, said("unauthorized", "unauthorized access")), StoreRefusedError, "token refused by {url}: check influxdb.token"),
        (Reply(403, said("forbidden", "x")), StoreRefusedError, "token may not write to bucket 'b' at {url}"),
        (Reply(404, said("not found", 'bucket \\"b\\" not found')), StoreRefusedError,
         "bucket 'b' not found at {url}: create it, or correct influxdb.bucket"),
        (Reply(404, said("not found", 'organization name \\"o\\" not found')), StoreRefusedError,
         "organization 'o' not found at {url}: check influxdb.org"),
        (Reply(404, "404 page not found"), StoreRefusedError, "{url} has no v2 API: check influxdb.url and influxdb.api"),
        (Reply(200, "<html>hello</html>"), StoreRefusedError, "{url} answered 200, as none does: check influxdb.url and influxdb.api"),
        (Reply(405, ""), StoreRefusedError, "{url} answered 405, as none does: check influxdb.url and influxdb.api"),
        (Reply(400, said("invalid", "max-values-per-tag limit exceeded (1/1): measurement=x dropped=1")), StoreRefusedError,
         "{url} is at its limit of series or of values of a tag: raise that, or see influxdb.tags"),
        (Reply(400, said("invalid", "whatever")), StoreRefusedError,
         "{url} does not take writes like this (400): check influxdb.org and .bucket"),
        (Reply(500, said("internal error", "x")), StoreUnavailableError, "{url} answered 500"),
        (Reply(503, "", (("Retry-After", "7"),)), StoreUnavailableError, "{url} answered 503"),
        (Reply(400, said("invalid", "partial write: field type conflict: input field x on ann's line dropped=1")),
         StoreDataError, "refuses data: FieldTypeConflict"),
        (Reply(400, said("invalid", "unable to parse 'ann=': missing field value")), StoreDataError, "refuses data: MalformedLine"),
        (Reply(422, said("unprocessable entity", "ann's line")), StoreDataError, "refuses data: MalformedLine"),
        (Reply(413, said("request too large", "x")), StoreDataError, "refuses data: RequestTooLarge"),
        (Reply(cut=True), StoreUnavailableError, "{url} is away"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)  # fmt: skip
@pytest.mark.parametrize("api", ["v1", "v2"])
async def test_an_answer_that_is_not_204(peer, make_store, feed, api, reply, error, message):
    if api == "v1":
        message = message.replace("bucket 'b'", "database 'b'").replace("v2 API", "v1 API")
        if "organization" in message:
            return  # v1 knows none
    peer.answer = lambda request: reply
    store = make_store(peer.url, api=api, token="s3cret")
    with pytest.raises(StoreUnavailableError if error is StoreDataError else error) as raised:
        # To the library every 2xx is a success; the look before the first write knows better.
        await (store.open() if reply.status == 200 else store.write(feed.flush(run("ann"))))
    assert type(raised.value) is error
    assert message.format(url=peer.url) in str(raised.value)
    assert "ann" not in str(raised.value)
    assert "s3cret" not in str(raised.value)
    await store.close()


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("13", 13),
        ("0", 0),
        ("99999", 300),
        (None, None),
        ("soon", None),
        ("date", 20),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
    ],
)
async def test_the_pause_that_it_asks_for(peer, make_store, feed, api, header, asked):
    if header == "date":
        header = email.utils.formatdate((NOW + 20_000) / 1000, usegmt=True)
    peer.answer = lambda request: Reply(
        429, said("too many requests", "x"), (("Retry-After", header),) if header else ()
    )
    store = make_store(peer.url, api=api, clock=lambda: NOW)
    with pytest.raises(StoreUnavailableError) as raised:
        await store.write(feed.flush(run()))
    assert raised.value.retry_after_s == asked
    await store.close()


@pytest.mark.parametrize("api", ["v1", "v2"])
async def test_one_that_stalls_is_away_after_its_deadline(peer, make_store, feed, api, monkeypatch):
    monkeypatch.setattr(senders, "REQUEST_S", 0.3)
    peer.answer = lambda request: Reply(stall=True)
    store = make_store(peer.url, api=api)
    with trio.fail_after(5), pytest.raises(StoreUnavailableError, match="is away"):
        await store.write(feed.flush(run()))
    with trio.move_on_after(0.05) as cancelled:
        await store.write(feed.flush(run()))
    assert cancelled.cancelled_caught  # at once: the shutdown does not wait for it
    with trio.fail_after(5):
        await store.close()


async def test_a_bad_line_among_good_ones_as_2x_tells_of_it(peer, make_store, feed):
    """2.x writes the good lines of a batch and names the bad; here the peer keeps those that it was not told to refuse."""
    kept = set()

    def answer(request):
        lines = request.text.split("\n") if request.body else []
        bad = [line for line in lines if "user_id=bad" in line]
        kept.update(set(lines) - set(bad))
        return Reply(400, said("invalid", f"unable to parse '{len(bad)}': partial write")) if bad else Reply()

    peer.answer = answer
    store = make_store(peer.url, api="v2")
    events = [run("bad" if n in {5, 6} else f"u{n}") for n in range(16)]
    letters = await written_in_parts(store, feed.flush(*events), Mailboxes())
    assert sorted(letters) == [6, 7]
    assert len(kept) == 14
    await store.close()
