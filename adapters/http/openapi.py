"""The API's description, OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1): every route that is served, as it is.

The event's fields come from where they are decoded (`engine.wire`, `engine.decode`), so that the two cannot differ; the
routes are held against those served, and the answers against a running daemon, by tests.
"""

from importlib.metadata import version
from typing import Any, Final, TypeAlias

import msgspec

from engine.decode import CLASS_ID, DEFAULT_CLASS, EVENT_TYPE, FIELDS, MAX_OBJECT_BYTES
from engine.event import NEEDS_NOTEBOOK, TYPE_ALIASES
from engine.wire import CELL_MONITOR_NAMES, FIELD_TYPES

Schema: TypeAlias = dict[str, Any]

_STRING: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_CLASS: Final[Schema] = {"type": "string", "pattern": f"^{CLASS_ID.pattern}$"}
_KNOWN_TYPES: Final = sorted(
    {*NEEDS_NOTEBOOK, *TYPE_ALIASES, *TYPE_ALIASES.values(), "session_start", "session_end", "progress"}
)
_STATUSES: Final = ("active", "idle", "error", "stuck", "help", "offline")


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these members and no other."""
    members = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": members, "additionalProperties": False}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# --- events

# What the decoder checks beyond the types.
_NARROWER: Final[dict[str, Schema]] = {
    "event_type": {"type": "string", "anyOf": [{"enum": _KNOWN_TYPES}, {"pattern": f"^{EVENT_TYPE.pattern}$"}]},
    # Python strips more than \s of ECMAScript, whose regular expressions these are.
    "user_id": {"type": "string", "maxLength": 254, "pattern": r"[^\s\x1c-\x1f\x85]"},
    "class_id": {"anyOf": [_CLASS, {"type": "null"}], "default": DEFAULT_CLASS},
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


_REJECTED: Final = _array(_object({"index": _COUNT, "error": _STRING}, {"event_id": _STRING}))
_FAULT: Final = _object({"code": _STRING, "message": _STRING})

_USER: Final = _object(
    {"user_id": _STRING, "status": {"enum": list(_STATUSES)}, "cell_executions": _COUNT, "error_count": _COUNT},
    {
        "user_name": _STRING,
        "team": _STRING,
        "notebook_path": _STRING,
        "cell_index": _COUNT,
        "consecutive_errors": _COUNT,
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "last_activity": _TIME,
        "session_started_at": _TIME,
        "help_since": _TIME,
        "stuck_since": _TIME,
    },
)
_SUMMARY: Final = _object(
    {"total_students": _COUNT}
    | dict.fromkeys(_STATUSES, _COUNT)
    | {"cell_executions": _COUNT, "error_count": _COUNT, "avg_progress": _NUMBER}
)
_SESSION: Final = _object(
    {
        "id": {"type": "string", "format": "uuid"},
        "user_id": _STRING,
        "class_id": _CLASS,
        "started_at": _TIME,
        "ended_at": _TIME,
        "closed": {"type": "boolean"},
        "total_duration_ms": _COUNT,
        "cell_executions": _COUNT,
        "error_count": _COUNT,
    },
    {"notebook_path": _STRING, "session_id": _STRING},
)
_CHECK: Final[Schema] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["healthy", "unhealthy", "not_configured"]},
        "error": _STRING,
        "lag_events": _COUNT,
        "response_time_ms": _NUMBER,
        "last_seq": _COUNT,
        "trimmed_to": _COUNT,
        "payload_bytes": _COUNT,
    },
}

_SCHEMAS: Final[dict[str, Schema]] = {
    "Event": _event({}),
    "CellMonitorEvent": _event(CELL_MONITOR_NAMES),
    "Receipt": _object(
        {"status": {"const": "received"}, "accepted": _COUNT, "duplicates": _COUNT, "rejected": _REJECTED},
        {"event_id": _STRING},
    ),
    "Refusal": _object({"error": _FAULT, "rejected": _REJECTED}),
    "Error": _object({"error": _FAULT}),
    "User": _USER,
    "Summary": _SUMMARY,
    "Overview": _object(
        {
            "class_id": _CLASS,
            "epoch": _STRING,
            "seq": _COUNT,
            "state": _object(
                {"users": {"type": "object", "additionalProperties": _ref("User")}, "summary": _ref("Summary")}
            ),
        }
    ),
    "Session": _SESSION,
    "Sessions": _object(
        {"user_id": _STRING, "class_id": _CLASS, "sessions": _array(_ref("Session"))}, {"next_cursor": _STRING}
    ),
    "Health": _object(
        {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "checks": _object(dict.fromkeys(("journal", "postgresql", "influxdb", "redis"), _ref("Check"))),
        }
    ),
    "Check": _CHECK,
    "Probe": _object({"status": {"enum": ["alive", "ready", "not ready"]}}),
}


# --- routes


def _answer(text: str, schema: Schema | None = None, media: str = "application/json") -> Schema:
    return {"description": text} | ({} if schema is None else {"content": {media: {"schema": schema}}})


_ERROR: Final = _ref("Error")
_RETRY: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_CORS: Final = {"Access-Control-Allow-Origin": {"schema": {"const": "*"}}}
# What any route may answer, before it is known which it is.
_ALWAYS: Final[dict[str, Schema]] = {
    "400": _answer("Bad framing, or a parameter that cannot be understood.", _ERROR),
    "403": _answer("A proxy forwarded it, and that is not allowed.", _ERROR),
    "408": _answer("It took too long to come.", _ERROR),
    "413": _answer("The body is too large.", _ERROR),
    "421": _answer("The `Host` header names another server.", _ERROR),
    "431": _answer("The headers are too large.", _ERROR),
}


def _get(name: str, text: str, answers: dict[str, Schema], *parameters: Schema) -> Schema:
    operation: Schema = {"operationId": name, "summary": text, "responses": answers | _ALWAYS}
    return {"get": operation | ({"parameters": list(parameters)} if parameters else {})}


def _parameter(name: str, where: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


def _events(max_events: int) -> Schema:
    one: Schema = {"anyOf": [_ref("Event"), _ref("CellMonitorEvent")]}
    many = _array(one) | {"minItems": 1}
    answers = {
        "202": _answer("What is counted is on the disk. A repeat counts as a duplicate.", _ref("Receipt")),
        "415": _answer("The content type or encoding is not understood.", _ERROR),
        "422": _answer("JSON, but no event in it is valid.", _ref("Refusal")),
        "503": _answer("It cannot be made durable now; nothing was kept.", _ERROR) | {"headers": _RETRY},
    } | _ALWAYS
    return {
        "post": {
            "operationId": "postEvents",
            "summary": f"Hand in at most {max_events} events. A bad one is rejected alone.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"anyOf": [one, many]}},
                    "application/x-ndjson": {"schema": _STRING | {"description": "One event a line."}},
                },
            },
            "responses": {
                status: each | {"headers": _CORS | each.get("headers", {})} for status, each in answers.items()
            },
        },
        "options": {
            "operationId": "preflightEvents",
            "summary": "Pages of every origin may post, without credentials.",
            "responses": {
                "204": {
                    "description": "As the Fetch standard asks.",
                    "headers": _CORS
                    | {"Access-Control-Max-Age": {"schema": {"type": "integer"}}}
                    | {f"Access-Control-Allow-{what}": {"schema": _STRING} for what in ("Methods", "Headers")},
                }
            }
            | _ALWAYS,
        },
    }


def document(*, max_events: int, max_limit: int) -> Schema:
    """The whole description; ``max_limit`` is how many sessions a page may have."""
    away = {"503": _answer("The database is away.", _ERROR) | {"headers": _RETRY}}
    probe = _ref("Probe")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Classpulse",
            "version": version("classpulse"),
            "description": "Events from Jupyter notebooks in, the live state of classes out. "
            "The live stream is a WebSocket at `/api/v1/stream`.",
        },
        "paths": {
            "/api/v1/events": _events(max_events),
            "/api/v1/classes/{class_id}/overview": _get(
                "overview",
                "The live state of a class: the stream's snapshot.",
                {"200": _answer("The state now.", _ref("Overview"))},
                _parameter("class_id", "path", _CLASS, "The class; one that nobody knows is empty."),
            ),
            "/api/v1/users/{user_id}/sessions": _get(
                "userSessions",
                "A student's sessions, newest first.",
                {"200": _answer("A page.", _ref("Sessions"))} | away,
                _parameter("user_id", "path", _STRING | {"minLength": 1}, "The student, percent-encoded."),
                _parameter("class", "query", _CLASS | {"default": DEFAULT_CLASS}, "The class."),
                _parameter("notebook", "query", _STRING, "Only sessions on this path."),
                _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": max_limit}, "Of a page."),
                _parameter("cursor", "query", _STRING, "`next_cursor` of the page before."),
            ),
            "/api/v1/health": _get(
                "health",
                "How journal and stores are.",
                {
                    "200": _answer("Events are taken; `degraded` when a store is away.", _ref("Health")),
                    "503": _answer("Events cannot be made durable.", _ref("Health")),
                },
            ),
            "/livez": _get("livez", "For process managers: it serves.", {"200": _answer("It does.", probe)}),
            "/readyz": _get(
                "readyz",
                "For process managers: it takes events.",
                {"200": _answer("It does.", probe), "503": _answer("Not yet, or no more.", probe)},
            ),
            "/metrics": _get("metrics", "For Prometheus.", {"200": _answer("Its text format.", _STRING, "text/plain")}),
            "/api/v1/openapi.json": _get(
                "openapi", "This description.", {"200": _answer("OpenAPI 3.1.", {"type": "object"})}
            ),
            "/docs": _get(
                "docs", "The same, to read.", {"200": _answer("One page, needs nothing else.", _STRING, "text/html")}
            ),
        },
        "components": {"schemas": _SCHEMAS},
    }
