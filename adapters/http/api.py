"""The routes off the hot path: queries, health and the probes of process managers."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import attrs
import trio
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.clock import WallClock, wall_clock
from engine.errors import StoreRefusedError, StoreUnavailableError, TooLargeError
from engine.measures import Histograms
from engine.ports import LiveFeed, SeriesQueries, SessionQueries

from . import parameters
from .answers import http_error, json_answer, store_error, too_large
from .docs_page import page
from .series import SeriesRoutes
from .sessions import SessionRoutes


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
    series: SeriesQueries,
    health: Health,
    *,
    ready: Ready,
    metrics: MetricsText,
    description: dict[str, Any],
    cors_origins: Collection[str],
    clock: WallClock = wall_clock,
    times: Histograms | None = None,
) -> Starlette:
    """The ASGI application. ``description`` is `openapi.document`'s. ``times``: of answers, by route and status."""
    routes = _Routes(live, health, ready, metrics, description)
    of_sessions, of_series = SessionRoutes(live, queries, clock), SeriesRoutes(series, clock)
    served = [
        Route("/api/v1/classes/{class_id}/overview", routes.overview),
        Route("/api/v1/classes/{class_id}/sessions", of_sessions.class_sessions),
        Route("/api/v1/users/{user_id:user}/sessions", of_sessions.user_sessions),
        Route("/api/v1/notebooks/summary", of_series.notebook_summary),
        Route("/api/v1/series/activity", of_series.activity),
        Route("/api/v1/series/errors", of_series.errors),
        Route("/api/v1/health", routes.health),
        Route("/livez", routes.livez),
        Route("/readyz", routes.readyz),
        Route("/metrics", routes.metrics),
        Route("/api/v1/openapi.json", routes.openapi),
        Route("/docs", routes.docs),
    ]
    middleware = [Middleware(_Timed, routes=served, times=Histograms() if times is None else times)]
    if cors_origins:
        middleware.append(Middleware(_Cors, allow_origins=cors_origins, allow_methods=["GET"]))
    return Starlette(
        routes=served,
        middleware=middleware,
        exception_handlers={
            HTTPException: http_error,
            TooLargeError: too_large,
            StoreUnavailableError: store_error,
            StoreRefusedError: store_error,
        },
    )


class _Cors(CORSMiddleware):
    """Its refusals have the shape of every error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """See `starlette.middleware.cors`."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {name: text for name, text in response.headers.items() if not name.startswith("content-")}
        body = {"error": {"code": "cors_refused", "message": bytes(response.body).decode()}}
        return json_answer(body, response.status_code, headers)


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
    _health: Health
    _ready: Ready
    _metrics: MetricsText
    _description: dict[str, Any]

    async def overview(self, request: Request) -> Response:
        class_id = parameters.class_id(request.path_params["class_id"])
        return json_answer(self._live.overview(class_id))

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        health = await self._health()
        return json_answer(health, 503 if health["status"] == "unhealthy" else 200)

    async def livez(self, request: Request) -> Response:  # noqa: ARG002
        return json_answer({"status": "alive"})

    async def readyz(self, request: Request) -> Response:  # noqa: ARG002
        return json_answer({"status": "ready"}) if self._ready() else json_answer({"status": "not ready"}, 503)

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        return json_answer(self._description)

    async def docs(self, request: Request) -> Response:  # noqa: ARG002
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(page(self._description), headers=headers, media_type="text/html")

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        text, content_type = self._metrics()
        return Response(text, headers={"content-type": content_type})
