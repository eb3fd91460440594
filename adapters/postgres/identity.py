"""What a database knows of the set of shards that it belongs to."""

from typing import NamedTuple
from uuid import UUID

from adapters.asyncio_bridge import Connection
from engine.errors import StoreRefusedError
from engine.sharding import Shard


class Identity(NamedTuple):
    """One row of `shard_identity`."""

    set_id: UUID
    position: int
    size: int


async def read_identity(connection: Connection) -> Identity | None:
    """None: it was never one of several."""
    rows = await connection.fetch("select set_id, position, count from shard_identity")
    return Identity(*rows[0]) if rows else None


async def write_identity(connection: Connection, identity: Identity) -> None:
    """For good. Raises StoreDataError when it has one."""
    await connection.execute("insert into shard_identity (set_id, position, count) values ($1, $2, $3)", *identity)


def check_identity(found: Identity | None, shard: Shard, *, used: bool) -> None:
    """Raises StoreRefusedError when a database is not what it is configured as. ``used``: it holds events."""
    key = f"postgres.shards: the database at place {shard.position + 1} of {shard.size}"
    if found is None:
        if used and shard.size > 1:
            raise StoreRefusedError(
                f"{key} holds events of a daemon without shards. Which database keeps a student follows from how many "
                "there are, so shards begin with empty databases"
            )
        return
    if found.size != shard.size and shard.size == 1:
        raise StoreRefusedError(
            f"postgres.dsn: this database is number {found.position + 1} of {found.size} shards: name them all, in "
            "their order, in postgres.shards"
        )
    if found.size != shard.size:
        raise StoreRefusedError(
            f"{key} was one of {found.size}. Which database keeps a student follows from how many there are, so their "
            "number cannot change: name the same as at the last start"
        )
    if found.position != shard.position:
        raise StoreRefusedError(
            f"{key} was at place {found.position + 1} before: name them in the order of the last start"
        )
