"""What other programs are told of an event as it happens: a channel, and a message in JSON."""

from typing import Final

import msgspec

from engine.clock import rfc3339
from engine.event import HELP_REQUESTED, HELP_RESOLVED, NOTEBOOK_TYPES, SESSION_END, SESSION_START, Event

PROGRESS_EVENTS: Final = "progress_events"
ERROR_EVENTS: Final = "error_events"
SESSION_EVENTS: Final = "session_events"
CHANNELS: Final = (PROGRESS_EVENTS, ERROR_EVENTS, SESSION_EVENTS)

_OF_SESSIONS: Final = NOTEBOOK_TYPES | {SESSION_START, SESSION_END, HELP_REQUESTED, HELP_RESOLVED}


def channel_of(event: Event) -> str:
    """The one channel that an event goes to: failures apart, then what is about sessions; the rest is progress."""
    if event.failed:
        return ERROR_EVENTS
    return SESSION_EVENTS if event.event_type in _OF_SESSIONS else PROGRESS_EVENTS


def message_of(event: Event) -> bytes:
    """``{"event_type","user_id","class_id","data":{…}}``: in ``data`` the event's other fields that are known."""
    details = _Details(
        event.event_id,
        rfc3339(event.time),
        event.notebook_path,
        event.session_id,
        event.cell_id,
        event.cell_index,
        event.cell_type,
        event.execution_count,
        event.execution_duration_ms,
        event.has_error,
        event.error_message,
        event.user_name,
        event.team,
        event.total_cells,
        event.completed_cells,
        None if event.data is None else msgspec.Raw(event.data.encode()),
        None if event.metadata is None else msgspec.Raw(event.metadata.encode()),
        event.clock_skewed,
    )
    return _encode(_Message(event.event_type, event.user_id, event.class_id, details))


class _Details(msgspec.Struct, gc=False, omit_defaults=True):
    """As the contract names the fields of an event; absent ones are left out."""

    event_id: str
    timestamp: str
    notebook_path: str | None = None
    session_id: str | None = None
    cell_id: str | None = None
    cell_index: int | None = None
    cell_type: str | None = None
    execution_count: int | None = None
    execution_duration_ms: float | None = None
    has_error: bool | None = None
    error_message: str | None = None
    user_name: str | None = None
    team: str | None = None
    total_cells: int | None = None
    completed_cells: int | None = None
    data: msgspec.Raw | None = None
    metadata: msgspec.Raw | None = None
    clock_skewed: bool = False


class _Message(msgspec.Struct, gc=False):
    event_type: str
    user_id: str
    class_id: str
    data: _Details


_encode: Final = msgspec.json.Encoder().encode
