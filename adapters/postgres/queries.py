"""`engine.ports.SessionQueries` on PostgreSQL, beside the writer's connection."""

from typing import Any, Final
from uuid import UUID

from adapters.asyncio_bridge import from_timestamptz, to_timestamptz
from engine.ids import notebook_uuid, user_uuid
from engine.ports import ClassSession, SessionRow

from .pool import Pool, patience
from .replicas import ReadPool

# What `_session` reads, in its order.
_SESSION: Final = (
    "s.id, n.path, s.client_session_id, s.started_at, s.ended_at, s.closed, s.cell_executions, s.error_count"
)


class PostgresQueries:
    """Reads of the API. What one student is shown goes through ``students``, which logs in as ``app_user``."""

    def __init__(self, reads: ReadPool, students: Pool | None = None) -> None:
        self._reads = reads
        self._students = students

    async def user_sessions(
        self, user_id: str, class_id: str, notebook: str | None, limit: int, before: tuple[int, UUID] | None
    ) -> list[SessionRow]:
        """See `engine.ports.SessionQueries`."""
        rows = await self._fetch_of(
            user_id,
            f"select {_SESSION} from learning_sessions s left join notebooks n on n.id = s.notebook_id "  # noqa: S608
            "where s.user_id = $1 and s.class_id = $2 and ($3::uuid is null or s.notebook_id = $3) "
            "and ($4::timestamptz is null or (s.started_at, s.id) < ($4, $5::uuid)) "
            "order by s.started_at desc, s.id desc limit $6",
            user_uuid(user_id),
            class_id,
            None if notebook is None else notebook_uuid(class_id, notebook),
            None if before is None else to_timestamptz(before[0]),
            None if before is None else before[1],
            limit,
        )
        return [_session(row) for row in rows]

    async def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """See `engine.ports.SessionQueries`."""
        rows = await self._fetch(
            f"select {_SESSION}, u.username, u.display_name from learning_sessions s "  # noqa: S608
            "join users u on u.id = s.user_id left join notebooks n on n.id = s.notebook_id "
            "where s.class_id = $1 and s.started_at >= $2 "
            "and ($3::timestamptz is null or (s.started_at, s.id) < ($3, $4::uuid)) "
            "order by s.started_at desc, s.id desc limit $5",
            class_id,
            to_timestamptz(since),
            None if before is None else to_timestamptz(before[0]),
            None if before is None else before[1],
            limit,
        )
        return [ClassSession(row[8], row[9], _session(row)) for row in rows]

    async def _fetch_of(self, user_id: str, query: str, *args: Any) -> list[Any]:
        """What one student is shown."""
        if self._students is None:
            return await self._fetch(query, *args)
        with patience():
            return await self._students.fetch_as_student(user_id, query, *args)

    async def _fetch(self, query: str, *args: Any) -> list[Any]:
        with patience():
            return await self._reads.fetch(query, *args)

    @property
    def connections(self) -> int:
        """How many are open to the primary."""
        return self._reads.connections + (0 if self._students is None else self._students.connections)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._reads.close()
        if self._students is not None:
            await self._students.close()


def _session(row: Any) -> SessionRow:
    return SessionRow(
        id=row[0],
        notebook_path=row[1],
        client_session=row[2],
        started_at=from_timestamptz(row[3]),
        ended_at=from_timestamptz(row[4]),
        closed=row[5],
        executions=row[6],
        errors=row[7],
    )
