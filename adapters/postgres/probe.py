"""Single looks at a database, for the command line."""

from adapters.asyncio_bridge import Connection

from .migrations import migrate, migrations


async def server_version(dsn: str) -> str:
    """``PostgreSQL 18.1``. Raises StoreUnavailableError or StoreRefusedError."""
    connection = await Connection.connect(dsn)
    try:
        return f"PostgreSQL {(await connection.fetch('show server_version'))[0][0]}"
    finally:
        await connection.close()


async def migrate_database(dsn: str) -> int:
    """Apply what is missing; returns the schema's version."""
    connection = await Connection.connect(dsn)
    try:
        await migrate(connection, apply=True)
    finally:
        await connection.close()
    return max(migration.version for migration in migrations())
