"""The daemon's life: the order of start and shutdown, and its signals."""

import gc
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
import trio

from actors.supervisor import supervise
from actors.writer import StoreWriter
from adapters.asyncio_bridge import open_loop
from adapters.embedded import EmbeddedPostgres
from adapters.glibc_heap import FreePages, keep_small
from adapters.huge_pages import HugePages
from adapters.journal import SqliteJournal
from adapters.lock import DirectoryLock
from adapters.systemd import Manager
from adapters.watchdog import Watchdog
from config import Reloader, Settings
from config.settings import EMBEDDED
from engine.clock import wall_clock
from engine.errors import StartError
from engine.ports import CommitSink

from .assembly import Parts, assemble

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
        keep_small()
        with DirectoryLock(self._settings.data_dir):
            async with open_loop(), trio.open_nursery() as services:
                services.start_soon(self._watch_signals)
                services.start_soon(self._manager.feed_watchdog)
                services.start_soon(Watchdog().run)
                self._manager.status("starting")
                if self._embedded is not None:
                    await self._start_embedded(services, self._embedded)
                self._journal.open()
                parts = assemble(
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

    async def _serve(self, parts: Parts, on_ready: Callable[[str], None]) -> None:
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
            background.start_soon(supervise, "huge pages", HugePages().run)
            background.start_soon(supervise, "free pages", FreePages().run)
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

    async def _serve_edge(self, parts: Parts, on_ready: Callable[[str], None]) -> None:
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

    def _reloadable(self, parts: Parts) -> dict[str, Callable[[Any], object]]:
        """Keys that may change while it serves: limits that an operator moves in need, and names."""
        server, journal = parts.server, self._journal

        def limit_headers(size: int) -> None:
            server.max_header_bytes = size

        def limit_journal(size: int) -> None:
            journal.max_bytes = size

        def leave_free(size: int) -> None:
            journal.min_free_bytes = size

        return {
            "http.allowed_hosts": server.allow_hosts,
            "http.max_body_bytes": server.limit_bodies,
            "http.max_header_bytes": limit_headers,
            "journal.max_bytes": limit_journal,
            "journal.min_free_bytes": leave_free,
        }


def _finish(writers: list[StoreWriter], nursery: trio.Nursery, deadline: float) -> None:
    for writer in writers:
        writer.finish()
    nursery.cancel_scope.deadline = deadline


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
