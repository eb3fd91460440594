"""The composition root: alone imports every room, ties them together, and owns the order of start and shutdown."""

import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
import trio

from actors.admission import Limits
from actors.broadcaster import Broadcaster
from actors.lanes import make_lanes
from actors.mailboxes import Mailboxes
from actors.mirror import Mirror
from actors.publisher import Publisher
from actors.read_through import CachedSeries
from actors.recovery import Recovery
from actors.router import Router
from actors.series import Series
from actors.session import SessionContext
from actors.states import States
from actors.supervisor import supervise
from actors.trimming import Trimming
from actors.upkeep import Upkeep
from actors.writer import StoreWriter
from adapters.asyncio_bridge import Dsn, RedisLink, open_loop
from adapters.bus.probe import RedisCheck
from adapters.bus.remote import RemoteBus
from adapters.embedded import EmbeddedPostgres, running_dsn
from adapters.http.api import api
from adapters.http.asgi import AsgiBridge
from adapters.http.ingest import Ingest
from adapters.http.openapi import document
from adapters.http.parameters import MAX_LIMIT
from adapters.http.server import HttpServer
from adapters.influx.influxql import InfluxQl
from adapters.influx.queries import InfluxSeries
from adapters.influx.store import InfluxStore
from adapters.influx.target import Target
from adapters.journal import SqliteJournal
from adapters.lock import DirectoryLock
from adapters.memory import MemoryCache
from adapters.metrics import CONTENT_TYPE, Metrics
from adapters.postgres.databases import Databases, with_login
from adapters.postgres.probe import DatabaseCheck, migrate_database
from adapters.systemd import Manager
from adapters.watchdog import Watchdog
from adapters.websocket import StreamEndpoint
from config import Reloader, Settings
from config.settings import EMBEDDED
from engine.catalog import Connections, Sources, catalog
from engine.checks import tell
from engine.clock import wall_clock
from engine.errors import ClasspulseError, StartError, flatten
from engine.health import Answering, Health
from engine.measures import Histograms
from engine.ports import CommitSink, Retention
from engine.view import Thresholds
from engine.watermark import Watermark

__all__ = ["App", "Manager", "check", "migrate"]

# How long the start waits for the stores before it goes on without them, in seconds.
_PATIENCE_S: Final = 30.0
# The shutdown's deadlines, in seconds: requests in hand, then the final flush. With the embedded server's own stop
# they stay under the 10 s that a process manager is told.
_EDGE_S: Final = 1.5
_FLUSH_S: Final = 3.0
_EMBEDDED_S: Final = 2.0

# Thresholds of the cyclic collector. Events are allocated by the thousand and freed by reference counts; at Python's
# default of 700 the collector walked them for 24 % of the CPU time (docs/performance.md) and found nothing.
_GC_THRESHOLDS: Final = (50_000, 20, 10)

log = structlog.get_logger("app")


class App:
    """One daemon. `run` it once."""

    def __init__(
        self, settings: Settings, manager: Manager, reread: Callable[[], Settings], *, accept_gap: bool
    ) -> None:
        """``reread`` makes the settings anew when a SIGHUP comes."""
        self._settings = settings
        self._manager = manager
        self._reread = reread
        self._reloader: Reloader | None = None
        self._stop = trio.Event()
        self._ready = False
        self._journal = SqliteJournal(
            settings.data_dir,
            max_bytes=settings.journal.max_bytes,
            min_free_bytes=settings.journal.min_free_bytes,
            dedupe_window_s=settings.journal.dedupe_window_s,
            dedupe_max_events=settings.journal.dedupe_max_events,
            clock=wall_clock,
        )
        self._accept_gap = accept_gap
        self._embedded = (
            EmbeddedPostgres(
                settings.data_dir / "postgres", log=structlog.get_logger("embedded"), stop_timeout_s=_EMBEDDED_S
            )
            if settings.postgres.dsn == EMBEDDED and not settings.postgres.shards
            else None
        )

    def _dsn(self) -> str:
        return self._settings.postgres.dsn if self._embedded is None else self._embedded.dsn

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Start, serve until a signal, and shut down in order. ``on_ready`` gets the base URL.

        Raises StartError when it must not start.
        """
        _raise_descriptor_limit()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        with DirectoryLock(self._settings.data_dir):
            async with open_loop(), trio.open_nursery() as services:
                services.start_soon(self._watch_signals)
                services.start_soon(self._manager.feed_watchdog)
                services.start_soon(Watchdog().run)
                self._manager.status("starting")
                if self._embedded is not None:
                    await self._start_embedded(services, self._embedded)
                self._journal.open()
                parts = _assemble(
                    self._settings,
                    self._journal,
                    self._dsn,
                    lambda: self._ready,
                    self._manager,
                    accept_gap=self._accept_gap,
                )
                try:
                    await self._serve(parts, on_ready)
                finally:
                    if parts.series is not None:
                        await parts.series.close()
                    if parts.points is not None:
                        await parts.points.close()
                    await parts.databases.close()
                    if parts.announcing is not None:
                        await parts.announcing.bus.close()
                    self._journal.close()
                    if self._embedded is not None:
                        self._embedded.request_stop()
                        await self._embedded_done.wait()
                services.cancel_scope.cancel()
        log.info("stopped")

    # --- start, outermost first

    async def _start_embedded(self, services: trio.Nursery, embedded: EmbeddedPostgres) -> None:
        """Wait for the first start, for as long as patience lasts; raises StartError when it can never work."""
        started = _Started()
        self._embedded_done = trio.Event()

        async def run() -> None:
            try:
                await supervise("embedded postgres", partial(embedded.run, task_status=started))
            finally:
                self._embedded_done.set()

        services.start_soon(run)
        await _first_of(started.event, self._stop, seconds=_PATIENCE_S)

    async def _serve(self, parts: "_Parts", on_ready: Callable[[str], None]) -> None:
        """Nested by dependency: what is inside ends first, and ends in order rather than by cancellation."""
        journal, recovery = self._journal, parts.recovery

        announcing = parts.announcing
        sink: CommitSink = parts.router.commit
        if announcing is not None:
            sink = announcing.publisher.beside(sink)

        async def commit_and_route() -> None:
            await journal.run(sink)
            parts.router.finish()

        async with trio.open_nursery() as background:
            background.start_soon(supervise, "broadcaster", parts.broadcaster.run)
            background.start_soon(supervise, "upkeep", parts.upkeep.run)
            background.start_soon(supervise, "replicas", parts.databases.run)
            if announcing is not None:
                background.start_soon(supervise, "bus", announcing.bus.run)
                background.start_soon(supervise, "publisher", announcing.publisher.run)
                background.start_soon(supervise, "mirror", announcing.mirror.run)
            async with trio.open_nursery() as keepers:
                async with trio.open_nursery() as followers:
                    async with trio.open_nursery() as core:
                        await core.start(parts.router.run)
                        background.start_soon(supervise, "recovery", recovery.run)
                        await _first_of(recovery.tried, self._stop, seconds=_PATIENCE_S)
                        if recovery.refused is not None:
                            raise StartError(str(recovery.refused))
                        for nursery, writers in ((keepers, parts.keepers), (followers, parts.followers)):
                            for writer in writers:
                                nursery.start_soon(supervise, f"writer of {writer.name}", writer.run)
                        core.start_soon(commit_and_route)
                        if not self._stop.is_set():
                            await self._serve_edge(parts, on_ready)
                        recovery.stop()
                        journal.finish()
                    await recovery.settle_rest()
                    flush_until = trio.current_time() + _FLUSH_S
                    _finish(parts.followers, followers, flush_until - _FLUSH_S / 2)
                # Last, so that they take the offsets at which the followers ended.
                _finish(parts.keepers, keepers, flush_until)
            log.info("flushed", lag_events=parts.lag)
            background.cancel_scope.cancel()

    async def _serve_edge(self, parts: "_Parts", on_ready: Callable[[str], None]) -> None:
        """Accept until a signal, then answer what is in flight."""
        async with trio.open_nursery() as edge:
            url = await parts.server.bind()
            edge.start_soon(parts.server.run)
            self._ready = True
            on_ready(url)
            self._reloader = Reloader(self._settings, self._reread, self._reloadable(parts))
            self._manager.ready(f"ready on {url}")
            await self._stop.wait()
            log.info("stopping", lag_events=parts.lag)
            self._manager.status(f"stopping: {parts.lag} events are to be stored")
            self._ready = False
            parts.server.stop()
            edge.cancel_scope.deadline = trio.current_time() + _EDGE_S
            await parts.stream.close()

    # --- while it runs

    async def _watch_signals(self) -> None:
        """The first signal starts the shutdown's order, the second ends it at once; nothing acknowledged is lost."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload()
                    continue
                if self._stop.is_set():
                    log.warning("second signal: ending at once", signal=signal.Signals(number).name)
                    if self._embedded is not None and self._embedded.pid is not None:
                        os.kill(self._embedded.pid, signal.SIGINT)
                    os._exit(1)
                self._manager.stopping("stopping")
                self._stop.set()

    def _reload(self) -> None:
        """SIGHUP never ends the daemon; before it is ready and while it stops there is nothing to take up."""
        if self._reloader is None or self._stop.is_set():
            log.info("reload ignored: not serving")
            return
        self._manager.reloading()
        try:
            self._reloader.reload()
        except Exception:
            log.exception("reload failed")
        self._manager.ready("ready")

    def _reloadable(self, parts: "_Parts") -> dict[str, Callable[[Any], object]]:
        """Keys that may change while it serves: limits that an operator moves in need, and names."""
        return {
            "http.allowed_hosts": parts.server.allow_hosts,
            "http.max_body_bytes": parts.server.limit_bodies,
            "http.max_header_bytes": partial(setattr, parts.server, "max_header_bytes"),
            "journal.max_bytes": partial(setattr, self._journal, "max_bytes"),
            "journal.min_free_bytes": partial(setattr, self._journal, "min_free_bytes"),
        }


class _Announcing(NamedTuple):
    """What tells other programs, where a Redis is configured."""

    bus: RemoteBus
    publisher: Publisher
    mirror: Mirror


class _Parts(NamedTuple):
    """The parts of a daemon that its life is ordered by."""

    router: Router
    recovery: Recovery
    keepers: list[StoreWriter]  # of stores that keep states and offsets
    followers: list[StoreWriter]  # of those whose offsets these keep
    broadcaster: Broadcaster
    upkeep: Upkeep
    stream: StreamEndpoint
    server: HttpServer
    databases: Databases
    series: InfluxStore | None
    points: InfluxSeries | None
    announcing: _Announcing | None

    @property
    def writers(self) -> list[StoreWriter]:
        """All of them."""
        return self.keepers + self.followers

    @property
    def lag(self) -> int:
        """Acknowledged events that are not stored everywhere."""
        return max(writer.lag for writer in self.writers)


def _assemble(
    settings: Settings,
    journal: SqliteJournal,
    dsn: Dsn,
    ready: Callable[[], bool],
    manager: Manager,
    *,
    accept_gap: bool,
) -> _Parts:
    """Tie the rooms together. Nothing here does I/O."""
    mailboxes = Mailboxes()
    watermark = Watermark()
    retire_after_ms = int(settings.session.retire_after_s * 1000)
    thresholds = Thresholds(
        idle_after_ms=int(settings.session.idle_after_s * 1000),
        offline_after_ms=int(settings.session.offline_after_s * 1000),
        stuck_errors=settings.stuck.consecutive_errors,
    )
    queried, answered = Histograms(), Histograms()
    series = _series_store(settings, queried)
    databases = _databases(settings, dsn, queried, holds_series=series is None)
    dirty, lanes = make_lanes(len(databases.stores), mailboxes)
    points = _points(settings, databases)
    idle_ms = int(settings.session.idle_timeout_s * 1000)
    context = SessionContext(journal.id.hex, idle_ms, dirty, mailboxes, set(), journal, thresholds)
    past = watermark.open(journal.last_seq, 1)  # recovery's share: all that is in the journal already
    limits = Limits(settings.limits.users_per_class, settings.limits.notebooks_per_class)
    router = Router(journal, context, watermark, limits=limits, retire_after_ms=retire_after_ms, clock=wall_clock)
    recovery = Recovery(
        journal,
        databases.states,
        router,
        context,
        past,
        accept_gap=accept_gap,
        retire_after_ms=retire_after_ms,
        clock=wall_clock,
        followers=[] if series is None else [series.name],
    )
    trimming = Trimming(journal)
    keepers = [
        StoreWriter(
            journal,
            store,
            States(
                journal,
                store,
                watermark,
                context,
                total_cells=router.total_cells,
                clock=wall_clock,
                samples=None if series is None else mailboxes.samples,
                accept_gap=accept_gap,
                lane=lane,
            ),
            trimming,
            watermark,
            mailboxes=mailboxes,
            recovery=recovery,
            interval_s=settings.postgres.flush_interval_ms / 1000,
            max_events=settings.postgres.flush_max_events,
        )
        for store, lane in zip(databases.stores, lanes, strict=True)
    ]
    followers = []
    if series is not None:
        influx = settings.influxdb
        cargo = Series(series.name, mailboxes, recovery, max_samples=influx.flush_max_points)
        follower = StoreWriter(
            journal,
            series,
            cargo,
            trimming,
            watermark,
            mailboxes=mailboxes,
            recovery=recovery,
            interval_s=influx.flush_interval_ms / 1000,
            max_events=influx.flush_max_points,
        )
        followers = [follower]
    writers = [*keepers, *followers]
    announcing = _announcing(settings, journal, router, thresholds, queried)
    buses: list[RemoteBus] = [] if announcing is None else [announcing.bus]
    cache = MemoryCache() if announcing is None else announcing.bus
    broadcaster = Broadcaster(
        router,
        mailboxes,
        thresholds=thresholds,
        interval_s=settings.broadcast.interval_ms / 1000,
        outbox_frames=settings.broadcast.outbox_frames,
        clock=wall_clock,
        facts=lambda: (
            {"journal": journal.health}
            | {each.name: each.health for each in writers}
            | {each.name: each.health for each in buses}
        ),
    )
    upkeep = Upkeep(
        databases.states,
        recovery,
        Retention(settings.retention.events_days, settings.retention.sessions_days),
        wall_clock,
    )
    told = [partial(getattr, keeper, "health") for keeper in keepers]
    checked: list[tuple[Answering, Callable[[], dict[str, Any]]]] = [
        (databases.states, lambda: databases.health(told) | upkeep.health)
    ]
    if series is not None:
        checked.append((series, partial(getattr, follower, "health")))
    health = Health(lambda: journal.health, [*checked, *((bus, partial(getattr, bus, "health")) for bus in buses)])
    http = settings.http
    own_origin = (http.public_url.rstrip("/").lower(),) if http.public_url else ()
    stream = StreamEndpoint(
        broadcaster, origins=(*http.cors_origins, *own_origin), register=announcing.bus if announcing else None
    )
    ingest = Ingest(
        router,
        max_events=http.max_batch_events,
        max_body_bytes=http.max_body_bytes,
        clock=wall_clock,
        times=answered,
    )
    connected: dict[str, list[Connections]] = {**databases.pools, **{each.name: [each] for each in buses}}
    if series is not None:
        connected[series.name] = [series]
    sources = Sources(
        journal,
        ingest,
        router,
        {each.name: each for each in writers},
        stream,
        mailboxes,
        connected,
        queried,
        answered,
        [] if announcing is None else [announcing.bus, announcing.publisher],
    )
    metrics = Metrics(catalog(sources))
    server = HttpServer(
        ingest,
        AsgiBridge(
            api(
                broadcaster,
                databases.queries,
                CachedSeries(cache, databases.series if points is None else points),
                health,
                ready=ready,
                metrics=lambda: (metrics.text(), CONTENT_TYPE),
                description=document(max_events=http.max_batch_events, max_limit=MAX_LIMIT),
                cors_origins=http.cors_origins,
                times=answered,
            )
        ),
        stream.serve,
        host=http.host,
        port=http.port,
        allowed_hosts=http.allowed_hosts,
        refuse_forwarded=not settings.auth.allow_open_network,
        max_header_bytes=http.max_header_bytes,
        max_body_bytes=http.max_body_bytes,
        max_connections=http.max_connections,
        idle_timeout_s=http.idle_timeout_s,
        header_timeout_s=http.header_timeout_s,
        body_timeout_s=http.body_timeout_s,
        trusted_proxies=http.trusted_proxies,
        public_url=http.public_url,
        inherited=manager.sockets,
    )
    return _Parts(
        router, recovery, keepers, followers, broadcaster, upkeep, stream, server, databases, series, points, announcing
    )


def _finish(writers: list[StoreWriter], nursery: trio.Nursery, deadline: float) -> None:
    for writer in writers:
        writer.finish()
    nursery.cancel_scope.deadline = deadline


def _databases(settings: Settings, dsn: Dsn, times: Histograms, *, holds_series: bool) -> Databases:
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


def _series_store(settings: Settings, times: Histograms) -> InfluxStore | None:
    """Where time series go, if not to PostgreSQL."""
    influx = settings.influxdb
    target = _influx_target(settings)
    if target is None:
        return None
    return InfluxStore(target, index_is_tag="cell_index" in influx.tags, clock=wall_clock, times=times)


def _points(settings: Settings, databases: Databases) -> InfluxSeries | None:
    """Who reads them there; what notebooks there are PostgreSQL knows all the same."""
    target = _influx_target(settings)
    if target is None:
        return None
    index_is_tag = "cell_index" in settings.influxdb.tags
    return InfluxSeries(InfluxQl(target), databases.series.total_cells, index_is_tag=index_is_tag)


def _influx_target(settings: Settings) -> Target | None:
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


def _announcing(
    settings: Settings, journal: SqliteJournal, router: Router, thresholds: Thresholds, times: Histograms
) -> _Announcing | None:
    """None: nobody is to be told, and nothing is spent on it."""
    if not settings.redis.url:
        return None
    bus = RemoteBus(RedisLink(settings.redis.url, max_connections=settings.redis.max_connections, times=times))
    mirror = Mirror(bus, journal.id.hex, router.users, router.cohorts, thresholds=thresholds, clock=wall_clock)
    return _Announcing(bus, Publisher(bus, mirror), mirror)


async def _first_of(*events: trio.Event, seconds: float) -> None:
    """Wait for the first of these, or until patience ends."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + seconds
        for event in events:
            nursery.start_soon(wait, event)


def _raise_descriptor_limit() -> None:
    """As many connections as the system lets us have: the soft limit is often 1024 for no reason of this program's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call it infinite and mean less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Started:
    """A `trio.TaskStatus` that outlives restarts."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: object = None) -> None:  # noqa: ARG002
        self.event.set()


Say = Callable[[str], None]


@asynccontextmanager
async def _dsns(settings: Settings) -> AsyncIterator[list[str]]:
    """DSNs that work in the block: those configured, the running daemon's, or that of a server for the while.

    None at all: the embedded server was never made.
    """
    directory = settings.data_dir / "postgres"
    if settings.postgres.shards:
        yield list(settings.postgres.shards)
    elif settings.postgres.dsn != EMBEDDED:
        yield [settings.postgres.dsn]
    elif not (directory / "PG_VERSION").exists():
        yield []
    elif (running := await trio.to_thread.run_sync(running_dsn, directory)) is not None:
        yield [running]
    else:
        with DirectoryLock(settings.data_dir):
            async with trio.open_nursery() as nursery:
                embedded = EmbeddedPostgres(directory, log=structlog.get_logger("embedded"))
                yield [await nursery.start(embedded.run)]
                embedded.request_stop()


async def check(settings: Settings, say: Say) -> bool:
    """Reach every configured store, one line each; tells whether all is well."""
    say("config: ok")
    well = True
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.data_dir, os.W_OK | os.X_OK):
            raise PermissionError(None, "it cannot be written")
        say(f"data_dir: ok, {settings.data_dir}")
    except OSError as fault:
        say(f"data_dir: cannot use {settings.data_dir}: {fault.strerror}")
        well = False
    try:
        async with open_loop(), _dsns(settings) as dsns:
            if not dsns:
                say(f"postgresql: ok, embedded; the first `serve` makes it in {settings.data_dir / 'postgres'}")
            for database in _database_checks(settings, dsns):
                well &= await tell(database, say)
    except* ClasspulseError as group:
        for each in flatten(group):
            say(f"postgresql: {each}")
        well = False
    series = _series_store(settings, Histograms())
    if series is None:
        say("influxdb: not configured")
    else:
        well &= await tell(series, say)
        await series.close()
    if settings.redis.url:
        async with open_loop():
            well &= await tell(RedisCheck(settings.redis.url, clock=wall_clock), say)
    else:
        say("redis: not configured")
    return well


async def migrate(settings: Settings, say: Say) -> None:
    """Bring the database to the current schema."""
    admin = settings.postgres.admin_dsn
    async with open_loop(), _dsns(settings) as dsns:
        if not dsns:
            say("postgresql: embedded; the first `serve` makes it with the current schema")
        for dsn in dsns:
            owner = with_login(dsn, admin) if admin and settings.postgres.shards else admin or dsn
            say(f"postgresql: schema version {await migrate_database(owner)}")


def _database_checks(settings: Settings, dsns: list[str]) -> list[DatabaseCheck]:
    """Of all that a daemon with these settings connects to."""
    postgres = settings.postgres

    def everywhere(login: str) -> list[str]:
        if not login:
            return []
        return [with_login(dsn, login) for dsn in dsns] if postgres.shards else [login]

    look = partial(DatabaseCheck, clock=wall_clock, migrates=postgres.migrate)
    return [
        *(look(dsn, owns=not postgres.admin_dsn) for dsn in dsns),
        *map(look, everywhere(postgres.admin_dsn)),
        *(look(dsn, writes=False, looks=False) for dsn in everywhere(postgres.student_dsn)),
        *(look(dsn, writes=False) for dsn in postgres.read_dsns),
    ]
