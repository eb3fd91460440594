"""The routes of sessions: stored ones, with what is live in the place of what was stored."""

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from engine.clock import WallClock
from engine.decode import DEFAULT_CLASS, tidy_user_id
from engine.ports import ClassSession, LiveFeed, SessionQueries, SessionRow
from engine.rows import session_view

from . import parameters
from .answers import json_answer
from .parameters import Position


@attrs.frozen
class SessionRoutes:
    """Pages of sessions, newest first."""

    _live: LiveFeed
    _queries: SessionQueries
    _clock: WallClock

    async def user_sessions(self, request: Request) -> Response:
        """One student's."""
        user_id = tidy_user_id(request.path_params["user_id"])
        class_id = parameters.class_id(request.query_params.get("class", DEFAULT_CLASS))
        notebook = request.query_params.get("notebook") or None
        limit = parameters.limit(request.query_params.get("limit", "10"))
        before = parameters.cursor(request.query_params.get("cursor"))
        stored = await self._queries.user_sessions(user_id, class_id, notebook, limit + 1, before)
        end = _order(stored[-1]) if len(stored) > limit else None  # what is older belongs to the next page
        live, gone = self._live.sessions(class_id, user_id)
        rows = {row.id: row for row in stored if row.id not in gone}
        for row in live:
            if not _within(row, before, end):
                rows.pop(row.id, None)
            elif notebook is None or row.notebook_path == notebook:
                rows[row.id] = row
        page = sorted(rows.values(), key=_order, reverse=True)
        answer: dict[str, Any] = {"user_id": user_id, "class_id": class_id}
        answer["sessions"] = [session_view(user_id, class_id, row) for row in page[:limit]]
        return _paged(answer, page, limit, end)

    async def class_sessions(self, request: Request) -> Response:
        """Those of a class that started within ``since``."""
        class_id = parameters.class_id(request.path_params["class_id"])
        since = self._clock() - parameters.duration("since", request.query_params.get("since", "24h"))
        limit = parameters.limit(request.query_params.get("limit", str(parameters.MAX_LIMIT)))
        before = parameters.cursor(request.query_params.get("cursor"))
        stored = await self._queries.class_sessions(class_id, since, limit + 1, before)
        found = {each.row.id: each for each in stored}
        end = _order(stored[-1].row) if len(stored) > limit else None
        for each in self._live.class_sessions(class_id, since, limit + 1, before):
            if end is None or _order(each.row) >= end:
                found[each.row.id] = each
        for user_id in {each.user_id for each in stored}:
            rows, gone = self._live.sessions(class_id, user_id)
            for row_id in gone | {row.id for row in rows if row.started_at < since or not _within(row, before, end)}:
                found.pop(row_id, None)
        page = sorted(found.values(), key=lambda each: _order(each.row), reverse=True)
        answer: dict[str, Any] = {"class_id": class_id, "sessions": [_view(class_id, each) for each in page[:limit]]}
        return _paged(answer, [each.row for each in page], limit, end)


def _within(row: SessionRow, before: Position | None, end: Position | None) -> bool:
    return (before is None or _order(row) < before) and (end is None or _order(row) >= end)


def _view(class_id: str, session: ClassSession) -> dict[str, Any]:
    view = session_view(session.user_id, class_id, session.row)
    return view if session.user_name is None else {**view, "user_name": session.user_name}


def _paged(answer: dict[str, Any], page: list[SessionRow], limit: int, end: Position | None) -> Response:
    """With a cursor where there is more. ``end``: the last that was stored, when that was a full page."""
    if len(page) > limit:
        answer["next_cursor"] = parameters.next_cursor(_order(page[limit - 1]))
    elif end is not None:  # some of the stored ones are none any more
        answer["next_cursor"] = parameters.next_cursor(end)
    return json_answer(answer)


def _order(row: SessionRow) -> Position:
    return (row.started_at, row.id)
