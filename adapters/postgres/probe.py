"""Single looks at a database, for the command line."""

from typing import Final

from adapters.asyncio_bridge import Connection, from_timestamptz, shown
from engine.checks import Finding, clock_ahead
from engine.clock import WallClock
from engine.errors import StoreRefusedError

from .migrations import migrate, migrations, missing, unwanted

# What the daemon writes, and with which rights.
_WRITTEN: Final = (
    "users", "classes", "notebooks", "learning_sessions", "cell_executions", "activity_events", "session_snapshots",
    "sink_offsets", "dead_letters", "learning_progress", "performance_metrics",
)  # fmt: skip
_RIGHTS: Final = ("select", "insert", "update")


class DatabaseCheck:
    """`engine.checks.Checkable` of one database."""

    name = "postgresql"

    def __init__(
        self, dsn: str, *, clock: WallClock, migrates: bool, owns: bool = True, writes: bool = True, looks: bool = True
    ) -> None:
        """``migrates``: the daemon may bring its schema up to date; ``owns``: with this login.

        ``writes``: it is no replica for reads. ``looks``: the login may see more than students' own rows.
        """
        self._dsn = dsn
        self._clock = clock
        self._migrates = migrates
        self._owns = owns
        self._writes = writes
        self._looks = looks

    async def check(self) -> Finding:
        """See `engine.checks.Checkable`."""
        connection = await Connection.connect(self._dsn)
        try:
            return await self._look(connection)
        finally:
            await connection.close()

    async def _look(self, connection: Connection) -> Finding:
        ((version, user, database),) = await connection.fetch(
            "select current_setting('server_version'), current_user, current_database()"
        )
        before = self._clock()
        theirs = from_timestamptz((await connection.fetch("select clock_timestamp()"))[0][0])
        notes, faults = await self._schema(connection) if self._looks else ([], [])
        if self._writes and (read_only := await _read_only(connection, database)):
            faults = [read_only]  # whatever else is amiss, it is not here that it can be mended
        elif self._writes:
            faults += await _lacking_rights(connection, user, creates=self._migrates and self._owns)
        return Finding(
            server=f"PostgreSQL {version.split()[0]}",
            where=shown(self._dsn),
            clock_ms=clock_ahead(before, theirs, self._clock()),
            notes=tuple(notes),
            faults=tuple(faults),
        )

    async def _schema(self, connection: Connection) -> tuple[list[str], list[str]]:
        """Notes and faults about the tables' versions."""
        known = migrations()
        newest = known[-1].version
        try:
            lacking = await missing(connection)
        except StoreRefusedError as error:
            return [], [str(error)]
        if not lacking:
            return [f"schema {newest}"], []
        if not self._migrates:
            return [], [unwanted(lacking[0])]
        if lacking == known:
            return ["no tables yet: the first `serve` makes them"], []
        return [f"schema {lacking[0].version - 1}: the next `serve` brings it to {newest}"], []


async def _read_only(connection: Connection, database: str) -> str | None:
    ((standby, read_only),) = await connection.fetch(
        "select pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
    )
    if standby:
        return "it is a standby, which is read-only: let postgres.dsn lead to its primary"
    if read_only:
        return f'it is read-only: `alter database "{database}" set default_transaction_read_only = off`'
    return None


async def _lacking_rights(connection: Connection, user: str, *, creates: bool) -> list[str]:
    """Rights that the daemon needs and this user lacks, each with the statement that grants it."""
    faults = []
    ((may_create,),) = await connection.fetch("select has_schema_privilege('public', 'create')")
    if creates and not may_create:
        faults.append(
            f'user {user} may not make tables: `grant create on schema public to "{user}"`, or set '
            "postgres.migrate = false and run `classpulse migrate` as the owner"
        )
    lacking = await connection.fetch(
        "select r, string_agg(t, ', ' order by t) from unnest($1::text[]) t, unnest($2::text[]) r "
        "where to_regclass(t) is not null and not has_table_privilege(to_regclass(t), r) group by r order by r",
        list(_WRITTEN),
        list(_RIGHTS),
    )
    faults += [
        f'user {user} may not {right} in {tables}: `grant {right} on {tables} to "{user}"`' for right, tables in lacking
    ]
    return faults


async def migrate_database(dsn: str) -> int:
    """Apply what is missing; returns the schema's version."""
    connection = await Connection.connect(dsn)
    try:
        await migrate(connection, apply=True)
    finally:
        await connection.close()
    return max(migration.version for migration in migrations())
