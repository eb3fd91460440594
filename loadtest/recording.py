"""`replay FILE`: requests that real clients sent, played again by as many people as wanted, as fast as wanted.

A file has one JSON object a line with `t_ms`, `method` and `body` (text: JSON, or NDJSON). Events keep their order and
distance; each gets the id, time, class and user of its new sender. Only POSTs of events are played; a repeat of a
user's event id (a client that sent again) is left out, because the player has retries of its own.
"""

import json
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtest.columns import EXECUTIONS, TYPES, value_of
from loadtest.errors import UsageError
from loadtest.scenarios import Scenario
from loadtest.shapes import Shape
from loadtest.users import Person, Post, Steps, VirtualUser

IDS: Final = ("eventId", "event_id", "id")
USERS: Final = ("emailAddress", "userId", "user_id")
CLASSES: Final = ("class_id", "classId")
_encode: Final = msgspec.json.Encoder().encode
# What the player sets itself.
_REPLACED: Final = (*IDS, *USERS, "eventTime", "timestamp", "event_timestamp", "time", *CLASSES)


@dataclass(frozen=True)
class Recorded:
    """One event of a recording, and when it was sent: seconds since the first."""

    at_s: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """What a file holds: events in the order they were sent, and how many POSTs were none of events."""

    events: list[Recorded]
    others: int


def read(path: Path) -> Recording:
    """A recording; UsageError when it holds no event."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a recording: {error}") from error
    events: list[Recorded] = []
    others = 0
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = _events(json.loads(line)) if line.strip() else None
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise UsageError(f"{path}: not a recording: line {number}: {_reason(error)}") from error
        events += found or []
        others += found == []
    seen: set[tuple[str, ...]] = set()
    kept: list[Recorded] = []
    for event in sorted(events, key=lambda event: event.at_s):
        name = _first(event.fields, IDS)
        whole = (_first(event.fields, CLASSES), _first(event.fields, USERS), name)
        if not name or whole not in seen:
            kept.append(event)
            seen.add(whole)
    if not kept:
        raise UsageError(f"{path}: holds no event that the contract knows")
    first = kept[0].at_s
    return Recording([Recorded(event.at_s - first, event.fields) for event in kept], others)


def _reason(error: Exception) -> str:
    """Without the line that JSON knows: each is parsed alone."""
    return f"{error.msg}: column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _events(line: Any) -> list[Recorded] | None:
    """Those that a recorded POST sent, None of another request; ValueError or TypeError when it is none."""
    if not isinstance(line, dict):
        raise TypeError("expected an object")
    if line.get("method") != "POST":
        return None
    t_ms, body = line.get("t_ms"), line.get("body", "")
    if not isinstance(t_ms, int | float) or isinstance(t_ms, bool) or not isfinite(t_ms):
        raise ValueError(f"t_ms: expected milliseconds, got {t_ms!r}")
    if not isinstance(body, str | None):
        raise TypeError(f"body: expected text, got {type(body).__name__}")
    known = [event for event in _objects(body or "") if _has(event, USERS) and _has(event, TYPES)]
    _encode(known)  # what cannot be sent is found here: a lone surrogate is no UTF-8
    return [Recorded(t_ms / 1000, event) for event in known]


def _objects(body: str) -> list[dict[str, Any]]:
    """What a body holds: one object, an array of them, or one a line. Clients send what is none of these, too."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        try:
            found = [json.loads(line) for line in body.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return []
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _first(event: dict[str, Any], keys: tuple[str, ...]) -> str:
    """What it says under any of these names; nothing where it says null."""
    return next((str(event[key]) for key in keys if event.get(key) is not None), "")


def _has(event: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return any(isinstance(event.get(key), str) for key in keys)


class Player(VirtualUser):
    """Plays a recording once."""

    endless = False

    def __init__(self, person: Person, seed: str, pace_s: float, recording: list[Recorded], speed: float) -> None:
        """`speed` 2 plays it in half the time."""
        super().__init__(person, seed, pace_s)
        self._recording = recording
        self._speed = speed

    def steps(self, begin_s: float = 0.0) -> Steps:
        """The events, as far apart as they were."""
        before = 0.0
        self.offset_s = begin_s
        for event in self._recording:
            yield (event.at_s - before) / self._speed, self._post(event.fields)
            before = event.at_s

    def _post(self, recorded: dict[str, Any]) -> Post:
        fields = {key: value for key, value in recorded.items() if key not in _REPLACED}
        fields |= {"classId": self.person.class_id, "emailAddress": self.person.user_id}
        kind = value_of(recorded, "event_type", str)
        failed = bool(value_of(recorded, "has_error", bool))
        execution = kind in EXECUTIONS
        error = kind == "execution_error" or (execution and failed)
        return Post(fields, "error" if error else "", execution, error)


def scenario_of(path: Path, speed: float) -> Scenario:
    """The recording as a scenario of one student; UsageError when it cannot be read."""
    if not 0.01 <= speed <= 1000:
        raise UsageError(f"speed: 0.01 to 1000, got {speed:g}")
    recording = read(path)
    events = recording.events
    length_s = max(1.0, events[-1].at_s / speed + 0.5)
    without = f", without {recording.others} requests that hold none" if recording.others else ""

    return Scenario(
        f"replay:{path}",
        f"{len(events)} recorded events at speed {speed:g}{without}",
        students=1,
        events_per_s=len(events) / length_s,
        shape=Shape(((0.0, 1.0), (length_s, 1.0))),
        mix=((partial(Player, recording=events, speed=speed), 1.0),),
    )
