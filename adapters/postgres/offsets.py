"""How far each store is through a journal: what recovery begins from, and what moves with the rows or not at all."""

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from adapters.asyncio_bridge import Connection
from engine.errors import StoreUnavailableError
from engine.ports import Flush, StoredOffsets

OFFSETS: Final = "select store, seq from sink_offsets where journal_id = $1"


def offsets_of(rows: Iterable[Any], name: str) -> StoredOffsets:
    """What the rows of `OFFSETS` tell the store of this name, of itself and of others."""
    seqs = {row[0]: row[1] for row in rows}
    return StoredOffsets(seqs.pop(name, 0), seqs.pop(f"{name}.snapshots", 0), seqs)


async def move_offsets(connection: Connection, flush: Flush, name: str) -> None:
    """The rows' offset moves from where we believe it is, or nothing is written: raises StoreUnavailableError."""
    for other, seq in flush.offsets.items():
        if seq is None:
            # By a function of the owner's: who writes may not delete.
            await connection.execute("select forget_offset($1, $2)", flush.journal_id, other)
        else:
            await _put(connection, flush.journal_id, other, seq)
    tag = await connection.execute(
        "insert into sink_offsets (journal_id, store, seq) values ($1, $2, $3) on conflict (journal_id, store) "
        "do update set seq = excluded.seq, updated_at = now() where sink_offsets.seq <= $4",
        flush.journal_id, name, flush.upto, flush.after,
    )  # fmt: skip
    if tag != "INSERT 0 1":
        raise StoreUnavailableError("PostgreSQL: the offset is not where it was; it will be read again")
    await _put(connection, flush.journal_id, f"{name}.snapshots", flush.snapshot_floor)


async def _put(connection: Connection, journal_id: UUID, name: str, seq: int) -> None:
    await connection.execute(
        "insert into sink_offsets (journal_id, store, seq) values ($1, $2, $3) on conflict (journal_id, store) "
        "do update set seq = excluded.seq, updated_at = now()",
        journal_id, name, seq,
    )  # fmt: skip
