"""`classpulse check` and `classpulse migrate`: they reach the same stores as the daemon, and end."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from adapters.asyncio_bridge import open_loop
from adapters.bus.probe import RedisCheck
from adapters.embedded import EmbeddedPostgres, running_dsn
from adapters.lock import DirectoryLock
from adapters.postgres.databases import with_login
from adapters.postgres.probe import DatabaseCheck, migrate_database
from config import Settings
from config.settings import EMBEDDED
from engine.checks import tell
from engine.clock import wall_clock
from engine.errors import ClasspulseError, flatten
from engine.measures import Histograms

from .stores import series_store

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
    series = series_store(settings, Histograms())
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
