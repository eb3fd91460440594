"""The common wire forms, decoded and checked in one pass of msgspec: the hot path of `engine.decode`.

It takes what is plainly valid and leaves everything else (``None``) to the general decoder, which alone decides what is
wrong and says so. Both give the same events: tests/engine/test_decode.py holds them against each other.
"""

from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec

from engine.event import NEEDS_NOTEBOOK, Event

_INT_MAX: Final = 2**31 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

_Stamp = Annotated[datetime, msgspec.Meta(tz=True)] | int | float | None
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None
_Name = Annotated[str, msgspec.Meta(max_length=200)] | None
_Team = Annotated[str, msgspec.Meta(max_length=100)] | None
_SessionId = Annotated[str, msgspec.Meta(max_length=128)] | None
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=500)] | None
_CellId = Annotated[str, msgspec.Meta(max_length=500)] | None
_Index = Annotated[int, msgspec.Meta(ge=0, le=_INT_MAX)] | None
_Int = Annotated[int, msgspec.Meta(ge=-_INT_MAX - 1, le=_INT_MAX)] | None
_Duration = Annotated[float, msgspec.Meta(ge=0)] | None
_CellType = Literal["code", "markdown", "raw"] | None


class _Wire(msgspec.Struct, gc=False):
    """Every spelling of the contract's event table, snake case first."""

    event_id: _Id = None
    eventId: _Id = None  # noqa: N815 - the clients' names, here and below
    id: _Id = None
    event_type: str | None = None
    eventType: str | None = None  # noqa: N815
    event: str | None = None
    timestamp: _Stamp = None
    eventTime: _Stamp = None  # noqa: N815
    event_timestamp: _Stamp = None
    time: _Stamp = None
    user_id: str | None = None
    userId: str | None = None  # noqa: N815
    emailAddress: str | None = None  # noqa: N815
    user_name: _Name = None
    userName: _Name = None  # noqa: N815
    display_name: _Name = None
    team: _Team = None
    teamName: _Team = None  # noqa: N815
    class_id: str | None = None
    classId: str | None = None  # noqa: N815
    session_id: _SessionId = None
    sessionId: _SessionId = None  # noqa: N815
    notebook_path: _Path = None
    notebookPath: _Path = None  # noqa: N815
    cell_id: _CellId = None
    cellId: _CellId = None  # noqa: N815
    cell_index: _Index = None
    cellIndex: _Index = None  # noqa: N815
    cell_type: _CellType = None
    cellType: _CellType = None  # noqa: N815
    execution_count: _Int = None
    executionCount: _Int = None  # noqa: N815
    execution_duration_ms: _Duration = None
    executionDurationMs: _Duration = None  # noqa: N815
    duration: _Duration = None
    has_error: bool | None = None
    hasError: bool | None = None  # noqa: N815
    error_message: str | None = None
    errorMessage: str | None = None  # noqa: N815
    code: str | None = None
    result: str | None = None
    total_cells: _Int = None
    totalCells: _Int = None  # noqa: N815
    completed_cells: _Int = None
    completedCells: _Int = None  # noqa: N815
    data: Any = None
    metadata: Any = None


_decode: Final = msgspec.json.Decoder(_Wire | list[_Wire]).decode
_fields: Final = attrgetter(*(name for name in _Wire.__struct_fields__ if name not in ("code", "result")))


class Rules(msgspec.Struct, frozen=True):
    """What `engine.decode` decides for both ways."""

    default_class: str
    types: dict[str, str]  # the known spellings of event types -> canonical
    max_ahead_ms: int
    max_behind_ms: int
    max_message: int


def decode_plain(body: bytes, received_at: int, rules: Rules) -> tuple[list[Event], bool] | None:
    """The events of a body in which everything is plainly valid, and whether it was a single object; else None."""
    # Only \u escapes can bring in NUL or surrogates.
    if b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body:
        return None
    try:
        document = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    single = type(document) is _Wire
    events: list[Event] = []
    for wire in [document] if single else document:
        event = _event(wire, received_at, rules)
        if event is None:
            return None
        events.append(event)
    return events, single


def _event(wire: _Wire, received_at: int, rules: Rules) -> Event | None:
    # One call for all of them: 45 attribute look-ups would be half of the decoder's time.
    (
        event_id, event_id_2, event_id_3, kind, kind_2, kind_3, stamp, stamp_2, stamp_3, stamp_4, user, user_2, user_3,
        name, name_2, name_3, team, team_2, class_id, class_2, session, session_2, path, path_2, cell_id, cell_id_2,
        index, index_2, cell_type, cell_type_2, count, count_2, duration, duration_2, duration_3, failed, failed_2,
        message, message_2, total, total_2, completed, completed_2, data, metadata,
    ) = _fields(wire)  # fmt: skip
    if event_id is None and (event_id := event_id_2) is None and (event_id := event_id_3) is None:
        return None
    if kind is None and (kind := kind_2) is None:
        kind = kind_3
    kind = rules.types.get(kind)
    if user is None and (user := user_2) is None and (user := user_3) is None:
        return None
    if path is None:
        path = path_2
    if class_id is None and (class_id := class_2) is None:
        class_id = rules.default_class
    # What needs a closer look, or is an error, is the general decoder's.
    if (
        kind is None
        or data is not None
        or metadata is not None
        or class_id != rules.default_class
        or not user.isascii()
        or not user.islower()
        or not 1 <= len(user) <= 254  # noqa: PLR2004 - the contract's bound
        or " " in user
        or user != user.strip()
        or (path is None and kind in NEEDS_NOTEBOOK)
    ):
        return None
    if stamp is None and (stamp := stamp_2) is None and (stamp := stamp_3) is None:
        stamp = stamp_4
    time = received_at
    skewed = False
    if stamp is not None:
        time = (stamp - _EPOCH) // _MS if type(stamp) is datetime else int(stamp)
        if not received_at - rules.max_behind_ms <= time <= received_at + rules.max_ahead_ms:
            time = received_at
            skewed = True
    if message is None:
        message = message_2
    if session is None:
        session = session_2
    if name is None and (name := name_2) is None:
        name = name_3
    if team is None:
        team = team_2
    if cell_id is None:
        cell_id = cell_id_2
    if duration is None and (duration := duration_2) is None:
        duration = duration_3
    return Event(
        event_id=event_id,
        event_type=kind,
        time=time,
        user_id=user,
        class_id=class_id,
        notebook_path=path,
        session_id=session or None,
        cell_id=cell_id or None,
        cell_index=index_2 if index is None else index,
        cell_type=cell_type_2 if cell_type is None else cell_type,
        execution_count=count_2 if count is None else count,
        execution_duration_ms=duration,
        has_error=failed_2 if failed is None else failed,
        error_message=message[: rules.max_message] or None if message is not None else None,
        user_name=name or None,
        team=team or None,
        total_cells=total_2 if total is None else total,
        completed_cells=completed_2 if completed is None else completed,
        clock_skewed=skewed,
    )
