"""PostgreSQL as a daemon has it: one database or several, with replicas and a login for students where there are."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import trio

from adapters.asyncio_bridge import Dsn
from engine.clock import WallClock
from engine.measures import Histograms
from engine.ports import SessionQueries, StateKeeper
from engine.sharding import Shard

from .pool import Pool
from .queries import PostgresQueries
from .replicas import ReadPool
from .series import PostgresSeries
from .sharded_queries import ShardedQueries, ShardedSeries
from .shards import ShardedStates
from .store import PostgresStore


class Databases:
    """The parts, tied together. Constructing does no I/O."""

    def __init__(
        self,
        dsns: Sequence[Dsn],
        *,
        admin_dsn: str,
        student_dsn: str,
        read_dsns: Sequence[str],
        max_lag_ms: int,
        apply_migrations: bool,
        holds_series: bool,
        clock: WallClock,
        times: Histograms,
    ) -> None:
        """``dsns``: one, or the shards in their order. ``admin_dsn`` and ``student_dsn`` may be empty.

        ``holds_series``: as `PostgresStore` takes it.
        """
        logins = [(dsn, _login(dsn, admin_dsn, len(dsns)), _login(dsn, student_dsn, len(dsns))) for dsn in dsns]
        self.stores = [
            PostgresStore(
                dsn,
                apply_migrations=apply_migrations,
                clock=clock,
                admin_dsn=admin,
                shard=Shard(place, len(dsns)),
                holds_series=holds_series,
                times=times,
            )
            for place, (dsn, admin, _) in enumerate(logins)
        ]
        self.states: StateKeeper = self.stores[0] if len(dsns) == 1 else ShardedStates(self.stores)
        self._reads = [ReadPool(dsn, read_dsns, max_lag_ms=max_lag_ms, times=times) for dsn in dsns]
        self._queries = [
            PostgresQueries(reads, None if student is None else Pool(student, times))
            for reads, (_, _, student) in zip(self._reads, logins, strict=True)
        ]
        series = [PostgresSeries(reads) for reads in self._reads]
        self.queries: SessionQueries = self._queries[0] if len(dsns) == 1 else ShardedQueries(self._queries)
        self.series: PostgresSeries | ShardedSeries = series[0] if len(dsns) == 1 else ShardedSeries(series)

    async def run(self) -> None:
        """Look after the replicas; returns when there are none."""
        async with trio.open_nursery() as nursery:
            for reads in self._reads:
                nursery.start_soon(reads.run)

    def health(self, facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What there is to say beside a ping. ``facts`` are of each store's writer; several count as their worst."""
        if len(facts) == 1:
            return facts[0] | self._reads[0].health
        together: dict[str, Any] = {
            "status": "healthy" if all(each["status"] == "healthy" for each in facts) else "unhealthy",
            "lag_events": max(each["lag_events"] for each in facts),
            "shards": facts,
        }
        errors = [f"shard {place}: {each['error']}" for place, each in enumerate(facts) if "error" in each]
        return together | ({"error": "; ".join(errors)} if errors else {})

    @property
    def pools(self) -> dict[str, list[Any]]:
        """What holds connections (``connections`` tells how many), by database."""
        found: dict[str, list[Any]] = {
            store.name: [store, queries] for store, queries in zip(self.stores, self._queries, strict=True)
        }
        return found | {f"postgresql.replica.{each.number}": [each] for each in self._reads[0].replicas}

    async def close(self) -> None:
        """Let go of every connection."""
        for store, queries in zip(self.stores, self._queries, strict=True):
            await store.close()
            await queries.close()


def _login(dsn: Dsn, login: str, databases: int) -> Dsn | None:
    """Where another login connects; with several databases it is the same user and password on each."""
    if not login:
        return None
    return (lambda: login) if databases == 1 else (lambda: with_login(dsn(), login))


def with_login(dsn: str, login: str) -> str:
    """A DSN with the user and the password of another."""
    userinfo, at, _ = urlsplit(login).netloc.rpartition("@")
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{userinfo}{at}{parts.netloc.rpartition('@')[2]}").geturl()
