"""Every query of the API finds its rows by an index: on a large table nobody may wait for all of it to be read."""

import json
import os
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest

from adapters.asyncio_bridge import Connection, open_loop
from adapters.postgres import sums
from adapters.postgres.queries import PostgresQueries
from adapters.postgres.replicas import ReadPool
from adapters.postgres.series import PostgresSeries
from engine.clock import wall_clock
from engine.errors import TooLargeError
from engine.series import Window
from loadtest.bench import filling
from tests.adapters.flushes import make_store, opened
from tests.e2e.daemon import in_thread
from tests.e2e.postgres_server import psql

# The full form is 1000000. Of each table, over so many classes that one of them is a small part.
ROWS = int(os.environ.get("CLASSPULSE_ROWS", "60000"))
CLASSES = 20
SMALL = 2000  # rows; a table of fewer may be read as a whole
HOUR = 3_600_000


@pytest.fixture(params=[CLASSES])
async def filled(request, database):
    async with open_loop(), opened(make_store(database, now=wall_clock())):
        for fill in (
            filling.cell_rows(ROWS, classes=request.param),
            filling.session_rows(ROWS, classes=request.param),
            "analyze",
        ):
            await in_thread(psql, database.dsn, fill)
        yield database


@asynccontextmanager
async def planned(database, monkeypatch):
    """What was asked of PostgreSQL in the block, with the plan of each; also in a server that prepares statements."""
    asked: list[tuple[str, tuple[Any, ...]]] = []
    plans: list[tuple[str, dict[str, Any]]] = []
    fetch = Connection.fetch

    async def noted(self, query, *args):
        asked.append((query, args))
        return await fetch(self, query, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "fetch", noted)
        yield plans
    connection = await Connection.connect(database.dsn)
    for query, args in asked:
        (row,) = await connection.fetch(f"explain (analyze, format json) {query}", *args)
        plans.append((query, json.loads(row[0])[0]["Plan"]))
    await connection.close()


@asynccontextmanager
async def summing(database):
    """A connection of the owner's, where the rows count as stored."""
    await in_thread(psql, database.dsn, filling.stored(ROWS))
    connection = await Connection.connect(database.dsn)
    try:
        yield connection
    finally:
        await connection.close()


def nodes(plan):
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("summed", [False, True], ids=["no sums", "sums"])
async def test_no_query_reads_a_large_table_from_end_to_end(filled, monkeypatch, summed):
    if summed:
        async with summing(filled) as connection:
            while await sums.sum_up(connection, "postgresql"):
                pass
        await in_thread(psql, filled.dsn, "analyze")
    sizes = {row["relname"]: row["reltuples"] for row in filled.rows("select relname, reltuples from pg_class")}
    assert sum(size > SMALL for name, size in sizes.items() if name.startswith(("cell_exec", "learning_s"))) >= 2
    assert any(size > SMALL for name, size in sizes.items() if name.startswith("cell_sums")) == summed
    reads = ReadPool(lambda: filled.dsn)
    queries, series = PostgresQueries(reads), PostgresSeries(reads)
    now = wall_clock()
    async with planned(filled, monkeypatch) as plans:
        for by in ("user_id", "notebook_path", "none"):
            assert await series.activity("class3", Window.until(now, HOUR, HOUR // 6), by)
            assert await series.errors("class3", Window.until(now, 24 * HOUR, HOUR), by)
        summary = await series.notebook_summary("class3", "lesson3.ipynb")
        assert len(summary["cells"]) == filling.CELLS
        (first, *_) = await queries.class_sessions("class3", now - 24 * HOUR, 10, None)
        await queries.class_sessions("class3", now - 24 * HOUR, 10, (first.row.started_at, first.row.id))
        await queries.user_sessions("student5@example.com", "class3", None, 10, None)
        await queries.user_sessions("student5@example.com", "class3", "lesson3.ipynb", 10, (now, first.row.id))
    await reads.close()
    assert len(plans) == 14
    for query, plan in plans:
        for node in nodes(plan):
            read_whole = node["Node Type"] == "Seq Scan" and sizes[node["Relation Name"]] > SMALL
            assert not read_whole, (query, node)


async def test_a_window_is_found_by_its_time(database, monkeypatch):
    """Not by the notebooks of all times, whose order would give the first groups without a sort.

    The limit on groups made the server believe that a few are enough; here as low as it must be for so few rows.
    """
    monkeypatch.setattr("engine.series.MAX_POINTS", 500)
    async with open_loop(), opened(make_store(database, now=wall_clock())):
        await in_thread(psql, database.dsn, filling.cell_rows(ROWS))
        await in_thread(psql, database.dsn, "analyze")
        reads = ReadPool(lambda: database.dsn)
        series = PostgresSeries(reads)
        window = Window.until(wall_clock(), 24 * HOUR, HOUR)
        async with planned(database, monkeypatch) as plans:
            for by in ("user_id", "notebook_path", "none"):
                with suppress(TooLargeError):
                    await series.errors("class0", window, by)
        await reads.close()
    assert len(plans) == 3
    for query, plan in plans:
        found = [node["Index Cond"] for node in nodes(plan) if "Index Cond" in node]
        assert found, query
        assert all("event_timestamp" in condition for condition in found), (query, found)


async def test_the_test_would_see_it(filled, monkeypatch):
    """Without the index of summaries the plan is what the test above refuses."""
    await in_thread(psql, filled.dsn, "drop index cell_executions_class_id_notebook_path_idx")
    reads = ReadPool(lambda: filled.dsn)
    series = PostgresSeries(reads)
    async with planned(filled, monkeypatch) as plans:
        await series.notebook_summary("class3", "lesson3.ipynb")
    await reads.close()
    assert "Seq Scan" in {node["Node Type"] for _, plan in plans for node in nodes(plan)}


async def test_a_summary_does_not_read_what_is_summed(database, monkeypatch):
    async with open_loop(), opened(make_store(database, now=wall_clock())):
        await in_thread(psql, database.dsn, filling.cell_rows(ROWS, notebooks=1))
        async with summing(database) as connection:
            while await sums.sum_up(connection, "postgresql"):
                pass
        await in_thread(psql, database.dsn, "analyze")
        reads = ReadPool(lambda: database.dsn)
        async with planned(database, monkeypatch) as plans:
            summary = await PostgresSeries(reads).notebook_summary("class0", "lesson0.ipynb")
        await reads.close()
    assert sum(cell["executions"] for cell in summary["cells"]) > ROWS / 2
    ((_, runs),) = [(query, plan) for query, plan in plans if "cell_sums where" in query]
    scans = [each for each in nodes(runs) if each.get("Relation Name", "").startswith("cell_executions_2")]
    removed = ("Rows Removed by Index Recheck", "Rows Removed by Filter")
    read = sum(each["Actual Rows"] + sum(each.get(key, 0) for key in removed) for each in scans)
    assert scans
    assert read < ROWS / 10, scans


@pytest.mark.parametrize("filled", [1, CLASSES], indirect=True, ids=["one class", "many classes"])
async def test_a_series_reads_only_what_happened_in_its_window(filled, monkeypatch):
    """An index in another order than that of time would do for the test above, and read all that a class ever did."""
    reads = ReadPool(lambda: filled.dsn)
    series = PostgresSeries(reads)
    now = wall_clock()
    async with planned(filled, monkeypatch) as plans:
        for by in ("user_id", "notebook_path", "none"):
            assert await series.activity("class0", Window.until(now, 24 * HOUR, HOUR), by) is not None
            assert await series.errors("class0", Window.until(now, 24 * HOUR, HOUR), by)
    await reads.close()
    in_window = ROWS / filling.DAYS * 25 / 24
    for query, plan in plans:
        removed = sum(node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in nodes(plan))
        assert removed <= in_window, (query, plan)


async def test_the_next_rows_for_the_sums_are_found_without_reading_the_others(filled):
    sizes = {row["relname"]: row["reltuples"] for row in filled.rows("select relname, reltuples from pg_class")}
    async with summing(filled) as connection:
        assert await sums.sum_up(connection, "postgresql")
        journal = UUID(filling.JOURNAL)
        (row,) = await connection.fetch(f"explain (format json) {sums._ADD}", journal, ROWS - 1000, ROWS)
    read = [node for node in nodes(json.loads(row[0])[0]["Plan"]) if "Scan" in node["Node Type"]]
    assert [node for node in read if node.get("Index Name", "").endswith("journal_id_seq_idx")]
    assert not [node for node in read if node["Node Type"] == "Seq Scan" and sizes[node["Relation Name"]] > SMALL]
