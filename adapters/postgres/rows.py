"""Events as rows: binary COPY into `cell_executions` and `activity_events`."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias
from uuid import UUID

import trio

from adapters.asyncio_bridge import Connection, to_timestamptz
from adapters.chunks import in_chunks
from engine.event import CELL_TYPES, Event, PackedCommit, error_class
from engine.ports import Flush
from engine.sharding import Shard

_CELL_COLUMNS: Final = (
    "event_id", "user_id", "class_id", "notebook_path", "cell_index", "event_type", "event_timestamp",
    "execution_duration_ms", "has_error", "error_message", "error_class", "execution_count", "session_id", "cell_id",
    "cell_type", "clock_skewed", "received_at", "data", "metadata", "seq", "journal_id",
)  # fmt: skip
_ACTIVITY_COLUMNS: Final = (
    "event_id", "user_id", "class_id", "notebook_path", "event_type", "event_timestamp", "data", "metadata",
    "session_id", "clock_skewed", "received_at", "seq", "journal_id",
)  # fmt: skip

Row: TypeAlias = tuple[Any, ...]


async def copy_rows(connection: Connection, flush: Flush, shard: Shard, *, cells: bool) -> None:
    """The events of a flush that ``shard`` keeps; without ``cells`` those that are no cell events."""
    for chunk in in_chunks(flush.commits):
        activities: list[Row] = []
        rows = _cell_rows(chunk, flush.journal_id, activities, None if shard.size == 1 else shard, cells=cells)
        if cells:
            await connection.copy("cell_executions", _CELL_COLUMNS, rows)
        else:
            for _ in rows:  # there are none; the others are gathered on the way
                pass
            await trio.lowlevel.checkpoint()
        if activities:
            await connection.copy("activity_events", _ACTIVITY_COLUMNS, activities)


def _cell_rows(
    commits: list[PackedCommit], journal_id: UUID, activities: list[Row], shard: Shard | None, *, cells: bool
) -> Iterator[Row]:
    """Rows of cell events, made as they are asked for; those of the other events go to ``activities``.

    Only of students that ``shard`` keeps; None: of all.

    An event is unpacked, encoded and let go while the processor's cache holds it: that halves what it costs.
    """
    for commit in commits:
        received_at = to_timestamptz(commit.received_at)
        for seq, event in enumerate(commit.unpack().events, commit.first_seq):
            if shard is not None and not shard.keeps(event.user_id):
                continue
            if event.event_type in CELL_TYPES:
                if cells:
                    yield _cell_row(event, seq, received_at, journal_id)
            else:
                activities.append(_activity_row(event, seq, received_at, journal_id))


def _cell_row(event: Event, seq: int, received_at: int, journal_id: UUID) -> Row:
    message = event.error_message
    return (
        event.event_id, event.user_id, event.class_id, event.notebook_path, event.cell_index, event.event_type,
        to_timestamptz(event.time), event.execution_duration_ms, event.has_error, message,
        None if message is None else error_class(message), event.execution_count, event.session_id, event.cell_id,
        event.cell_type, event.clock_skewed, received_at,
        event.data if event.total_cells is None and event.completed_cells is None else _with(event, _CELL_EXTRAS),
        event.metadata, seq, journal_id,
    )  # fmt: skip


# What an event may carry that has no column of its own: it goes into `data`.
_CELL_EXTRAS: Final = ("total_cells", "completed_cells")
_ACTIVITY_EXTRAS: Final = (
    "cell_id", "cell_index", "cell_type", "execution_count", "execution_duration_ms", "has_error", "error_message",
    "total_cells", "completed_cells",
)  # fmt: skip


def _activity_row(event: Event, seq: int, received_at: int, journal_id: UUID) -> Row:
    return (
        event.event_id, event.user_id, event.class_id, event.notebook_path, event.event_type,
        to_timestamptz(event.time), _with(event, _ACTIVITY_EXTRAS), event.metadata, event.session_id,
        event.clock_skewed, received_at, seq, journal_id,
    )  # fmt: skip


def _with(event: Event, extras: Iterable[str]) -> str | None:
    """The event's ``data`` with these fields added, as JSON text."""
    found = {name: value for name in extras if (value := getattr(event, name)) is not None}
    if not found:
        return event.data
    return json.dumps(({} if event.data is None else json.loads(event.data)) | found, ensure_ascii=False)
