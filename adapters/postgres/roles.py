"""The contract's roles, as connections take them on; `migrations/0003_roles.sql` makes them."""

from contextlib import suppress
from typing import Any, Final

from adapters.asyncio_bridge import Connection
from engine.errors import StoreDataError, StoreMisconfiguredError, StoreRefusedError

ROLES: Final = ("app_reader", "app_writer", "app_user")


async def missing_roles(connection: Connection) -> list[str]:
    """Those that the cluster lacks: whoever migrated could not make them."""
    found = await connection.fetch("select rolname from pg_roles where rolname = any($1::text[])", ROLES)
    return sorted(set(ROLES) - {row[0] for row in found})


async def become_writer(connection: Connection) -> None:
    """Give up what the login may do beyond ``app_writer``, where it can be that; else it goes on as itself.

    Raises StoreRefusedError when it then could not write: PostgreSQL refuses COPY to whom row-level security holds.
    """
    with suppress(StoreMisconfiguredError, StoreDataError):  # not a member of it; there is no such role
        await connection.execute("set role app_writer")
        if await _held_by_policies(connection):
            await connection.execute("reset role")
    if await _held_by_policies(connection):
        raise StoreRefusedError(
            "PostgreSQL refuses COPY to this login, because row-level security holds for it: have a superuser run "
            "`alter role app_writer bypassrls`, and log in as app_writer, as a member of it, or as the tables' owner"
        )


async def _held_by_policies(connection: Connection) -> bool:
    return bool((await connection.fetch("select row_security_active('cell_executions')"))[0][0])


async def fetch_as_student(connection: Connection, user_id: str, query: str, *args: Any) -> list[Any]:
    """Rows that this student may see, through a login of ``app_user``: the setting ends with the transaction."""
    async with connection.transaction():
        await connection.fetch("select set_config('app.current_user_id', $1, true)", user_id)
        return await connection.fetch(query, *args)
