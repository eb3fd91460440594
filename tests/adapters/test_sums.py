"""Sums of cell runs: they hold the rows that their offsets say, each once, whatever happens to the rows meanwhile."""

import random
from types import SimpleNamespace

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from adapters.asyncio_bridge import open_loop
from adapters.asyncio_bridge.postgres import Connection
from adapters.postgres import sums
from adapters.postgres.partitions import make_months
from adapters.postgres.replicas import ReadPool
from adapters.postgres.series import PostgresSeries
from adapters.postgres.shards import ShardedStates
from adapters.postgres.store import PostgresStore
from engine.errors import StoreUnavailableError
from engine.ports import Retention
from tests.adapters.events import DAY, NOW, run
from tests.adapters.flushes import Feed, make_store, opened
from tests.e2e.daemon import in_thread
from tests.e2e.postgres_server import psql

AT_ONCE = 3
COLUMNS = "class_id, notebook_path, user_id, cell_index, month"
RETENTION = Retention(400, 1200)


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch):
    monkeypatch.setattr(sums, "_AT_ONCE", AT_ONCE)


@pytest.fixture
async def store(database):
    async with open_loop(), opened(make_store(database)) as store:
        yield store


async def everything(store):
    while await store.sum_up():
        pass


def kept(database):
    """The sums, and what they should be: of the rows up to their offsets."""
    found = database.rows(f"select * from cell_sums order by {COLUMNS}")
    wanted = database.rows(
        "select class_id, notebook_path, user_id, coalesce(cell_index, -1) as cell_index, "
        "date_trunc('month', event_timestamp, 'UTC') as month, "
        "count(case when event_type = 'cell_executed' then 1 end) as executions, "
        "count(case when has_error or event_type = 'execution_error' then 1 end) as errors, "
        "max(case when not coalesce(has_error, false) and event_type <> 'execution_error' then event_timestamp end) "
        "as succeeded_at, "
        "max(case when has_error or event_type = 'execution_error' then event_timestamp end) as failed_at "
        "from cell_executions c where seq <= (select seq from cell_sums_offsets o where o.journal_id = c.journal_id) "
        f"group by 1, 2, 3, 4, 5 order by {COLUMNS}"
    )
    return found, wanted


def assert_held(database, rows=None):
    found, wanted = kept(database)
    assert found == wanted
    if rows is not None:
        assert database.rows("select coalesce(sum(seq), 0) as seq from cell_sums_offsets") == [{"seq": rows}]


async def unsummed(store):
    async with store._owner() as connection:
        condition, values = await sums.unsummed(connection, first=1)
        rows = await connection.fetch(f"select seq from cell_executions where {condition} order by seq", *values)
    return [row[0] for row in rows]


events = st.builds(
    run,
    st.sampled_from(("ann", "bob")),
    cell_index=st.sampled_from((None, 0, 1)),
    has_error=st.sampled_from((None, False, True)),
    event_type=st.sampled_from(("cell_executed", "execution_error")),
    time=st.sampled_from((NOW, NOW - 1, NOW - 25 * DAY)),
)
steps = st.one_of(
    st.lists(events, min_size=1, max_size=8),
    st.sampled_from(("sum", "sum", "all", "tend", "new journal")),
    st.sampled_from(
        (
            "delete from cell_executions where user_id = 'ann'",
            "update cell_executions set user_id = 'nobody' where user_id = 'bob'",
            "truncate cell_executions",
        )
    ),
)


@hypothesis.settings(
    max_examples=12, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
@hypothesis.given(played=st.lists(steps, max_size=12))
def test_sums_are_of_the_rows_up_to_their_offsets(database, played):
    async def main():
        await in_thread(psql, database.dsn, "truncate cell_executions")
        feed = Feed()
        async with open_loop(), opened(make_store(database)) as store:
            for step in played:
                if isinstance(step, list):
                    await store.write(feed.flush(*step))
                elif step == "sum":
                    await store.sum_up()
                elif step == "all":
                    await everything(store)
                elif step == "tend":
                    await store.tend(NOW, RETENTION)
                elif step == "new journal":
                    feed = Feed()
                else:
                    await in_thread(psql, database.dsn, step)
                assert_held(database)
                summed = "seq <= (select seq from cell_sums_offsets o where o.journal_id = c.journal_id)"
                others = database.rows(f"select seq from cell_executions c where ({summed}) is not true order by seq")
                assert await unsummed(store) == [row["seq"] for row in others]
            await everything(store)
            assert_held(database)
            assert await unsummed(store) == []

    async def prepare():
        async with open_loop(), opened(make_store(database)):
            pass

    trio.run(prepare)
    trio.run(main)


async def test_a_step_is_bounded_and_says_when_there_is_no_more(store, database):
    await store.write(Feed().flush(*[run(cell_index=each % 2) for each in range(2 * AT_ONCE)]))
    assert await store.sum_up()
    assert_held(database, AT_ONCE)
    assert await store.sum_up()
    assert_held(database, 2 * AT_ONCE)
    assert not await store.sum_up()


async def test_the_steps_of_a_round_share_a_connection_which_ends_with_it(store, database):
    await store.write(Feed().flush(*[run()] * (2 * AT_ONCE)))
    before = store.connections
    servers = set()
    while await store.sum_up():
        servers |= {row[0] for row in await store._summing.fetch("select pg_backend_pid()")}
        assert store.connections <= before + 2  # the reader's is new too
    assert len(servers) == 1
    assert store.connections == before + 1


async def test_a_connection_that_was_lost_between_two_steps_is_made_anew(store, database):
    await store.write(Feed().flush(*[run()] * (2 * AT_ONCE)))
    assert await store.sum_up()
    store._summing.terminate()
    assert await store.sum_up()
    assert_held(database, 2 * AT_ONCE)


async def test_a_step_that_fails_half_way_added_nothing(store, database, monkeypatch):
    await store.write(Feed().flush(run()))
    with monkeypatch.context() as patch:
        patch.setattr(sums, "_MOVE", "select $1::uuid, $2::bigint, * from no_such_table")
        with pytest.raises(StoreUnavailableError, match="no_such_table"):
            await store.sum_up()
    assert database.rows("select from cell_sums") == []
    await everything(store)
    assert_held(database, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from cell_executions where user_id = 'bob'",
        "update cell_executions set user_id = 'nobody' where user_id = 'bob'",
        "truncate cell_executions",
    ],
)
async def test_rows_that_somebody_changed_begin_the_sums_anew(store, database, statement):
    await store.write(Feed().flush(run(), run("bob")))
    await everything(store)
    await in_thread(psql, database.dsn, statement)
    assert database.rows("select from cell_sums union all select from cell_sums_offsets") == []
    await everything(store)
    assert_held(database, 2)


async def test_a_month_past_its_retention_takes_its_sums_along(store, database):
    async with store._owner() as owner:
        await make_months(owner, [(2025, 9)])
    await store.write(Feed().flush(run(), run(time=NOW - 430 * DAY)))
    await everything(store)
    assert len(database.rows("select from cell_sums")) == 2
    await store.tend(NOW, RETENTION)
    assert len(database.rows("select from cell_sums")) == 1
    assert_held(database, 2)


async def test_strays_that_get_their_month_stay_summed(store, database):
    await store.write(Feed().flush(run()))
    await in_thread(psql, database.dsn, "update cell_executions set event_timestamp = '2031-05-05'")
    await everything(store)
    await store.tend(NOW, RETENTION)
    assert database.rows("select from cell_executions_2031_05") != []
    assert_held(database, 1)


async def test_two_steps_at_once_add_the_rows_once(store, database):
    """As when another daemon takes over while the server still works on the last one's step."""
    await store.write(Feed().flush(run(), run()))
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(store.sum_up)
    assert_held(database, 2)


async def test_of_the_connections_of_steps_at_once_none_is_lost(store, monkeypatch):
    """A step may end while another closes the connection that a third left."""
    made = []
    connect = Connection.connect

    async def connect_and_remember(*args):
        made.append(await connect(*args))
        return made[-1]

    monkeypatch.setattr(Connection, "connect", connect_and_remember)
    feed = Feed()
    for _ in range(10):
        await store.write(feed.flush(run(), run()))
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(store.sum_up)
    assert made
    await everything(store)
    assert store._summing is None
    assert sum(not each.closed for each in made) == 1  # the reader's


async def test_a_shard_that_is_away_does_not_hold_up_the_others(store, database):
    away = make_store(SimpleNamespace(dsn="postgresql://postgres@127.0.0.1:1/nowhere"))
    shards = ShardedStates([away, store])
    await store.write(Feed().flush(*[run()] * (AT_ONCE + 1)))
    assert await shards.sum_up()
    assert await shards.sum_up()
    assert_held(database, AT_ONCE + 1)
    with pytest.raises(StoreUnavailableError, match="is away"):
        await shards.sum_up()


async def test_who_erases_rows_holds_up_no_query_and_no_flush_and_sums_wait(store, database):
    feed = Feed()
    await store.write(feed.flush(run(), run("bob")))
    await everything(store)
    await store.write(feed.flush(run()))
    series = PostgresSeries(reads := ReadPool(lambda: database.dsn))
    async with store._owner() as operator:
        async with operator.transaction():
            await operator.execute("delete from cell_executions where user_id = 'bob'")
            with trio.fail_after(5):
                assert (await series.notebook_summary("default", "a.ipynb"))["total_students"] == 2
                await store.write(feed.flush(run()))
                with pytest.raises(StoreUnavailableError, match="LockNotAvailable"):
                    await store.sum_up()
                await store.ping()
        assert (await series.notebook_summary("default", "a.ipynb"))["total_students"] == 1
    await reads.close()
    await everything(store)
    assert_held(database, 4)


async def test_a_step_in_the_middle_of_a_summary_makes_no_difference(store, database, monkeypatch):
    await store.write(Feed().flush(*[run()] * AT_ONCE))
    ask = sums.unsummed

    async def ask_and_sum(connection, first):
        found = await ask(connection, first)
        assert await store.sum_up()
        return found

    monkeypatch.setattr("adapters.postgres.series.unsummed", ask_and_sum)
    series = PostgresSeries(reads := ReadPool(lambda: database.dsn))
    (cell,) = (await series.notebook_summary("default", "a.ipynb"))["cells"]
    assert cell["executions"] == AT_ONCE
    await reads.close()


async def test_the_longest_names_fit(store, database):
    rng = random.Random(1)
    long = {"class_id": "c" * 64, "notebook_path": "".join(chr(rng.randrange(0x10000, 0x1F000)) for _ in range(500))}
    user = "".join(chr(rng.randrange(0x10000, 0x1F000)) for _ in range(254))
    await store.write(Feed().flush(run(user, **long), run(f"{user[:-1]}x", **long)))
    await everything(store)
    assert_held(database, 2)


async def test_nobody_but_a_change_of_rows_makes_them_begin_anew(store, database):
    found = database.rows("select has_function_privilege('app_user', 'forget_sums()', 'execute') as may")
    assert found == [{"may": False}]


async def test_where_another_store_has_the_series_there_is_nothing_to_sum(database):
    async with open_loop():
        store = PostgresStore(lambda: database.dsn, apply_migrations=True, clock=lambda: NOW, holds_series=False)
        async with opened(store):
            await store.write(Feed().flush(run()))
            assert not await store.sum_up()
    assert database.rows("select from cell_sums_offsets") == []
