"""Tying the rooms together: which parts a daemon of these settings has, and who is given whom. No I/O."""

from collections.abc import Callable
from typing import NamedTuple

from actors.admission import Limits
from actors.broadcaster import Broadcaster
from actors.lanes import Lane, make_lanes
from actors.mailboxes import Mailboxes
from actors.mirror import Mirror
from actors.publisher import Publisher
from actors.read_through import CachedSeries
from actors.recovery import Recovery
from actors.router import Router
from actors.series import Series
from actors.session import SessionContext
from actors.states import States
from actors.trimming import Trimming
from actors.upkeep import Upkeep
from actors.writer import Cargo, StoreWriter
from adapters.asyncio_bridge import Dsn, RedisLink
from adapters.bus.remote import RemoteBus
from adapters.http.api import api
from adapters.http.asgi import AsgiBridge
from adapters.http.ingest import Ingest
from adapters.http.openapi import document
from adapters.http.parameters import MAX_LIMIT
from adapters.http.server import HttpServer
from adapters.influx.queries import InfluxSeries
from adapters.influx.store import InfluxStore
from adapters.journal import SqliteJournal
from adapters.memory import MemoryCache
from adapters.metrics import CONTENT_TYPE, Metrics
from adapters.postgres.databases import Databases
from adapters.systemd import Manager
from adapters.websocket import StreamEndpoint
from config import Settings
from engine.catalog import Connections, Sources, catalog
from engine.clock import wall_clock
from engine.health import Answering, Facts, Health
from engine.measures import Histograms
from engine.ports import Retention, RowStore, Store
from engine.view import Thresholds
from engine.watermark import Watermark

from .stores import make_databases, series_queries, series_store


class Announcing(NamedTuple):
    """What tells other programs, where a Redis is configured."""

    bus: RemoteBus
    publisher: Publisher
    mirror: Mirror


class Parts(NamedTuple):
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
    announcing: Announcing | None

    @property
    def writers(self) -> list[StoreWriter]:
        """All of them."""
        return self.keepers + self.followers

    @property
    def lag(self) -> int:
        """Acknowledged events that are not stored everywhere."""
        return max(writer.lag for writer in self.writers)


def assemble(
    settings: Settings,
    journal: SqliteJournal,
    dsn: Dsn,
    ready: Callable[[], bool],
    manager: Manager,
    *,
    accept_gap: bool,
) -> Parts:
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
    series = series_store(settings, queried)
    databases = make_databases(settings, dsn, queried, holds_series=series is None)
    dirty, lanes = make_lanes(len(databases.stores), mailboxes)
    points = series_queries(settings, databases, queried)
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

    def writer(store: RowStore, cargo: Cargo, interval_ms: int, max_events: int) -> StoreWriter:
        return StoreWriter(
            journal,
            store,
            cargo,
            trimming,
            watermark,
            mailboxes=mailboxes,
            recovery=recovery,
            interval_s=interval_ms / 1000,
            max_events=max_events,
        )

    def states(store: Store, lane: Lane) -> States:
        return States(
            journal,
            store,
            watermark,
            context,
            total_cells=router.total_cells,
            clock=wall_clock,
            samples=None if series is None else mailboxes.samples,
            accept_gap=accept_gap,
            lane=lane,
        )

    postgres, influx = settings.postgres, settings.influxdb
    keepers = [
        writer(store, states(store, lane), postgres.flush_interval_ms, postgres.flush_max_events)
        for store, lane in zip(databases.stores, lanes, strict=True)
    ]
    followers = []
    if series is not None:
        cargo = Series(series.name, mailboxes, recovery, max_samples=influx.flush_max_points)
        followers = [writer(series, cargo, influx.flush_interval_ms, influx.flush_max_points)]
    writers = [*keepers, *followers]
    announcing = _announcing(settings, router, thresholds, queried)
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
    checked: list[tuple[Answering, Facts]] = [
        (databases.states, lambda: databases.health([keeper.health for keeper in keepers]) | upkeep.health)
    ]
    if series is not None:
        checked.append((series, lambda: followers[0].health))
    if announcing is not None:
        checked.append((announcing.bus, lambda: announcing.bus.health))
    health = Health(lambda: journal.health, checked)
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
    answers = api(
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
    server = _server(settings, ingest, AsgiBridge(answers), stream, manager)
    return Parts(
        router, recovery, keepers, followers, broadcaster, upkeep, stream, server, databases, series, points, announcing
    )


def _announcing(settings: Settings, router: Router, thresholds: Thresholds, times: Histograms) -> Announcing | None:
    """None: nobody is to be told, and nothing is spent on it."""
    if not settings.redis.url:
        return None
    bus = RemoteBus(RedisLink(settings.redis.url, max_connections=settings.redis.max_connections, times=times))
    mirror = Mirror(bus, router.users, router.cohorts, thresholds=thresholds, clock=wall_clock)
    return Announcing(bus, Publisher(bus, mirror), mirror)


def _server(
    settings: Settings, ingest: Ingest, bridge: AsgiBridge, stream: StreamEndpoint, manager: Manager
) -> HttpServer:
    http = settings.http
    return HttpServer(
        ingest,
        bridge,
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
