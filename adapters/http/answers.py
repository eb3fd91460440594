"""Answers of the API: JSON, and errors in the contract's shape."""

from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_encode: Final = msgspec.json.Encoder().encode
_CODES: Final = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 503: "unavailable"}


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any JSON value."""
    return Response(_encode(content), status, headers, media_type="application/json")


async def http_error(request: Request, fault: Exception) -> Response:  # noqa: ARG001
    """The answer to what a route refused."""
    assert isinstance(fault, HTTPException)
    code = _CODES.get(fault.status_code, "error")
    body = {"error": {"code": code, "message": fault.detail}}
    return json_answer(body, fault.status_code, dict(fault.headers or {}))


async def too_large(request: Request, fault: Exception) -> Response:  # noqa: ARG001
    """The answer would have been larger than anybody can look at."""
    return json_answer({"error": {"code": "too_large", "message": str(fault)}}, 422)


async def store_error(request: Request, fault: Exception) -> Response:  # noqa: ARG001
    """A store is away, or will not have us."""
    body = {"error": {"code": "store_unavailable", "message": str(fault)}}
    return json_answer(body, 503, {"retry-after": "1"})
