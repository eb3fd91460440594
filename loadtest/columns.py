"""What an event's row has to hold of its fields, small enough to be kept for each of millions: nine bits a column.

Spellings, cuts and which columns there are: the contract's tables of events and of stores.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final
from zlib import crc32

EXECUTIONS: Final = frozenset({"cell_executed", "cell_execution"})
NAMES: Final = ("type", "notebook", "cell", "duration", "error", "message", "count")
# How clients spell what is looked at here, the strongest first. What is not there may stand inside `data`.
_SPELLINGS: Final = {
    "event_type": ("event_type", "eventType", "event"),
    "session_id": ("session_id", "sessionId"),
    "notebook_path": ("notebook_path", "notebookPath"),
    "cell_index": ("cell_index", "cellIndex"),
    "execution_duration_ms": ("execution_duration_ms", "executionDurationMs", "duration"),
    "has_error": ("has_error", "hasError"),
    "error_message": ("error_message", "errorMessage"),
    "execution_count": ("execution_count", "executionCount"),
}
TYPES: Final = _SPELLINGS["event_type"]
_BITS: Final = 9
_MASK: Final = (1 << _BITS) - 1
_MOST_MESSAGE: Final = 8192
_CANONICAL: Final = dict.fromkeys(EXECUTIONS, "cell_executed") | {
    "help": "help_requested",
    "help_stop": "help_resolved",
}
# Cell events have a table with all columns; all others go to one that has type and notebook.
_OF_CELLS: Final = frozenset({"cell_executed", "execution_error"})
_NONE: Final = (None,) * 5


def value_of(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """What an event says of a field, however it spells it; None where it does not, or says no such value."""
    inner = fields.get("data")
    for source in (fields, inner) if isinstance(inner, Mapping) else (fields,):
        for spelling in _SPELLINGS[name]:
            if (value := source.get(spelling)) is not None:
                return value if isinstance(value, kind) else None
    return None


def of_fields(fields: Mapping[str, Any]) -> int:
    """Of an event as it is posted, whatever is in it: what is of no use is refused, and then there is no row."""
    kind, notebook, message = (value_of(fields, name, str) for name in ("event_type", "notebook_path", "error_message"))
    return of_row(
        (
            _CANONICAL.get(kind, kind),
            _without_nul(notebook),
            value_of(fields, "cell_index", int),
            _number(value_of(fields, "execution_duration_ms", Real)),
            value_of(fields, "has_error", bool),
            _without_nul(message and message[:_MOST_MESSAGE]),
            value_of(fields, "execution_count", int),
        )
    )


def _without_nul(text: str | None) -> str | None:
    return text.replace("\0", "␀") if text else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None


def of_row(values: Sequence[Any]) -> int:
    """Of a row: its values in the order of `NAMES`, None for what is missing."""
    kind, notebook, *more = values
    cell, duration_ms, failed, message, count = more if kind in _OF_CELLS else _NONE
    found = 0
    for value in (kind, notebook, cell, duration_ms, failed or None, message or None, count):
        found = found << _BITS | (crc32(repr(value).encode()) & _MASK)
    return found


def differences(one: int, other: int) -> list[str]:
    """The names of columns that are not the same."""
    apart = one ^ other
    return [name for place, name in enumerate(reversed(NAMES)) if apart >> place * _BITS & _MASK][::-1]
