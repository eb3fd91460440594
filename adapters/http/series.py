"""The routes of time series and of a notebook's summary."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import attrs
import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.clock import WallClock, rfc3339
from engine.decode import DEFAULT_CLASS
from engine.event import MAX_PATH_CHARS
from engine.ports import SeriesQueries
from engine.series import GROUPS, By, Window, activity_series, errors_series

from . import parameters
from .answers import json_answer

Row = TypeVar("Row")


@attrs.frozen
class SeriesRoutes:
    """Reads of what happened, by the clock and by the notebook."""

    _queries: SeriesQueries
    _clock: WallClock

    async def activity(self, request: Request) -> Response:
        """How much was run, and how long it took."""
        class_id, by, window = self._asked(request, since="1h", every="10m", by="user_id")
        rows = await self._queries.activity(class_id, window, by)
        return await _answer(class_id, by, window, activity_series, rows)

    async def errors(self, request: Request) -> Response:
        """How much of it failed."""
        class_id, by, window = self._asked(request, since="24h", every="1h", by="notebook_path")
        rows = await self._queries.errors(class_id, window, by)
        return await _answer(class_id, by, window, errors_series, rows)

    async def notebook_summary(self, request: Request) -> Response:
        """A notebook as the class has worked on it."""
        class_id = parameters.class_id(request.query_params.get("class", DEFAULT_CLASS))
        path = request.query_params.get("path", "").replace("\0", "\u2400")  # as `engine.decode` does
        if not 1 <= len(path) <= MAX_PATH_CHARS:
            raise HTTPException(400, f"path: must be a notebook's path, 1 to {MAX_PATH_CHARS} characters")
        return json_answer(await self._queries.notebook_summary(class_id, path))

    def _asked(self, request: Request, *, since: str, every: str, by: By) -> tuple[str, By, Window]:
        """Class, grouping and window, each with its default."""
        query = request.query_params
        class_id = parameters.class_id(query.get("class", DEFAULT_CLASS))
        grouping = query.get("by", by)
        if grouping not in GROUPS:
            raise HTTPException(400, f"by: must be one of {', '.join(GROUPS)}")
        span = parameters.duration("since", query.get("since", since))
        step = parameters.duration("every", query.get("every", every))
        return class_id, cast(By, grouping), Window.until(self._clock(), span, step)


async def _answer(
    class_id: str,
    by: By,
    window: Window,
    fill: Callable[[Iterable[Row], Window, By], list[dict[str, Any]]],
    rows: list[Row],
) -> Response:
    answer = {
        "class_id": class_id,
        "by": by,
        "start": rfc3339(window.start),
        "end": rfc3339(window.end),
        "every_ms": window.every,
    }
    # The largest take some 0.1 s of computation, and events are taken meanwhile.
    return await trio.to_thread.run_sync(lambda: json_answer(answer | {"series": fill(rows, window, by)}))
