"""What the API takes and gives, as JSON Schema.

The event's fields come from where they are decoded (`engine.wire`, `engine.decode`), so that the two cannot differ.
"""

from typing import Any, Final, TypeAlias

import msgspec

from engine.decode import CLASS_ID, DEFAULT_CLASS, EVENT_TYPE, FIELDS, MAX_OBJECT_BYTES
from engine.event import MAX_USER_ID_CHARS, NEEDS_NOTEBOOK, TYPE_ALIASES
from engine.series import GROUPS
from engine.view import STATUSES
from engine.wire import CELL_MONITOR_NAMES, FIELD_TYPES

Schema: TypeAlias = dict[str, Any]

STRING: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
CLASS: Final[Schema] = {"type": "string", "pattern": f"^{CLASS_ID.pattern}$"}
_KNOWN_TYPES: Final = sorted(
    {*NEEDS_NOTEBOOK, *TYPE_ALIASES, *TYPE_ALIASES.values(), "session_start", "session_end", "progress"}
)


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these members and no other."""
    members = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": members, "additionalProperties": False}


def array(items: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """One of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


# --- events

# What the decoder checks beyond the types.
_NARROWER: Final[dict[str, Schema]] = {
    "event_type": {"type": "string", "anyOf": [{"enum": _KNOWN_TYPES}, {"pattern": f"^{EVENT_TYPE.pattern}$"}]},
    # Python strips more than \s of ECMAScript, whose regular expressions these are.
    "user_id": {"type": "string", "maxLength": MAX_USER_ID_CHARS, "pattern": r"[^\s\x1c-\x1f\x85]"},
    "class_id": {"anyOf": [CLASS, {"type": "null"}], "default": DEFAULT_CLASS},
    "data": {"type": ["object", "null"]},
    "metadata": {"type": ["object", "null"]},
}
_NOTES: Final[dict[str, str]] = {
    "event_id": "Unique per class and user; a repeat counts once. Made when missing.",
    "event_type": "Any other than those listed is stored, and counts as activity.",
    "timestamp": "RFC 3339 with a zone, or milliseconds since the epoch. Missing: the time of receipt.",
    "user_id": "Trimmed; the ASCII letters of an email are lower-cased.",
    "notebook_path": "Needed for cell and notebook events.",
    "error_message": "What is longer than 8192 characters is cut.",
    "code": "Never kept.",
    "result": "Never kept.",
    "data": f"At most {MAX_OBJECT_BYTES} bytes of JSON. Fields of the event may stand in it too.",
    "metadata": f"At most {MAX_OBJECT_BYTES} bytes of JSON.",
}


def _event(names: dict[str, str]) -> Schema:
    """One event, its fields under the names that ``names`` gives them."""
    members: dict[str, Schema] = {}
    for field, (others, _) in FIELDS.items():
        schema = _NARROWER.get(field) or msgspec.json.schema(FIELD_TYPES[field])
        spelled = names.get(field, field)
        also = [f"`{other}`" for other in (field, *others) if other != spelled]
        notes = [_NOTES.get(field, ""), f"Also accepted as {', '.join(also)}." if also else ""]
        members[spelled] = schema | ({"description": " ".join(filter(None, notes))} if any(notes) else {})
    kind, path = names.get("event_type", "event_type"), names.get("notebook_path", "notebook_path")
    needing = sorted(NEEDS_NOTEBOOK | {alias for alias, name in TYPE_ALIASES.items() if name in NEEDS_NOTEBOOK})
    return {
        "type": "object",
        "description": "A null counts as missing. Fields that are not listed are dropped.",
        "required": [kind, names.get("user_id", "user_id")],
        "properties": members,
        "if": {"properties": {kind: {"enum": needing}}},
        "then": {"required": [path], "properties": {path: {"type": "string"}}},
    }


_REJECTED: Final = array(_object({"index": COUNT, "error": STRING}, {"event_id": STRING}))
_FAULT: Final = _object({"code": STRING, "message": STRING})

_USER: Final = _object(
    {"user_id": STRING, "status": {"enum": list(STATUSES)}, "cell_executions": COUNT, "error_count": COUNT},
    {
        "user_name": STRING,
        "team": STRING,
        "notebook_path": STRING,
        "cell_index": COUNT,
        "consecutive_errors": COUNT,
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "last_activity": TIME,
        "session_started_at": TIME,
        "help_since": TIME,
        "stuck_since": TIME,
    },
)
_SUMMARY: Final = _object(
    {"total_students": COUNT}
    | dict.fromkeys(STATUSES, COUNT)
    | {"cell_executions": COUNT, "error_count": COUNT, "avg_progress": NUMBER}
)
_SESSION: Final = _object(
    {
        "id": {"type": "string", "format": "uuid"},
        "user_id": STRING,
        "class_id": CLASS,
        "started_at": TIME,
        "ended_at": TIME,
        "closed": {"type": "boolean"},
        "total_duration_ms": COUNT,
        "cell_executions": COUNT,
        "error_count": COUNT,
    },
    {"notebook_path": STRING, "session_id": STRING, "user_name": STRING},
)
_CHECK: Final[Schema] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["healthy", "unhealthy", "not_configured"]},
        "error": STRING,
        "lag_events": COUNT,
        "response_time_ms": NUMBER,
        "last_seq": COUNT,
        "trimmed_to": COUNT,
        "payload_bytes": COUNT,
    },
}

_NULLABLE: Final[Schema] = {"type": ["number", "null"], "minimum": 0}


def _series(buckets: dict[str, Schema]) -> Schema:
    """Groups and their buckets."""
    one = {"buckets": array(_object({"start": TIME, "executions": COUNT} | buckets))}
    groups = [_object({"user_id": STRING} | one), _object({"notebook_path": STRING} | one), _object(one)]
    return _object(
        {
            "class_id": CLASS,
            "by": {"enum": list(GROUPS)},
            "start": TIME,
            "end": TIME,
            "every_ms": COUNT,
            "series": array({"anyOf": groups}),
        }
    )


SCHEMAS: Final[dict[str, Schema]] = {
    "Event": _event({}),
    "CellMonitorEvent": _event(CELL_MONITOR_NAMES),
    "Receipt": _object(
        {"status": {"const": "received"}, "accepted": COUNT, "duplicates": COUNT, "rejected": _REJECTED},
        {"event_id": STRING},
    ),
    "Refusal": _object({"error": _FAULT, "rejected": _REJECTED}),
    "Error": _object({"error": _FAULT}),
    "User": _USER,
    "Summary": _SUMMARY,
    "Overview": _object(
        {
            "class_id": CLASS,
            "epoch": STRING,
            "seq": COUNT,
            "state": _object(
                {"users": {"type": "object", "additionalProperties": ref("User")}, "summary": ref("Summary")}
            ),
        }
    ),
    "Session": _SESSION,
    "Sessions": _object(
        {"user_id": STRING, "class_id": CLASS, "sessions": array(ref("Session"))}, {"next_cursor": STRING}
    ),
    "ClassSessions": _object({"class_id": CLASS, "sessions": array(ref("Session"))}, {"next_cursor": STRING}),
    "NotebookSummary": _object(
        {
            "total_students": COUNT,
            "avg_progress": {"type": "number", "minimum": 0, "maximum": 1},
            "total_cells": COUNT,
            "cells": array(
                _object(
                    dict.fromkeys(("cell_index", "students", "executions", "errors"), COUNT)
                    | {"median_duration_ms": _NULLABLE}
                )
            ),
        }
    ),
    "Activity": _series({"mean_duration_ms": _NULLABLE}),
    "Errors": _series({"errors": COUNT, "rate": _NULLABLE}),
    "Health": _object(
        {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "checks": _object(dict.fromkeys(("journal", "postgresql", "influxdb", "redis"), ref("Check"))),
        }
    ),
    "Check": _CHECK,
    "Probe": _object({"status": {"enum": ["alive", "ready", "not ready"]}}),
}
