"""The common wire forms, decoded and checked in one pass of msgspec: the hot path of `engine.decode`.

It takes what is plainly valid and leaves everything else (``None``) to the general decoder, which alone decides what is
wrong and says so. Both give the same events: tests/engine/test_decode.py holds them against each other.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec.structs import astuple

from engine.event import MAX_CELL_ID_CHARS, MAX_PATH_CHARS, MAX_USER_ID_CHARS, NEEDS_NOTEBOOK, Event

_INT_MAX: Final = 2**31 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

# By `re`, because `in` takes twice as long to find out that a body has none.
_find_nul: Final = re.compile(rb"\\u0000").search
# A user id that is stored as it was sent: nothing to trim, nothing to lower.
_TIDY_USER: Final = re.compile(rf"[a-z0-9._@+-]{{1,{MAX_USER_ID_CHARS}}}")

_Stamp = Annotated[datetime, msgspec.Meta(tz=True)] | int | float | None
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None
_Name = Annotated[str, msgspec.Meta(max_length=200)] | None
_Team = Annotated[str, msgspec.Meta(max_length=100)] | None
_SessionId = Annotated[str, msgspec.Meta(max_length=128)] | None
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH_CHARS)] | None
_CellId = Annotated[str, msgspec.Meta(max_length=MAX_CELL_ID_CHARS)] | None
_Index = Annotated[int, msgspec.Meta(ge=0, le=_INT_MAX)] | None
_Int = Annotated[int, msgspec.Meta(ge=-_INT_MAX - 1, le=_INT_MAX)] | None
_Duration = Annotated[float, msgspec.Meta(ge=0)] | None
_CellType = Literal["code", "markdown", "raw"] | None


# By the contract's canonical names; `adapters.http.openapi` describes them from here.
FIELD_TYPES: Final[dict[str, Any]] = {
    "event_id": _Id,
    "event_type": str | None,
    "timestamp": _Stamp,
    "user_id": str | None,
    "user_name": _Name,
    "team": _Team,
    "session_id": _SessionId,
    "notebook_path": _Path,
    "cell_id": _CellId,
    "cell_index": _Index,
    "cell_type": _CellType,
    "execution_count": _Int,
    "execution_duration_ms": _Duration,
    "has_error": bool | None,
    "error_message": str | None,
    "total_cells": _Int,
    "completed_cells": _Int,
    "code": str | None,  # this and the next are never kept
    "result": str | None,
}
# The same in the names that the cell_monitor client sends.
CELL_MONITOR_NAMES: Final = {
    "event_id": "eventId",
    "event_type": "eventType",
    "timestamp": "eventTime",
    "user_id": "emailAddress",
    "user_name": "userName",
    "team": "teamName",
    "session_id": "sessionId",
    "notebook_path": "notebookPath",
    "cell_id": "cellId",
    "cell_index": "cellIndex",
    "cell_type": "cellType",
    "execution_count": "executionCount",
    "execution_duration_ms": "executionDurationMs",
    "has_error": "hasError",
    "error_message": "errorMessage",
    "total_cells": "totalCells",
    "completed_cells": "completedCells",
}


def _decoder(name: str, rename: dict[str, str] | None) -> Callable[[bytes], Any]:
    """Decodes one event or an array. A key it does not know makes the body one for the general decoder."""
    fields = [(field, kind, None) for field, kind in FIELD_TYPES.items()]
    wire = msgspec.defstruct(name, fields, rename=rename, gc=False, forbid_unknown_fields=True)
    return msgspec.json.Decoder(wire | list[wire]).decode  # type: ignore[valid-type]


_decode_canonical: Final = _decoder("Canonical", None)
_decode_cell_monitor: Final = _decoder("CellMonitor", CELL_MONITOR_NAMES)


class Rules(msgspec.Struct, frozen=True):
    """What `engine.decode` decides for both ways."""

    default_class: str
    types: dict[str, str]  # the known spellings of event types -> canonical
    max_ahead_ms: int
    max_behind_ms: int
    max_message: int


def decode_plain(body: bytes, received_at: int, rules: Rules) -> tuple[list[Event], bool] | None:
    """The events of a body in which everything is plainly valid, and whether it was a single object; else None."""
    # Only this escape can bring in a NUL. Lone surrogates msgspec refuses by itself.
    if _find_nul(body):
        return None
    decode = _decode_cell_monitor if b'"eventId"' in body else _decode_canonical
    try:
        document = decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if type(document) is not list:
        event = _event(document, received_at, rules)
        return None if event is None else ([event], True)
    events: list[Event] = []
    for wire in document:
        event = _event(wire, received_at, rules)
        if event is None:
            return None
        events.append(event)
    return events, False


def _event(wire: Any, received_at: int, rules: Rules) -> Event | None:
    """One event, or None where a closer look is needed: a missing field, a rare type, an id to be tidied."""
    # One call for all of them: look-ups by attribute would be half of the decoder's time.
    (
        event_id, kind, stamp, user, name, team, session, path, cell_id, index, cell_type, count, duration, failed,
        message, total, completed, _, _,
    ) = astuple(wire)  # fmt: skip
    kind = rules.types.get(kind)
    if (
        kind is None
        or event_id is None
        or user is None
        or _TIDY_USER.fullmatch(user) is None
        or (path is None and kind in NEEDS_NOTEBOOK)
    ):
        return None
    time = received_at
    skewed = False
    if stamp is not None:
        time = (stamp - _EPOCH) // _MS if type(stamp) is datetime else int(stamp)
        if not received_at - rules.max_behind_ms <= time <= received_at + rules.max_ahead_ms:
            time = received_at
            skewed = True
    # By position, in the order of the fields: by name it costs six times as much, for every event.
    return Event(
        event_id, kind, time, user, rules.default_class, path, session or None, cell_id or None, index, cell_type,
        count, duration, failed, message[: rules.max_message] if message else None, name or None, team or None, total,
        completed, None, None, skewed,
    )  # fmt: skip
