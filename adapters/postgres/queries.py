"""`engine.ports.SessionQueries` on PostgreSQL, on connections of their own."""

from uuid import UUID

import trio

from adapters.asyncio_bridge import Connection, Dsn, from_timestamptz, to_timestamptz
from engine.ids import notebook_uuid, user_uuid
from engine.measures import Histograms
from engine.ports import SessionRow


class PostgresQueries:
    """One connection, used in turns: queries take a millisecond, and the page that asks for them is rare."""

    def __init__(self, dsn: Dsn, times: Histograms | None = None) -> None:
        self._dsn = dsn
        self._times = times
        self._connection: Connection | None = None
        self._turn = trio.Lock()

    async def user_sessions(
        self, user_id: str, class_id: str, notebook: str | None, limit: int, before: tuple[int, UUID] | None
    ) -> list[SessionRow]:
        """See `engine.ports.SessionQueries`."""
        async with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = await Connection.connect(self._dsn(), self._times)
            rows = await self._connection.fetch(
                "select s.id, n.path, s.client_session_id, s.started_at, s.ended_at, s.closed, s.cell_executions, "
                "s.error_count from learning_sessions s left join notebooks n on n.id = s.notebook_id "
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
        return [
            SessionRow(
                id=row[0],
                notebook_path=row[1],
                client_session=row[2],
                started_at=from_timestamptz(row[3]),
                ended_at=from_timestamptz(row[4]),
                closed=row[5],
                executions=row[6],
                errors=row[7],
            )
            for row in rows
        ]

    @property
    def connections(self) -> int:
        """How many are open."""
        return int(self._connection is not None and not self._connection.closed)

    async def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            await self._connection.close()
