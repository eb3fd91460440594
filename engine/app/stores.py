"""The stores that the settings name, made but not opened: for the daemon, and for who only looks."""

from functools import partial

from adapters.asyncio_bridge import Dsn
from adapters.influx.influxql import InfluxQl
from adapters.influx.queries import InfluxSeries
from adapters.influx.store import InfluxStore
from adapters.influx.target import Target
from adapters.postgres.databases import Databases
from config import Settings
from engine.clock import wall_clock
from engine.measures import Histograms


def make_databases(settings: Settings, dsn: Dsn, times: Histograms, *, holds_series: bool) -> Databases:
    """PostgreSQL: one database or its shards, with replicas and other logins."""
    postgres = settings.postgres
    shards: list[Dsn] = [partial(str, shard) for shard in postgres.shards]
    return Databases(
        shards or [dsn],
        admin_dsn=postgres.admin_dsn,
        student_dsn=postgres.student_dsn,
        read_dsns=postgres.read_dsns,
        max_lag_ms=postgres.max_replica_lag_ms,
        apply_migrations=postgres.migrate,
        holds_series=holds_series,
        clock=wall_clock,
        times=times,
    )


def series_store(settings: Settings, times: Histograms) -> InfluxStore | None:
    """Where time series go, if not to PostgreSQL."""
    influx = settings.influxdb
    target = influx_target(settings)
    if target is None:
        return None
    return InfluxStore(target, index_is_tag="cell_index" in influx.tags, clock=wall_clock, times=times)


def series_queries(settings: Settings, databases: Databases, times: Histograms) -> InfluxSeries | None:
    """Who reads them there; what notebooks there are PostgreSQL knows all the same."""
    target = influx_target(settings)
    if target is None:
        return None
    index_is_tag = "cell_index" in settings.influxdb.tags
    return InfluxSeries(InfluxQl(target, times), databases.series.total_cells, index_is_tag=index_is_tag)


def influx_target(settings: Settings) -> Target | None:
    """Where InfluxDB is; None: nowhere."""
    influx = settings.influxdb
    if not influx.url:
        return None
    return Target(
        url=influx.url.rstrip("/"),
        token=influx.token,
        org=influx.org,
        bucket=influx.bucket,
        api="v1" if influx.api == "v1" else "v2",
    )
