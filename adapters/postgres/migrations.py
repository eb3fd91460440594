"""Numbered SQL migrations, each applied once, under an advisory lock that is polled (waiting in it could deadlock)."""

import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from adapters.asyncio_bridge import Connection
from engine.errors import StoreRefusedError

from .roles import missing_roles

_DIRECTORY: Final = Path(__file__).parent / "migrations"
_NAME: Final = re.compile(r"(\d{4})_(\w+)\.sql")
# Any constant would do; it is what two programs that migrate the same database agree on.
_LOCK: Final = 0x436C_6173_7370_6D67
_POLL_S: Final = 0.2

log = structlog.get_logger("postgres")


class Migration(NamedTuple):
    """One file of `migrations/`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, hex: an applied migration is never edited."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """What this version knows, ascending."""
    found = []
    for path in sorted(_DIRECTORY.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        assert match is not None, f"{path.name}: a migration is named NNNN_name.sql"
        found.append(Migration(int(match[1]), match[2], path.read_text()))
    return found


async def migrate(connection: Connection, *, apply: bool) -> None:
    """Bring the schema to this version's; with ``apply=False`` only prove that it is, and make nothing.

    Raises StoreRefusedError when the schema is newer, was edited, or is older and must not be changed.
    """
    while not (await connection.fetch("select pg_try_advisory_lock($1)", _LOCK))[0][0]:
        await trio.sleep(_POLL_S)
    try:
        if apply:
            await connection.execute(
                "create table if not exists schema_migrations (version integer primary key, name text not null, "
                "checksum text not null, applied_at timestamptz not null default now())"
            )
        await _migrate(connection, apply=apply)
        if apply:
            await connection.execute("call guard_tables()")
            if missing := await missing_roles(connection):
                log.warning("roles are missing, see docs/operations.md", roles=missing)
    finally:
        if not connection.closed:
            await connection.fetch("select pg_advisory_unlock($1)", _LOCK)


async def missing(connection: Connection) -> list[Migration]:
    """What the database lacks, ascending. Raises StoreRefusedError when its schema is newer, or was edited."""
    made = (await connection.fetch("select to_regclass('schema_migrations') is not null"))[0][0]
    rows = await connection.fetch("select version, checksum from schema_migrations") if made else []
    applied = {row[0]: row[1] for row in rows}
    known = {migration.version: migration for migration in migrations()}
    if newer := sorted(applied.keys() - known.keys()):
        raise StoreRefusedError(
            f"the database's schema is at version {newer[-1]}, this classpulse knows {max(known)}: upgrade classpulse"
        )
    for version, checksum in applied.items():
        if checksum != known[version].checksum:
            raise StoreRefusedError(
                f"migration {version:04} ({known[version].name}) is not what was applied to this database: "
                "its checksum differs. Use the classpulse that made the database, or one that is newer"
            )
    return [migration for version, migration in known.items() if version not in applied]


def unwanted(migration: Migration) -> str:
    """Why a database that lacks this one cannot be used where nothing may be applied."""
    return (
        f"the database lacks migration {migration.version:04} ({migration.name}) and postgres.migrate is false: "
        "run `classpulse migrate`"
    )


async def _migrate(connection: Connection, *, apply: bool) -> None:
    for migration in await missing(connection):
        if not apply:
            raise StoreRefusedError(unwanted(migration))
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        log.info("migrated", version=migration.version, name=migration.name)
