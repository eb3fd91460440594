"""Queries over several databases: what is about one student goes to one, what is about a class to all."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from engine.merging import merge_activity, merge_cells, merge_errors, merge_sessions
from engine.ports import ClassSession, SessionQueries, SessionRow
from engine.series import Activity, By, Errors, Window, notebook_summary
from engine.sharding import shard_of

from .series import PostgresSeries
from .shards import ask_each


class ShardedQueries:
    """`engine.ports.SessionQueries`."""

    def __init__(self, parts: Sequence[SessionQueries]) -> None:
        self._parts = parts

    async def user_sessions(
        self, user_id: str, class_id: str, notebook: str | None, limit: int, before: tuple[int, UUID] | None
    ) -> list[SessionRow]:
        """One shard has them all."""
        part = self._parts[shard_of(user_id, len(self._parts))]
        return await part.user_sessions(user_id, class_id, notebook, limit, before)

    async def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """A page of each, of which the newest are the page."""
        pages = await ask_each(self._parts, lambda part: part.class_sessions(class_id, since, limit, before))
        return merge_sessions(pages, limit)


class ShardedSeries:
    """`engine.ports.SeriesQueries`."""

    def __init__(self, parts: Sequence[PostgresSeries]) -> None:
        self._parts = parts

    async def activity(self, class_id: str, window: Window, by: By) -> list[Activity]:
        """Sums are added; means are made of them later."""
        return merge_activity(await ask_each(self._parts, lambda part: part.activity(class_id, window, by)))

    async def errors(self, class_id: str, window: Window, by: By) -> list[Errors]:
        """The same."""
        return merge_errors(await ask_each(self._parts, lambda part: part.errors(class_id, window, by)))

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """Each student is in one shard only, so students add up. Medians are made of all durations."""
        found = await ask_each(self._parts, lambda part: part.notebook_parts(class_id, path))
        done: dict[int, int] = {}
        for part in found:
            for count, students in part.done.items():
                done[count] = done.get(count, 0) + students
        cells = merge_cells([part.cells for part in found], [part.durations for part in found])
        return notebook_summary(done, cells, max(part.total for part in found))

    async def total_cells(self, class_id: str, path: str) -> int:
        """How many cells a notebook has; every shard knows."""
        return await self._parts[0].total_cells(class_id, path)
