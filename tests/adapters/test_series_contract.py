"""`engine.ports.SeriesQueries`: one suite for PostgreSQL and InfluxDB, real ones, each against the same oracle."""

import itertools

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from adapters.asyncio_bridge import open_loop
from adapters.influx.influxql import InfluxQl
from adapters.influx.lines import cell_lines
from adapters.influx.queries import InfluxSeries
from adapters.influx.target import Target
from adapters.postgres import sums
from adapters.postgres.replicas import ReadPool
from adapters.postgres.series import PostgresSeries
from engine.cohort import NotebookTotals
from engine.errors import StoreRefusedError, StoreUnavailableError, TooLargeError
from engine.event import Event, Order
from engine.latest import Latest
from engine.series import GROUPS, Window, activity_series, errors_series
from tests.adapters.events import NOW, run
from tests.adapters.flushes import Feed, make_store, opened
from tests.adapters.series_oracle import SeriesOracle, assert_like
from tests.servers.influx_server import InfluxServer

MINUTE = 60_000
USERS = ("ann", 'o\'brien "x"', "a, b=c\\d\u00e9 \U0001f600", "$class")
PATHS = ("a.ipynb", 'dir/it\'s, "b"=1\\2.ipynb')
# Loud in one language or the other, or both.
HOSTILE = ("x' or '1'='1", 'x"; drop table cell_executions; --', "$path", "a\\", "a\\' or 1=1", "a\nb", "\\n", "%", "_")
EVERYTHING = 30  # steps of sums, each of SUMMED_AT_ONCE rows
SUMMED_AT_ONCE = 7
_numbers = itertools.count(1)


def target(url, bucket, token=""):
    return Target(url=url, bucket=bucket, token=token, api="v1")


class OwnPool(PostgresSeries):
    """With connections that nobody else has."""

    def __init__(self, database):
        self._pool = ReadPool(lambda: database.dsn)
        super().__init__(self._pool)

    async def close(self):
        await self._pool.close()


class InPostgres:
    """``steps`` of sums are made after each write: none, some, or all that there are."""

    def __init__(self, database, steps=0):
        self.database = database
        self.steps = steps

    async def write(self, feed, events, notebooks):
        async with opened(make_store(self.database)) as store:
            await store.write(feed.flush(*events, notebooks=notebooks))
            for _ in range(self.steps):
                await store.sum_up()
            assert self.steps < EVERYTHING or not await store.sum_up()

    def series(self):
        return OwnPool(self.database)


class InInflux:
    """Events there, and notebooks in PostgreSQL, as in a daemon that has both."""

    def __init__(self, database, influx_database, *, index_is_tag):
        self.database = database
        self.influx = influx_database
        self.index_is_tag = index_is_tag

    async def write(self, feed, events, notebooks):
        async with opened(make_store(self.database)) as store:
            await store.write(feed.flush(notebooks=notebooks))
        commits = feed.flush(*events).commits
        if lines := cell_lines(commits, index_is_tag=self.index_is_tag):
            await trio.to_thread.run_sync(self.influx.write, "\n".join(lines))

    def series(self):
        influxql = InfluxQl(target(self.influx.server.url, self.influx.name))
        postgres = OwnPool(self.database)

        async def total_cells(class_id, path):
            try:
                return await postgres.total_cells(class_id, path)
            finally:
                await postgres.close()

        return InfluxSeries(influxql, total_cells, index_is_tag=self.index_is_tag)


@pytest.fixture(params=["postgres", "postgres-half-summed", "postgres-summed", "influx", "influx-index-field"])
def stored(request, monkeypatch):
    database = request.getfixturevalue("database")
    if request.param.startswith("postgres"):
        monkeypatch.setattr(sums, "_AT_ONCE", SUMMED_AT_ONCE)
        return InPostgres(database, {"postgres-half-summed": 2, "postgres-summed": EVERYTHING}.get(request.param, 0))
    influx_database = request.getfixturevalue("influx_database")
    return InInflux(database, influx_database, index_is_tag=request.param == "influx")


def asking(stored, ask):
    """Run ``ask(series)`` with an open store."""

    async def main():
        async with open_loop():
            series = stored.series()
            try:
                return await ask(series)
            finally:
                await series.close()

    return trio.run(main)


def writing(stored, feed, events, notebooks=()):
    async def main():
        async with open_loop():
            await stored.write(feed, events, notebooks)

    trio.run(main)


times = st.builds(
    lambda minutes, off: NOW // MINUTE * MINUTE + minutes * MINUTE + off,
    st.integers(-12, 2),
    st.sampled_from((-1, 0, 1, 30_000)),
)


@st.composite
def cell_events(draw):
    kind = draw(st.sampled_from(("cell_executed",) * 5 + ("execution_error", "notebook_saved")))
    return {
        "event_type": kind,
        "time": draw(times),
        "user_id": draw(st.sampled_from(USERS)),
        "notebook_path": draw(st.sampled_from(PATHS)),
        "cell_index": draw(st.sampled_from((None, 0, 1, 2, 2**31 - 1))),
        "has_error": draw(st.sampled_from((None, False, False, True))),
        "error_message": draw(st.sampled_from((None, 'Name"Error: \\ \n'))),
        "execution_duration_ms": draw(
            st.one_of(st.none(), st.sampled_from((0.0, 1.0, 1e308)), st.floats(0, 1e6), st.integers(1, 9).map(float))
        ),
    }


@hypothesis.settings(
    max_examples=40, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
@hypothesis.given(
    drawn=st.sampled_from((0, 1, 5, 40, 40)).flatmap(lambda n: st.lists(cell_events(), min_size=n, max_size=n)),
    since=st.sampled_from((1000, MINUTE, 7 * MINUTE, 60 * MINUTE)),
    every=st.sampled_from((7000, MINUTE, 5 * MINUTE, 60 * MINUTE)),
    off=st.sampled_from((0, 1, 59_999)),
    totals=st.sampled_from((None, 0, 2, 5)),
)
def test_it_answers_as_the_oracle(stored, drawn, since, every, off, totals):
    class_id, other = f"c{next(_numbers)}", f"c{next(_numbers)}"
    events = [
        Event(event_id=f"{class_id}.{number}", class_id=other if number % 7 == 6 else class_id, **fields)
        for number, fields in enumerate(drawn)
    ]
    highest = max((event.cell_index or 0 for event in events), default=0)
    given_at = None if totals is None else Latest(Order(NOW, "x"), totals)
    feed = Feed()
    notebooks = [(class_id, path, NotebookTotals(highest, given_at)) for path in PATHS] if totals is not None else []
    writing(stored, feed, events, notebooks)
    oracle = SeriesOracle(list(enumerate(events, 1)))
    window = Window.until(NOW // MINUTE * MINUTE + off, since, every)

    async def ask(series):
        for by in GROUPS:
            rows = await series.activity(class_id, window, by)
            assert_like(activity_series(rows, window, by), oracle.activity(class_id, *window, by))
            rows = await series.errors(class_id, window, by)
            assert_like(errors_series(rows, window, by), oracle.errors(class_id, *window, by))
        for path in PATHS:
            total = None if totals is None else totals or min(highest + 1, 2**31 - 1)
            assert_like(await series.notebook_summary(class_id, path), oracle.summary(class_id, path, total))

    asking(stored, ask)


def test_a_median_of_an_even_number_is_halfway(stored):
    writing(stored, Feed(), [run(execution_duration_ms=each) for each in (1.0, 10.0, 2.0, 4.0)])
    summary = asking(stored, lambda series: series.notebook_summary("default", "a.ipynb"))
    assert summary["cells"][0]["median_duration_ms"] == 3.0


def test_the_last_run_decides_and_seq_decides_within_a_millisecond(stored):
    runs = [run(has_error=True), run(), run("bob"), run("bob", event_type="execution_error")]
    writing(stored, Feed(), [*runs, run("eve", has_error=True), run("eve")])
    summary = asking(stored, lambda series: series.notebook_summary("default", "a.ipynb"))
    assert (summary["total_students"], summary["avg_progress"], summary["total_cells"]) == (3, 0.6667, 1)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_client_chose_is_a_value_and_nothing_else(stored, text):
    writing(stored, Feed(), [run(notebook_path=text), run(), run(notebook_path="b.ipynb")])
    window = Window.until(NOW, MINUTE, MINUTE)

    async def ask(series):
        found = await series.notebook_summary("default", text)
        assert found["total_students"] == 1
        assert [cell["executions"] for cell in found["cells"]] == [1]
        assert (await series.notebook_summary(text, "a.ipynb"))["total_students"] == 0
        assert await series.activity(text, window, "user_id") == []
        (everything,) = await series.activity("default", window, "none")
        assert everything.executions == 3

    asking(stored, ask)


def test_more_groups_than_an_answer_may_have_are_refused(stored):
    window = Window.until(NOW, 1400_000, 1000)
    few = [run(f"user{number}") for number in range(window.max_groups)]
    feed = Feed()
    writing(stored, feed, few)

    async def ask_few(series):
        assert len(activity_series(await series.activity("default", window, "user_id"), window, "user_id")) == len(few)

    async def ask_many(series):
        for ask, fill in ((series.activity, activity_series), (series.errors, errors_series)):
            with pytest.raises(TooLargeError, match="by=none"):
                fill(await ask("default", window, "user_id"), window, "user_id")
            assert len(await ask("default", window, "none")) == 1

    asking(stored, ask_few)
    writing(stored, feed, [run("one more")])
    asking(stored, ask_many)


async def test_an_influxdb_that_is_away_or_refuses_says_which(influx, influx_database):
    window = Window.until(NOW, MINUTE, MINUTE)

    async def never(class_id, path):
        return 0

    async def fails(influxql):
        series = InfluxSeries(influxql, never)
        with pytest.raises((StoreUnavailableError, StoreRefusedError)) as caught:
            await series.activity("default", window, "none")
        await series.close()
        return caught.value

    assert isinstance(await fails(InfluxQl(target("http://127.0.0.1:1", "x"))), StoreUnavailableError)
    refused = await fails(InfluxQl(target(influx.url, "not there")))
    assert isinstance(refused, StoreRefusedError)
    assert "not there" in str(refused)


async def test_an_influxdb_that_wants_a_password(influx):
    window = Window.until(NOW, MINUTE, MINUTE)
    with InfluxServer(influx._program, password="s3cret") as server:
        database = server.create_database()

        async def ask(token):
            series = InfluxSeries(InfluxQl(target(server.url, database.name, token)), None)
            try:
                return await series.activity("default", window, "user_id")
            finally:
                await series.close()

        assert await ask("admin:s3cret") == []
        for wrong in ("", "admin:wrong"):
            with pytest.raises(StoreRefusedError, match="401"):
                await ask(wrong)


async def test_a_postgresql_that_is_away_and_comes_back(database):
    window = Window.until(NOW, MINUTE, MINUTE)
    async with open_loop(), opened(make_store(database)):
        series = OwnPool(database)
        assert await series.activity("default", window, "user_id") == []
        database.server.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.name}'"
        )
        with pytest.raises(StoreUnavailableError):
            await series.notebook_summary("default", "a.ipynb")
        assert (await series.notebook_summary("default", "a.ipynb"))["cells"] == []
        assert series._pool.connections == 2
        await series.close()
