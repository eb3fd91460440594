"""The composition root: alone imports every room, ties them together, and owns the order of start and shutdown."""

import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
import trio

from actors.broadcaster import Broadcaster
from actors.mailbox import ConflatingMailbox
from actors.recovery import Recovery
from actors.router import Router
from actors.session import SessionActor, SessionContext
from actors.supervisor import supervise
from actors.writer import StoreWriter
from adapters.asyncio_bridge import Dsn, open_loop, without_password
from adapters.embedded import EmbeddedPostgres, running_dsn
from adapters.http.api import api
from adapters.http.asgi import AsgiBridge
from adapters.http.ingest import Ingest
from adapters.http.server import HttpServer
from adapters.journal import SqliteJournal
from adapters.lock import DirectoryLock
from adapters.postgres.probe import migrate_database, server_version
from adapters.postgres.queries import PostgresQueries
from adapters.postgres.store import PostgresStore
from adapters.websocket import StreamEndpoint
from config import Settings
from config.settings import EMBEDDED
from engine.clock import wall_clock
from engine.cohort import NotebookTotals
from engine.dirty import DirtyUsers
from engine.errors import ClasspulseError, StartError, StoreUnavailableError, flatten
from engine.event import UserKey
from engine.ports import DeadLetter
from engine.view import Thresholds
from engine.watermark import Watermark

# How long the start waits for the stores before it goes on without them, in seconds.
_PATIENCE_S: Final = 30.0
# The shutdown's deadlines, in seconds: requests in hand, then the final flush. With the embedded server's own stop
# they stay under the 10 s that a process manager is told.
_EDGE_S: Final = 2.0
_FLUSH_S: Final = 4.0
# How long a health check waits for a store's answer, in seconds.
_PING_S: Final = 1.0

# Thresholds of the cyclic collector. Events are allocated by the thousand and freed by reference counts; at Python's
# default of 700 the collector walked them for 24 % of the CPU time (docs/performance.md) and found nothing.
_GC_THRESHOLDS: Final = (50_000, 20, 10)

log = structlog.get_logger("app")


class App:
    """One daemon. `run` it once."""

    def __init__(self, settings: Settings, *, accept_gap: bool) -> None:
        self._settings = settings
        self._stop = trio.Event()
        self._ready = False
        self.journal = SqliteJournal(
            settings.data_dir,
            max_bytes=settings.journal.max_bytes,
            min_free_bytes=settings.journal.min_free_bytes,
            dedupe_window_s=settings.journal.dedupe_window_s,
            dedupe_max_events=settings.journal.dedupe_max_events,
            clock=wall_clock,
        )
        self._accept_gap = accept_gap
        self._embedded = (
            EmbeddedPostgres(settings.data_dir / "postgres", log=structlog.get_logger("embedded"))
            if settings.postgres.dsn == EMBEDDED
            else None
        )

    def _dsn(self) -> str:
        return self._settings.postgres.dsn if self._embedded is None else self._embedded.dsn

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Start, serve until a signal, and shut down in order. ``on_ready`` gets the base URL.

        Raises StartError when it must not start.
        """
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        with DirectoryLock(self._settings.data_dir):
            async with open_loop(), trio.open_nursery() as services:
                services.start_soon(self._watch_signals)
                if self._embedded is not None:
                    await self._start_embedded(services, self._embedded)
                self.journal.open()
                try:
                    await self._run_actors(on_ready)
                finally:
                    self.journal.close()
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
        with trio.move_on_after(_PATIENCE_S):
            await started.event.wait()

    async def _run_actors(self, on_ready: Callable[[str], None]) -> None:
        settings, journal = self._settings, self.journal
        dirty: DirtyUsers[SessionActor] = DirtyUsers()
        changed: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        unsettled: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        retired: ConflatingMailbox[UserKey, None] = ConflatingMailbox()
        notebooks: ConflatingMailbox[tuple[str, str], NotebookTotals] = ConflatingMailbox()
        resized: ConflatingMailbox[tuple[str, str], None] = ConflatingMailbox()
        dead_letters: ConflatingMailbox[int, DeadLetter] = ConflatingMailbox()
        watermark = Watermark()
        past = watermark.open(journal.last_seq, 1)
        idle_ms = int(settings.session.idle_timeout_s * 1000)
        retire_after_ms = int(settings.session.retire_after_s * 1000)
        context = SessionContext(journal.id.hex, idle_ms, dirty, changed, dead_letters)
        router = Router(
            journal,
            context,
            watermark,
            notebooks=notebooks,
            unsettled=unsettled,
            resized=resized,
            retired=retired,
            retire_after_ms=retire_after_ms,
            clock=wall_clock,
        )
        dsn: Dsn = self._dsn
        store = PostgresStore(dsn, apply_migrations=settings.postgres.migrate, clock=wall_clock)
        queries = PostgresQueries(dsn)
        recovery = Recovery(
            journal,
            store,
            router,
            dirty,
            unsettled,
            accept_gap=self._accept_gap,
            retire_after_ms=retire_after_ms,
            idle_ms=idle_ms,
            clock=wall_clock,
        )
        writer = StoreWriter(
            journal,
            store,
            watermark,
            dirty,
            recovery,
            notebooks=notebooks,
            dead_letters=dead_letters,
            interval_s=settings.postgres.flush_interval_ms / 1000,
            max_events=settings.postgres.flush_max_events,
            accept_gap=self._accept_gap,
        )
        broadcaster = Broadcaster(
            router,
            changed=changed,
            resized=resized,
            retired=retired,
            thresholds=Thresholds(
                idle_after_ms=int(settings.session.idle_after_s * 1000),
                offline_after_ms=int(settings.session.offline_after_s * 1000),
                stuck_errors=settings.stuck.consecutive_errors,
            ),
            interval_s=settings.broadcast.interval_ms / 1000,
            outbox_frames=settings.broadcast.outbox_frames,
            clock=wall_clock,
        )
        stream = StreamEndpoint(broadcaster)
        health = partial(self._health, store, writer)
        bridge = AsgiBridge(api(broadcaster, queries, health, lambda: self._ready, list(settings.http.cors_origins)))
        server = HttpServer(
            Ingest(router, max_events=settings.http.max_batch_events, clock=wall_clock),
            bridge,
            stream.serve,
            host=settings.http.host,
            port=settings.http.port,
            allowed_hosts=settings.http.allowed_hosts,
            max_header_bytes=settings.http.max_header_bytes,
            max_body_bytes=settings.http.max_body_bytes,
        )

        async def commit_and_route() -> None:
            await journal.run(router.commit)
            router.finish()

        # Nested by dependency: what is inside ends first, and ends in order rather than by cancellation.
        async with trio.open_nursery() as background:
            background.start_soon(supervise, "broadcaster", broadcaster.run)
            async with trio.open_nursery() as writers:
                async with trio.open_nursery() as core:
                    await core.start(router.run)
                    background.start_soon(supervise, "recovery", partial(recovery.run, past))
                    with trio.move_on_after(_PATIENCE_S):
                        await recovery.tried.wait()
                    if recovery.refused is not None:
                        raise StartError(str(recovery.refused))
                    writers.start_soon(supervise, "writer", writer.run)
                    core.start_soon(commit_and_route)
                    async with trio.open_nursery() as edge:
                        url = await server.bind()
                        edge.start_soon(server.run)
                        self._ready = True
                        on_ready(url)
                        await self._stop.wait()
                        log.info("stopping", lag_events=writer.lag)
                        self._ready = False
                        server.stop()
                        edge.cancel_scope.deadline = trio.current_time() + _EDGE_S
                        await stream.close()
                    recovery.stop()
                    journal.finish()
                writer.finish()
                writers.cancel_scope.deadline = trio.current_time() + _FLUSH_S
            log.info("flushed", lag_events=writer.lag)
            background.cancel_scope.cancel()
        await store.close()
        await queries.close()

    # --- while it runs

    async def _watch_signals(self) -> None:
        """The first signal starts the shutdown's order, the second ends it at once; nothing acknowledged is lost."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if self._stop.is_set():
                    log.warning("second signal: ending at once", signal=signal.Signals(number).name)
                    if self._embedded is not None and self._embedded.pid is not None:
                        os.kill(self._embedded.pid, signal.SIGINT)
                    os._exit(1)
                self._stop.set()

    async def _health(self, store: PostgresStore, writer: StoreWriter) -> dict[str, Any]:
        """For `/api/v1/health`; the store is asked, so one that went away in a quiet hour is seen."""
        postgresql = writer.health
        began = trio.current_time()
        fault: str | None = f"no answer within {_PING_S:g} s"
        with trio.move_on_after(_PING_S):
            try:
                await store.ping()
                fault = None
            except StoreUnavailableError as error:
                fault = str(error)
        postgresql["response_time_ms"] = round((trio.current_time() - began) * 1000, 1)
        if fault is not None:
            postgresql |= {"status": "unhealthy", "error": postgresql.get("error", fault)}
        checks = {
            "journal": self.journal.health,
            "postgresql": postgresql,
            "influxdb": {"status": "not_configured"},
            "redis": {"status": "not_configured"},
        }
        if checks["journal"]["status"] != "healthy":
            status = "unhealthy"
        elif postgresql["status"] != "healthy":
            status = "degraded"
        else:
            status = "healthy"
        return {"status": status, "checks": checks}


class _Started:
    """A `trio.TaskStatus` that outlives restarts."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: object = None) -> None:  # noqa: ARG002
        self.event.set()


Say = Callable[[str], None]


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    """A DSN that works in the block: the configured one, the running daemon's, or that of a server for the while."""
    directory = settings.data_dir / "postgres"
    if settings.postgres.dsn != EMBEDDED:
        yield settings.postgres.dsn
    elif (running := await trio.to_thread.run_sync(running_dsn, directory)) is not None:
        yield running
    else:
        with DirectoryLock(settings.data_dir):
            async with trio.open_nursery() as nursery:
                embedded = EmbeddedPostgres(directory, log=structlog.get_logger("embedded"))
                yield await nursery.start(embedded.run)
                embedded.request_stop()


async def check(settings: Settings, say: Say) -> bool:
    """Reach every configured store, one line each; tells whether all is well."""
    say("config: ok")
    try:
        async with open_loop(), _database(settings) as dsn:
            say(f"postgresql: ok, {await server_version(dsn)}, {without_password(dsn)}")
    except* ClasspulseError as group:
        for error in flatten(group):
            say(f"postgresql: {error}")
        well = False
    else:
        well = True
    say("influxdb: not configured")
    say("redis: not configured")
    return well


async def migrate(settings: Settings, say: Say) -> None:
    """Bring the database to the current schema."""
    async with open_loop(), _database(settings) as dsn:
        say(f"postgresql: schema version {await migrate_database(dsn)}")
