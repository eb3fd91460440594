"""What an event's row has to hold of its fields, small enough to be kept for each of millions: nine bits a column.

Spellings, cuts and which columns there are: the contract's tables of events and of stores.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final
from zlib import crc32

# How clients spell the type, and that a cell was run.
TYPES: Final = ("eventType", "event_type", "event")
EXECUTIONS: Final = frozenset({"cell_executed", "cell_execution"})
NAMES: Final = ("type", "notebook", "cell", "duration", "error", "message", "count")
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


def of_fields(fields: Mapping[str, Any]) -> int:
    """Of an event as it is posted, whatever is in it: what is of no use is refused, and then there is no row."""
    inner = fields.get("data")
    sources = (fields, inner) if isinstance(inner, Mapping) else (fields,)

    def first(kind: type, *spellings: str) -> Any:
        for source in sources:
            for key in spellings:
                if (value := source.get(key)) is not None:
                    return value if isinstance(value, kind) else None
        return None

    kind = first(str, *TYPES)
    message = first(str, "error_message", "errorMessage")
    return of_row(
        (
            _CANONICAL.get(kind, kind),
            first(str, "notebook_path", "notebookPath"),
            first(int, "cell_index", "cellIndex"),
            _number(first(Real, "execution_duration_ms", "executionDurationMs", "duration")),
            first(bool, "has_error", "hasError"),
            message[:_MOST_MESSAGE].replace("\0", "␀") if message else None,
            first(int, "execution_count", "executionCount"),
        )
    )


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
