"""Where reads go: to the replicas that are not too far behind, in turn, else to the primary."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import structlog
import trio

from adapters.asyncio_bridge import Connection, Dsn
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError
from engine.measures import Histograms

from .pool import Pool

# Between two looks at how far the replicas are, in seconds; more often where less lag is allowed. And how long an
# answer may take then.
_LOOK_S: Final = 1.0
_ANSWER_S: Final = 1.0

# Positions in the write-ahead log, as bytes since its beginning. PostgreSQL's documentation, "System Administration
# Functions": Backup Control and Recovery Information Functions.
_PRIMARY: Final = (
    "select pg_is_in_recovery(), (select system_identifier from pg_control_system()), "
    "case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint end"
)
_REPLICA: Final = (
    "select pg_is_in_recovery(), (select system_identifier from pg_control_system()), "
    "pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint, "
    "pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint"
)

T = TypeVar("T")

log = structlog.get_logger("replicas")


class _Sample(NamedTuple):
    """Where the primary's log was, and when (trio time)."""

    at: float
    position: int


class Replica:
    """One of them: how to reach it, and whether it should be asked."""

    def __init__(self, dsn: str, number: int, times: Histograms | None) -> None:
        self.number = number
        self.pool = Pool(lambda: dsn, times)
        self.watch = Pool(lambda: dsn, times, size=1)  # a look never waits behind queries
        self.fault: str | None = "not looked at yet"
        self.lag_ms: int | None = None
        self.queries: set[trio.CancelScope] = set()  # that are under way

    @property
    def connections(self) -> int:
        """How many are open to it."""
        return self.pool.connections + self.watch.connections

    def judge(self, fault: str | None) -> None:
        """What it is asked is asked elsewhere while it has a fault, and so is what was under way without an answer."""
        if fault != self.fault and (fault is None) != (self.fault is None):
            log.info("replica is asked" if fault is None else "replica is not asked", replica=self.number, reason=fault)
        self.fault = fault

    def give_up(self) -> None:
        """It does not answer: whoever waits for it goes elsewhere."""
        for scope in self.queries:
            scope.cancel()


class ReadPool:
    """Hands reads out. Without replicas it is the primary's pool and nothing else.

    A replica is asked while it has replayed what the primary had written ``max_lag_ms`` ago. That is known from
    positions that this process noted itself: the time of the last replay would grow on a primary that rests, and
    clocks of two machines may differ.
    """

    def __init__(
        self, primary: Dsn, replicas: Sequence[str] = (), *, max_lag_ms: int = 1000, times: Histograms | None = None
    ) -> None:
        self._primary = Pool(primary, times)
        self._watch = Pool(primary, times, size=1)
        self.replicas = [Replica(dsn, number, times) for number, dsn in enumerate(replicas)]
        self._max_lag_s = max_lag_ms / 1000
        self._samples: deque[_Sample] = deque()
        self._system: int | None = None  # identifier of the primary's cluster, which its replicas share
        self._turn = 0

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """As `Connection.fetch`; of the primary's errors."""
        return await self.read(lambda connection: connection.fetch(query, *args))

    async def read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Whatever ``work`` reads from one connection. What a replica fails in is asked again elsewhere."""
        fit = [replica for replica in self.replicas if replica.fault is None]
        self._turn += 1
        for step in range(len(fit)):
            replica = fit[(self._turn + step) % len(fit)]
            with trio.CancelScope() as scope:
                replica.queries.add(scope)
                try:
                    async with replica.pool.connection() as connection:
                        return await work(connection)
                except StoreDataError:
                    raise
                except (StoreUnavailableError, StoreRefusedError) as error:
                    replica.judge(str(error))
                finally:
                    replica.queries.discard(scope)
        async with self._primary.connection() as connection:
            return await work(connection)

    async def run(self) -> None:
        """Keep looking at the replicas."""
        while self.replicas:
            await self.look()
            await trio.sleep(min(_LOOK_S, self._max_lag_s))

    async def look(self) -> None:
        """See once how far the primary and the replicas are."""
        with trio.move_on_after(_ANSWER_S):
            await self._sample()
        async with trio.open_nursery() as nursery:
            for replica in self.replicas:
                nursery.start_soon(self._look_at, replica)

    async def _sample(self) -> None:
        try:
            ((recovering, system, position),) = await self._watch.fetch(_PRIMARY)
        except (StoreUnavailableError, StoreRefusedError):
            return  # the replicas are then measured by what is known
        if recovering:
            return
        now = trio.current_time()
        self._system = system
        self._samples.append(_Sample(now, position))
        while len(self._samples) > 1 and self._samples[1].at <= now - self._max_lag_s:
            self._samples.popleft()

    async def _look_at(self, replica: Replica) -> None:
        fault = f"no answer within {_ANSWER_S:g} s"
        found = None
        with trio.move_on_after(_ANSWER_S):
            try:
                (found,) = await replica.watch.fetch(_REPLICA)
            except (StoreUnavailableError, StoreRefusedError) as error:
                fault = str(error)
        if found is None:
            replica.lag_ms = None
            replica.judge(fault)
            replica.give_up()
            return
        recovering, system, received, replayed = found
        if not recovering:
            replica.judge("it is no replica: it takes writes of its own")
        elif self._system not in (None, system):
            replica.judge("it is a replica of another server than the primary")
        else:
            replica.lag_ms = self._lag_ms(replayed)
            must = self._samples[0].position if self._samples else (received or replayed)
            replica.judge(None if replayed >= must else "its lag is over postgres.max_replica_lag_ms")

    def _lag_ms(self, replayed: int) -> int:
        """Since when the primary has what the replica lacks, as far as samples tell; 0: it lacks nothing."""
        missing = next((sample.at for sample in self._samples if sample.position > replayed), None)
        return 0 if missing is None else int((trio.current_time() - missing) * 1000)

    @property
    def health(self) -> dict[str, Any]:
        """For the database's part of `/api/v1/health`; nothing without replicas."""
        if not self.replicas:
            return {}
        facts = []
        for replica in self.replicas:
            fact: dict[str, Any] = {"status": "healthy" if replica.fault is None else "unhealthy"}
            if replica.lag_ms is not None:
                fact["lag_ms"] = replica.lag_ms
            if replica.fault is not None:
                fact["error"] = replica.fault
            facts.append(fact)
        return {"replicas": facts}

    @property
    def connections(self) -> int:
        """How many are open to the primary."""
        return self._primary.connections + self._watch.connections

    async def close(self) -> None:
        """Let go of all connections."""
        for pool in (self._primary, self._watch, *(each for r in self.replicas for each in (r.pool, r.watch))):
            await pool.close()
