"""The API's description, OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1): every route that is served, as it is.

Tests hold the routes against those served, and the answers against a running daemon.
"""

from importlib.metadata import version
from typing import Final

from engine.decode import DEFAULT_CLASS
from engine.event import MAX_PATH_CHARS
from engine.series import DURATION, GROUPS, MAX_BUCKETS

from .schemas import CLASS, SCHEMAS, STRING, Schema, array, ref

# --- routes


def _answer(text: str, schema: Schema | None = None, media: str = "application/json") -> Schema:
    return {"description": text} | ({} if schema is None else {"content": {media: {"schema": schema}}})


_ERROR: Final = ref("Error")
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


_CLASS_PARAMETER: Final = _parameter("class", "query", CLASS | {"default": DEFAULT_CLASS}, "The class.")
_CURSOR: Final = _parameter("cursor", "query", STRING, "`next_cursor` of the page before.")


def _duration(name: str, default: str, text: str) -> Schema:
    schema = STRING | {"pattern": f"^{DURATION.pattern}$", "default": default}
    return _parameter(name, "query", schema, f"{text} A whole number and one of s, m, h, d, w.")


def _window(since: str, every: str, by: str) -> list[Schema]:
    """The parameters of a series, with their defaults."""
    return [
        _CLASS_PARAMETER,
        _duration("since", since, "From the bucket that holds this long ago."),
        _duration("every", every, f"Length of a bucket; at most {MAX_BUCKETS} buckets."),
        _parameter("by", "query", {"enum": list(GROUPS), "default": by}, "What has a series of its own."),
    ]


def _events(max_events: int) -> Schema:
    one: Schema = {"anyOf": [ref("Event"), ref("CellMonitorEvent")]}
    many = array(one) | {"minItems": 1}
    answers = {
        "202": _answer("What is counted is on the disk. A repeat counts as a duplicate.", ref("Receipt")),
        "415": _answer("The content type or encoding is not understood.", _ERROR),
        "422": _answer("JSON, but no event in it is valid.", ref("Refusal")),
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
                    "application/x-ndjson": {"schema": STRING | {"description": "One event a line."}},
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
                    | {f"Access-Control-Allow-{what}": {"schema": STRING} for what in ("Methods", "Headers")},
                }
            }
            | _ALWAYS,
        },
    }


def document(*, max_events: int, max_limit: int) -> Schema:
    """The whole description; ``max_limit`` is how many sessions a page may have."""
    away = {"503": _answer("The database is away.", _ERROR) | {"headers": _RETRY}}
    many = {"422": _answer("More buckets or groups than an answer may have.", _ERROR)}
    page_limit = _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": max_limit}, "Of a page.")
    probe = ref("Probe")
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
                {"200": _answer("The state now.", ref("Overview"))},
                _parameter("class_id", "path", CLASS, "The class; one that nobody knows is empty."),
            ),
            "/api/v1/classes/{class_id}/sessions": _get(
                "classSessions",
                "The sessions of a class, newest first.",
                {"200": _answer("A page.", ref("ClassSessions"))} | away,
                _parameter("class_id", "path", CLASS, "The class."),
                _duration("since", "24h", "Those that started within it."),
                page_limit,
                _CURSOR,
            ),
            "/api/v1/users/{user_id}/sessions": _get(
                "userSessions",
                "A student's sessions, newest first.",
                {"200": _answer("A page.", ref("Sessions"))} | away,
                _parameter("user_id", "path", STRING | {"minLength": 1}, "The student, percent-encoded."),
                _CLASS_PARAMETER,
                _parameter("notebook", "query", STRING, "Only sessions on this path."),
                page_limit,
                _CURSOR,
            ),
            "/api/v1/notebooks/summary": _get(
                "notebookSummary",
                "A notebook as the class has worked on it, of all that is stored.",
                {"200": _answer("The summary.", ref("NotebookSummary"))} | away,
                _CLASS_PARAMETER,
                _parameter("path", "query", STRING | {"minLength": 1, "maxLength": MAX_PATH_CHARS}, "The notebook.")
                | {"required": True},
            ),
            "/api/v1/series/activity": _get(
                "activity",
                "Executions and their mean duration, by buckets of the clock.",
                {"200": _answer("Every bucket of every group.", ref("Activity"))} | many | away,
                *_window("1h", "10m", "user_id"),
            ),
            "/api/v1/series/errors": _get(
                "errors",
                "Errors, executions and their rate, by buckets of the clock.",
                {"200": _answer("Every bucket of every group.", ref("Errors"))} | many | away,
                *_window("24h", "1h", "notebook_path"),
            ),
            "/api/v1/health": _get(
                "health",
                "How journal and stores are.",
                {
                    "200": _answer("Events are taken; `degraded` when a store is away.", ref("Health")),
                    "503": _answer("Events cannot be made durable.", ref("Health")),
                },
            ),
            "/livez": _get("livez", "For process managers: it serves.", {"200": _answer("It does.", probe)}),
            "/readyz": _get(
                "readyz",
                "For process managers: it takes events.",
                {"200": _answer("It does.", probe), "503": _answer("Not yet, or no more.", probe)},
            ),
            "/metrics": _get("metrics", "For Prometheus.", {"200": _answer("Its text format.", STRING, "text/plain")}),
            "/api/v1/openapi.json": _get(
                "openapi", "This description.", {"200": _answer("OpenAPI 3.1.", {"type": "object"})}
            ),
            "/docs": _get(
                "docs", "The same, to read.", {"200": _answer("One page, needs nothing else.", STRING, "text/html")}
            ),
        },
        "components": {"schemas": SCHEMAS},
    }
