"""A few connections to one database, for reads."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import trio

from adapters.asyncio_bridge import Connection, Dsn
from engine.errors import StoreUnavailableError
from engine.measures import Histograms

from .roles import fetch_as_student

# Queries of one database at once; further ones wait. A page of sessions takes a millisecond, a long series a few 100.
_SIZE: Final = 4
# Seconds until a query is given up. A term of a large class takes a few.
PATIENCE_S: Final = 30.0
# Compiling costs more than these queries do, and a plan that suits one class's hour does not suit another's year.
# Rows lie in the order of their time, and hardly one is looked up alone: at the default price of a page out of turn (4,
# a disk that seeks) the server read a whole month in place of its last day, 340 ms in place of 52, where the month was
# long enough.
_SETUP: Final = "set jit = off; set plan_cache_mode = force_custom_plan; set random_page_cost = 1.1"


@contextmanager
def patience() -> Iterator[None]:
    """A limit of time to a query, its wait for a connection and for its turn included. Raises StoreUnavailableError."""
    with trio.move_on_after(PATIENCE_S) as scope:
        yield
    if scope.cancelled_caught:
        raise StoreUnavailableError(f"PostgreSQL: the query took longer than {PATIENCE_S:.0f} s: ask for less")


class Pool:
    """Connections are opened when they are needed, kept, and used by one at a time, the latest first."""

    def __init__(self, dsn: Dsn, times: Histograms | None = None, *, size: int = _SIZE) -> None:
        self._dsn = dsn
        self._times = times
        self._slots = trio.Semaphore(size)
        self._idle: list[Connection] = []
        self._busy = 0
        self._closed = False

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._busy + sum(not each.closed for each in self._idle)

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """As `Connection.fetch`. Raises StoreUnavailableError and StoreRefusedError."""
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetch_as_student(self, user_id: str, query: str, *args: Any) -> list[Any]:
        """What row-level security leaves for this student; for a pool that logs in as ``app_user``."""
        async with self.connection() as connection:
            return await fetch_as_student(connection, user_id, query, *args)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, for the block."""
        async with self._slots:
            self._idle = [each for each in self._idle if not each.closed]
            connection = self._idle.pop() if self._idle else await self._connect()
            self._busy += 1
            try:
                yield connection
            except trio.Cancelled:
                connection.terminate()  # its query may still run, on a server that perhaps no longer answers
                raise
            finally:
                self._busy -= 1
                if self._closed:  # meanwhile: nobody would ever close this one
                    connection.terminate()
                elif not connection.closed:
                    self._idle.append(connection)

    async def _connect(self) -> Connection:
        connection = await Connection.connect(self._dsn(), self._times)
        try:
            await connection.execute(_SETUP)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def close(self) -> None:
        """Let go of the connections that nobody uses, and of each other one as soon as it is free."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
