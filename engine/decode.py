"""From what clients send to canonical events.

The rules are the contract's event table: aliases, nothing coerced, ``null`` means missing, text that is too long is
cut while ids, paths and names are rejected, NUL becomes U+2400 and a lone surrogate U+FFFD. An event is rejected alone;
the rest of its batch goes on. `code` and `result` are checked and dropped: they never reach the journal.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

from engine.clock import parse_rfc3339
from engine.errors import MalformedError, TooManyEventsError
from engine.event import (
    MAX_CELL_ID_CHARS,
    MAX_PATH_CHARS,
    MAX_USER_ID_CHARS,
    NEEDS_NOTEBOOK,
    TYPE_ALIASES,
    Event,
)
from engine.ids import uuid7
from engine.jsontext import decode_json, decode_utf8, encode_json
from engine.wire import Rules, decode_plain

DEFAULT_CLASS: Final = "default"
# How far an event's own time may be from the time of receipt (ms) before the time of receipt is taken instead.
MAX_AHEAD_MS: Final = 10 * 60 * 1000
MAX_BEHIND_MS: Final = 30 * 24 * 3600 * 1000
MAX_OBJECT_BYTES: Final = 16 * 1024  # of `data` and of `metadata`, as compact JSON
# PostgreSQL's `integer`: counts and indexes are stored in it.
_INT_MIN: Final = -(2**31)
_INT_MAX: Final = 2**31 - 1

_JSON_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "an array",
    type(None): "null",
}

_MAX_MESSAGE: Final = 8192
# Spellings of types that the hot path knows; any other takes the general way.
_RULES: Final = Rules(
    default_class=DEFAULT_CLASS,
    types=TYPE_ALIASES | {kind: kind for kind in (*NEEDS_NOTEBOOK, *TYPE_ALIASES.values(), "progress")},
    max_ahead_ms=MAX_AHEAD_MS,
    max_behind_ms=MAX_BEHIND_MS,
    max_message=_MAX_MESSAGE,
)

_split: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode

Check: TypeAlias = Callable[[Any], Any]


class Rejected(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of a batch that was not taken: its place in the batch, why, and its id where it has one."""

    index: int
    error: str
    event_id: str | None = None


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What a request body holds. ``single`` is set when it was one JSON object."""

    events: list[Event]
    rejected: list[Rejected]
    single: bool

    def without(self, refused: Mapping[int, str]) -> "Decoded":
        """The same body with some more rejected: why, by their place in ``events``."""
        known = {each.index for each in self.rejected}
        indexes = (index for index in itertools.count() if index not in known)
        rejected = [
            Rejected(index, refused[place], event.event_id if event.named else None)
            for place, (event, index) in enumerate(zip(self.events, indexes, strict=False))
            if place in refused
        ]
        return Decoded(
            [event for place, event in enumerate(self.events) if place not in refused],
            sorted([*self.rejected, *rejected], key=lambda each: each.index),
            self.single,
        )


class _InvalidError(Exception):
    """A field is not as the contract says; the message is for the client."""


def _expected(what: str, raw: Any) -> NoReturn:
    raise _InvalidError(f"expected {what}, got {_JSON_NAMES[type(raw)]}")


def _cut(limit: int) -> Check:
    def check(raw: Any) -> str | None:
        if type(raw) is not str:
            _expected("a string", raw)
        return raw[:limit] or None

    return check


def _name(limit: int, least: int = 0) -> Check:
    def check(raw: Any) -> str | None:
        if type(raw) is not str:
            _expected("a string", raw)
        if not least <= len(raw) <= limit:
            raise _InvalidError(f"must have {least} to {limit} characters, has {len(raw)}")
        return raw or None

    return check


def _integer(least: int = _INT_MIN) -> Check:
    def check(raw: Any) -> int:
        if type(raw) is not int:
            _expected("an integer", raw)
        if not least <= raw <= _INT_MAX:
            raise _InvalidError(f"must be between {least} and {_INT_MAX}")
        return raw

    return check


def _boolean(raw: Any) -> bool:
    if type(raw) is not bool:
        _expected("true or false", raw)
    return raw


def _duration(raw: Any) -> float:
    if type(raw) is not int and type(raw) is not float:
        _expected("a number", raw)
    try:
        value = float(raw)
    except OverflowError:
        value = -1.0
    if not (value >= 0 and isfinite(value)):
        raise _InvalidError("must be a finite number of milliseconds, 0 or more")
    return value


def _user_id(raw: Any) -> str:
    if type(raw) is not str:
        _expected("a string", raw)
    text = tidy_user_id(raw)
    if not 1 <= len(text) <= MAX_USER_ID_CHARS:
        raise _InvalidError(f"must have 1 to {MAX_USER_ID_CHARS} characters, has {len(text)}")
    return text


def tidy_user_id(text: str) -> str:
    """A user id as it is stored: trimmed, and the ASCII letters of an email lower case."""
    text = text.strip()
    return text.translate(_ASCII_LOWER) if "@" in text else text


def _event_type(raw: Any) -> str:
    if type(raw) is not str:
        _expected("a string", raw)
    if EVENT_TYPE.fullmatch(raw) is None:
        raise _InvalidError("must be 1 to 64 of a-z, 0-9, _ and .")
    return TYPE_ALIASES.get(raw, raw)


def _class_id(raw: Any) -> str:
    if type(raw) is not str:
        _expected("a string", raw)
    if CLASS_ID.fullmatch(raw) is None:
        raise _InvalidError("must be 1 to 64 of A-Z, a-z, 0-9, ., _ and -")
    return raw


def _cell_type(raw: Any) -> str:
    if type(raw) is not str:
        _expected("a string", raw)
    if raw not in ("code", "markdown", "raw"):
        raise _InvalidError("must be code, markdown or raw")
    return raw


def _time(raw: Any) -> int:
    """Milliseconds since the epoch; whether it can be believed is decided against the time of receipt."""
    if type(raw) is str:
        try:
            return parse_rfc3339(raw)
        except ValueError:
            raise _InvalidError(
                "expected RFC 3339 with a zone, such as 2026-11-23T14:53:51.830Z, or epoch ms"
            ) from None
    if type(raw) is not int and (type(raw) is not float or not isfinite(raw)):
        _expected("RFC 3339 with a zone or epoch ms", raw)
    return int(raw)


def _json_object(raw: Any) -> dict[str, Any]:
    if type(raw) is not dict:
        _expected("an object", raw)
    return raw


EVENT_TYPE: Final = re.compile(r"[a-z0-9_.]{1,64}")
CLASS_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

# canonical name: (other spellings, strongest first, check). The contract's event table.
FIELDS: Final[dict[str, tuple[tuple[str, ...], Check]]] = {
    "event_id": (("eventId", "id"), _name(128, 1)),
    "event_type": (("eventType", "event"), _event_type),
    "timestamp": (("eventTime", "event_timestamp", "time"), _time),
    "user_id": (("userId", "emailAddress"), _user_id),
    "user_name": (("userName", "display_name"), _name(200)),
    "team": (("teamName",), _name(100)),
    "class_id": (("classId",), _class_id),
    "session_id": (("sessionId",), _name(128)),
    "notebook_path": (("notebookPath",), _name(MAX_PATH_CHARS, 1)),
    "cell_id": (("cellId",), _name(MAX_CELL_ID_CHARS)),
    "cell_index": (("cellIndex",), _integer(0)),
    "cell_type": (("cellType",), _cell_type),
    "execution_count": (("executionCount",), _integer()),
    "execution_duration_ms": (("executionDurationMs", "duration"), _duration),
    "has_error": (("hasError",), _boolean),
    "error_message": (("errorMessage",), _cut(_MAX_MESSAGE)),
    "code": ((), _cut(65536)),
    "result": ((), _cut(65536)),
    "total_cells": (("totalCells",), _integer()),
    "completed_cells": (("completedCells",), _integer()),
    "data": ((), _json_object),
    "metadata": ((), _json_object),
}
# spelling -> (canonical name, rank: 0 is strongest, check)
_SPELLINGS: Final[dict[str, tuple[str, int, Check]]] = {
    spelling: (name, rank, check)
    for name, (others, check) in FIELDS.items()
    for rank, spelling in enumerate((name, *others))
}
_NEVER_KEPT: Final = frozenset({"code", "result"})
_NESTED: Final = _NEVER_KEPT | {"data", "metadata"}  # means nothing, or something else, inside ``data``


def decode_body(body: bytes, *, ndjson: bool, received_at: int, max_events: int) -> Decoded:
    """Decode a request body: one JSON object, a JSON array, or NDJSON lines.

    Raises MalformedError when it is not JSON, TooManyEventsError past ``max_events``.
    """
    if not ndjson:
        # A body of fewer bytes cannot hold so many: most need not be counted.
        if len(body) > max_events and body.count(b"{") + body.count(b"[") > max_events:
            _check_elements(body, max_events)
        plain = decode_plain(body, received_at, _RULES)
        if plain is not None and len(plain[0]) <= max_events:
            return Decoded(plain[0], [], plain[1])
    return decode_any(body, ndjson=ndjson, received_at=received_at, max_events=max_events)


def decode_any(body: bytes, *, ndjson: bool, received_at: int, max_events: int) -> Decoded:
    """`decode_body` for every form, valid or not."""
    if ndjson:
        items, single = _lines(body, max_events), False
    else:
        document = decode_json(body)
        single = type(document) is dict
        items = document if type(document) is list else [document]
    _check_count(len(items), max_events)
    events: list[Event] = []
    rejected: list[Rejected] = []
    for index, item in enumerate(items):
        try:
            events.append(_event(item, received_at))
        except (_InvalidError, MalformedError) as error:
            rejected.append(Rejected(index, str(error), _id_of(item)))
    return Decoded(events, rejected, single)


def is_class_id(text: str) -> bool:
    """Whether it can be a ``class_id``."""
    return CLASS_ID.fullmatch(text) is not None


def _check_elements(body: bytes, max_events: int) -> None:
    """Count the elements of an array without making them: 349,000 of 1 MiB took 93 ms to be refused."""
    try:
        elements = len(_split(body))
    except msgspec.ValidationError:
        return  # no array
    except (msgspec.DecodeError, RecursionError):
        decode_json(body)  # says what is wrong with it, if it is not only unusual
        return
    if elements > max_events:
        decode_utf8(body)  # which passing over elements does not look at
    _check_count(elements, max_events)


def _check_count(count: int, max_events: int) -> None:
    if count > max_events:
        raise TooManyEventsError(f"{count} events in one request; at most {max_events} are taken")


def _lines(body: bytes, max_events: int) -> list[Any]:
    """The documents of an NDJSON body; one that is not JSON is its own error, met when its turn comes."""
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    _check_count(len(lines), max_events)  # before they are decoded: half a million bad lines of 1 MiB took 9 s
    items: list[Any] = []
    for line in lines:
        try:
            items.append(decode_json(line))
        except MalformedError as error:
            items.append(error)
    return items


def _id_of(item: Any) -> str | None:
    """The id that a rejected event came with, as far as it can be echoed."""
    if type(item) is not dict:
        return None
    inner = item.get("data")
    for source in (item, inner if type(inner) is dict else {}):
        for spelling in ("event_id", "eventId", "id"):
            value = source.get(spelling)
            if type(value) is str and 1 <= len(value) <= 128:
                return value
    return None


def _event(item: Any, received_at: int) -> Event:
    if type(item) is MalformedError:
        raise item
    if type(item) is not dict:
        _expected("an object", item)
    values: dict[str, Any] = {}
    _take(item, values)
    data = values.get("data")
    if data is not None:
        data = _lift(data, values)
        values["data"] = _object_text("data", data) if data else None
    metadata = values.get("metadata")
    if metadata is not None:
        metadata = {key: value for key, value in metadata.items() if key not in _NEVER_KEPT}
        values["metadata"] = _object_text("metadata", metadata) if metadata else None
    values.pop("code", None)
    values.pop("result", None)
    event_type = values.get("event_type")
    if event_type is None:
        raise _InvalidError("event_type: missing")
    if "user_id" not in values:
        raise _InvalidError("user_id: missing")
    if event_type in NEEDS_NOTEBOOK and "notebook_path" not in values:
        raise _InvalidError(f"notebook_path: missing ({event_type} needs it)")
    values.setdefault("class_id", DEFAULT_CLASS)
    time = values.pop("timestamp", received_at)
    if not received_at - MAX_BEHIND_MS <= time <= received_at + MAX_AHEAD_MS:
        time = received_at
        values["clock_skewed"] = True
    if "event_id" not in values:
        values["event_id"] = uuid7()
        values["named"] = False
    return Event(time=time, **values)


def _take(source: dict[str, Any], values: dict[str, Any]) -> None:
    """Check the known fields of ``source`` into ``values``. Of a field's spellings only the strongest is looked at."""
    strongest: dict[str, tuple[int, Any, Check]] = {}
    for spelling, raw in source.items():
        field = _SPELLINGS.get(spelling)
        if field is None or raw is None:
            continue
        name, rank, check = field
        if name not in strongest or rank < strongest[name][0]:
            strongest[name] = (rank, raw, check)
    for name, (_, raw, check) in strongest.items():
        try:
            values[name] = check(raw)
        except _InvalidError as error:
            raise _InvalidError(f"{name}: {error}") from None


def _lift(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Seed-style events carry fields inside ``data``: take those that the event itself lacks; return what stays.

    What is never kept is dropped whatever it is: with a client of its own kind, `result` may be an object.
    """
    taken = {
        key: value
        for key, value in data.items()
        if key in _SPELLINGS and key not in _NESTED and _SPELLINGS[key][0] not in values
    }
    dropped = taken.keys() | _NEVER_KEPT
    if dropped.isdisjoint(data):
        return data
    _take(taken, values)
    return {key: value for key, value in data.items() if key not in dropped}


def _object_text(name: str, value: dict[str, Any]) -> str:
    try:
        text = encode_json(value, MAX_OBJECT_BYTES)
    except MalformedError as error:
        raise _InvalidError(f"{name}: {error}") from None
    if len(text) > MAX_OBJECT_BYTES:
        raise _InvalidError(f"{name}: {len(text)} bytes of JSON; at most {MAX_OBJECT_BYTES} are taken")
    return text.decode()
