"""A daemon with InfluxDB 1.6: what goes where, and what an operator is told. Outages are in tests/faults."""

from collections.abc import Iterator

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.points import check_everywhere
from tests.e2e.postgres_server import free_port
from tests.e2e.samples import activity, failed_run, new_user, run
from tests.e2e.test_metrics import scrape
from tests.e2e.waiting import eventually


@pytest.fixture
def settings(influx_database) -> Iterator[dict[str, str]]:
    return {
        "INFLUXDB__URL": influx_database.server.url,
        "INFLUXDB__API": "v1",
        "INFLUXDB__BUCKET": influx_database.name,
        "INFLUXDB__FLUSH_INTERVAL_MS": "50",
        "POSTGRES__FLUSH_INTERVAL_MS": "50",
    }


async def test_cell_events_and_samples_go_to_influx_and_the_rest_to_postgresql(
    influx_database, database, data_dir, settings
):
    user = new_user()
    events = [
        run(user, cell_index=0, execution_duration_ms=10, total_cells=4),
        failed_run(user, cell_index=1, execution_duration_ms=30),
        activity(user),
        run(user, event_type="execution_error", cell_index=2),
    ]
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        api = Api(daemon)
        for each in events:
            await api.accept(each)
        await api.wait_flushed()
        await api.wait_flushed(store="influxdb")
        await check_everywhere(influx_database, database, events)

        async def sampled():
            found = await influx_database.points("select * from learning_progress order by time desc limit 1")
            return found[0] if found and found[0]["completed_cells"] == 1 else None

        progress = await eventually(sampled)
        assert (progress["user_id"], progress["total_cells"], progress["progress_percentage"]) == (user, 4, 25)
        (metrics,) = await influx_database.points("select * from performance_metrics order by time desc limit 1")
        assert (metrics["avg_execution_time"], metrics["max_execution_time"], metrics["error_rate"]) == (20, 30, 1)
        assert await database.value("select count(*) from learning_progress") == 0

        _, health = await api.health()
        assert health["status"] == "healthy"
        assert health["checks"]["influxdb"]["lag_events"] == 0
        assert health["checks"]["influxdb"]["response_time_ms"] >= 0
        assert (await api.call("GET", "/api/v1/series/errors?class=default&since=1h&every=10m")).status == 200
        metrics = await scrape(api)
        assert metrics.of("database_query_duration_seconds_count", database="influxdb", query_type="select") == 1
        assert metrics.labels("classpulse_store_lag_events", "store") == {"postgresql", "influxdb"}
        assert metrics.labels("database_connection_pool_size", "database") == {"postgresql", "influxdb"}
        assert metrics.of("classpulse_store_flush_seconds_count", store="influxdb") >= 1
        assert metrics.of("database_query_duration_seconds_count", database="influxdb", query_type="write") >= 1


async def test_without_influx_samples_are_rows(database, data_dir):
    user = new_user()
    async with Daemon(data_dir, dsn=database.dsn, settings={"POSTGRES__FLUSH_INTERVAL_MS": "50"}) as daemon:
        api = Api(daemon)
        await api.accept([run(user, cell_index=n, execution_duration_ms=10) for n in range(3)])
        await api.wait_flushed()
    (row,) = await database.query("select * from learning_progress")
    assert (row["user_id"], row["completed_cells"], row["total_cells"], row["progress_percentage"]) == (user, 3, 3, 100)
    assert await database.value("select count(*) from cell_executions") == 3
    assert await database.value("select avg_execution_time from performance_metrics") == 10


async def test_it_starts_degraded_while_influx_is_away_and_says_why(influx_database, database, data_dir, settings):
    settings |= {"INFLUXDB__URL": f"http://127.0.0.1:{free_port()}"}
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        api = Api(daemon)
        await api.accept(run(new_user()))
        await api.wait_flushed()

        async def told():
            _, health = await api.health()
            return health["checks"]["influxdb"] if "is away" in health["checks"]["influxdb"].get("error", "") else None

        assert (await eventually(told))["lag_events"] == 1
        assert (await api.health())[1]["status"] == "degraded"
        assert (await api.call("GET", "/readyz")).status == 200


async def test_a_missing_database_is_named_at_the_start_and_by_check(influx_database, database, data_dir, settings):
    settings |= {"INFLUXDB__BUCKET": "nowhere"}
    wanted = (
        f"InfluxDB: database 'nowhere' not found at {influx_database.server.url}: create it, or correct influxdb.bucket"
    )
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        api = Api(daemon)
        await api.accept(run(new_user()))

        async def told():
            _, health = await api.health()
            return health["checks"]["influxdb"].get("error") == wanted

        await eventually(told)
        assert wanted in daemon.stderr
        done = await in_thread(daemon.command, "check")
        assert done.returncode == 1
        assert f"influxdb: {wanted}" in (done.stdout + done.stderr).splitlines()
        await in_thread(influx_database.server.query, "create database nowhere")
        await api.wait_flushed(store="influxdb")
        done = await in_thread(daemon.command, "check")
        assert "influxdb: ok, InfluxDB 1.6." in done.stdout
        await in_thread(influx_database.server.query, "drop database nowhere")
