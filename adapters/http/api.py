"""The routes off the hot path: queries, health and the probes of process managers."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import attrs
import msgspec
import trio
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.decode import DEFAULT_CLASS, is_class_id, tidy_user_id
from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.measures import Histograms
from engine.ports import LiveFeed, SessionQueries, SessionRow
from engine.rows import session_view

from .docs_page import page

MAX_LIMIT: Final = 100  # sessions a page
_encode: Final = msgspec.json.Encoder().encode
_CODES: Final = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 503: "unavailable"}


class _UserConvertor(Convertor[str]):
    """Any text: what a client percent-encoded, slashes and line ends included, has been decoded by now."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("user", _UserConvertor())

# Tells the health of everything: {"status": …, "checks": {…}}.
Health = Callable[[], Awaitable[dict[str, Any]]]
Ready = Callable[[], bool]
# Gives the metrics and their content type.
MetricsText = Callable[[], tuple[bytes, str]]


def api(
    live: LiveFeed,
    queries: SessionQueries,
    health: Health,
    *,
    ready: Ready,
    metrics: MetricsText,
    description: dict[str, Any],
    cors_origins: Collection[str],
    times: Histograms | None = None,
) -> Starlette:
    """The ASGI application. ``description`` is `openapi.document`'s. ``times``: of answers, by route and status."""
    routes = _Routes(live, queries, health, ready, metrics, description)
    served = [
        Route("/api/v1/classes/{class_id}/overview", routes.overview),
        Route("/api/v1/users/{user_id:user}/sessions", routes.user_sessions),
        Route("/api/v1/health", routes.health),
        Route("/livez", routes.livez),
        Route("/readyz", routes.readyz),
        Route("/metrics", routes.metrics),
        Route("/api/v1/openapi.json", routes.openapi),
        Route("/docs", routes.docs),
    ]
    middleware = [Middleware(_Timed, routes=served, times=Histograms() if times is None else times)]
    if cors_origins:
        middleware.append(Middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["GET"]))
    return Starlette(
        routes=served,
        middleware=middleware,
        exception_handlers={
            HTTPException: _http_error,
            StoreUnavailableError: _store_error,
            StoreRefusedError: _store_error,
        },
    )


class _Timed:
    """Takes the time of every answer, under its route's template: a path would be a metric a student."""

    def __init__(self, app: ASGIApp, routes: Collection[Route], times: Histograms) -> None:
        self._app = app
        self._templates: dict[Any, str] = {route.endpoint: route.path_format for route in routes}
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        began = trio.current_time()
        try:
            await self._app(scope, receive, watched)
        finally:
            route = self._templates.get(scope.get("endpoint"), "none")
            self._times.of(route, str(status)).observe(trio.current_time() - began)


@attrs.frozen
class _Routes:
    _live: LiveFeed
    _queries: SessionQueries
    _health: Health
    _ready: Ready
    _metrics: MetricsText
    _description: dict[str, Any]

    async def overview(self, request: Request) -> Response:
        class_id = _class_id(request.path_params["class_id"])
        return _json(self._live.overview(class_id))

    async def user_sessions(self, request: Request) -> Response:
        """One student's sessions, newest first: the stored ones, with what is live in the place of what was stored."""
        user_id = tidy_user_id(request.path_params["user_id"])
        class_id = _class_id(request.query_params.get("class", DEFAULT_CLASS))
        notebook = request.query_params.get("notebook") or None
        limit = _limit(request.query_params.get("limit", "10"))
        before = _cursor(request.query_params.get("cursor"))
        stored = await self._queries.user_sessions(user_id, class_id, notebook, limit + 1, before)
        live, gone = self._live.sessions(class_id, user_id)
        rows = {row.id: row for row in stored if row.id not in gone}
        for row in live:
            if (notebook is None or row.notebook_path == notebook) and (before is None or _order(row) < before):
                rows[row.id] = row
        page = sorted(rows.values(), key=_order, reverse=True)
        answer: dict[str, Any] = {"user_id": user_id, "class_id": class_id}
        answer["sessions"] = [session_view(user_id, class_id, row) for row in page[:limit]]
        if len(page) > limit:
            started_at, row_id = _order(page[limit - 1])
            answer["next_cursor"] = urlsafe_b64encode(f"{started_at}.{row_id.hex}".encode()).decode()
        return _json(answer)

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        health = await self._health()
        return _json(health, 503 if health["status"] == "unhealthy" else 200)

    async def livez(self, request: Request) -> Response:  # noqa: ARG002
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:  # noqa: ARG002
        return _json({"status": "ready"}) if self._ready() else _json({"status": "not ready"}, 503)

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        return _json(self._description)

    async def docs(self, request: Request) -> Response:  # noqa: ARG002
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(page(self._description), headers=headers, media_type="text/html")

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        text, content_type = self._metrics()
        return Response(text, headers={"content-type": content_type})


def _order(row: SessionRow) -> tuple[int, UUID]:
    return (row.started_at, row.id)


def _class_id(text: str) -> str:
    if not is_class_id(text):
        raise HTTPException(400, "class: must be 1 to 64 of A-Z, a-z, 0-9, ., _ and -")
    return text


def _limit(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,6}", text) is None or not 1 <= int(text) <= MAX_LIMIT:
        raise HTTPException(400, f"limit: must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _cursor(text: str | None) -> tuple[int, UUID] | None:
    if not text:
        return None
    with suppress(ValueError):
        started_at, _, row_id = urlsafe_b64decode(text).decode("ascii").partition(".")
        if re.fullmatch(r"[0-9]{1,13}", started_at):
            return int(started_at), UUID(hex=row_id)
    raise HTTPException(400, "cursor: not one that this server gave; leave it out to begin again")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(content), status, headers, media_type="application/json")


async def _http_error(request: Request, fault: Exception) -> Response:  # noqa: ARG001
    assert isinstance(fault, HTTPException)
    code = _CODES.get(fault.status_code, "error")
    body = {"error": {"code": code, "message": fault.detail}}
    return _json(body, fault.status_code, dict(fault.headers or {}))


async def _store_error(request: Request, fault: Exception) -> Response:  # noqa: ARG001
    body = {"error": {"code": "store_unavailable", "message": str(fault)}}
    return _json(body, 503, {"retry-after": "1"})
