"""Several PostgreSQL databases as one, for recovery, upkeep and health. Each has a writer."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import structlog
import trio

from engine.cohort import NotebookTotals
from engine.errors import ClasspulseError, StoreRefusedError, StoreUnavailableError
from engine.event import UserKey
from engine.ports import Retention, StoredOffsets
from engine.session import UserState
from engine.sharding import shard_of

from .store import PostgresStore

Part = TypeVar("Part")
Answer = TypeVar("Answer")

log = structlog.get_logger("shards")


async def ask_each(parts: Sequence[Part], question: Callable[[Part], Awaitable[Answer]]) -> list[Answer]:
    """All answers, in order. When some fail, the first that is not away has its fault raised, else the first."""
    answers: list[Any] = [None] * len(parts)
    faults: dict[int, ClasspulseError] = {}

    async def ask(place: int, part: Part) -> None:
        try:
            answers[place] = await question(part)
        except ClasspulseError as error:
            faults[place] = error

    async with trio.open_nursery() as nursery:
        for place, part in enumerate(parts):
            nursery.start_soon(ask, place, part)
    for place in sorted(faults, key=lambda place: (isinstance(faults[place], StoreUnavailableError), place)):
        raise faults[place]
    return answers


class ShardedStates:
    """`engine.ports.StateKeeper` over shards."""

    name: Final = "postgresql"

    def __init__(self, parts: Sequence[PostgresStore]) -> None:
        self._parts = parts

    async def open(self) -> None:
        """See `engine.ports.StateKeeper`; and prove that these databases are the set that they were before."""
        await ask_each(self._parts, PostgresStore.open)
        found = {part.identity.set_id for part in self._parts if part.identity is not None}
        if len(found) > 1:
            raise StoreRefusedError("postgres.shards: these databases belong to different sets of shards")
        set_id = found.pop() if found else uuid4()
        for part in self._parts:
            if part.identity is None:
                await part.join(set_id)
                log.info("database joined the shards", set_id=str(set_id), shard=part.name)

    async def ping(self) -> None:
        """See `engine.ports.Place`: all of them."""
        await ask_each(self._parts, PostgresStore.ping)

    def groups(self, keys: Iterable[UserKey]) -> list[list[UserKey]]:
        """See `engine.ports.StateKeeper`."""
        by_shard = self._by_shard(keys)
        return [each for each in by_shard if each]

    def _by_shard(self, keys: Iterable[UserKey]) -> list[list[UserKey]]:
        by_shard: list[list[UserKey]] = [[] for _ in self._parts]
        for key in keys:
            by_shard[shard_of(key[1], len(by_shard))].append(key)
        return by_shard

    async def offsets(self, journal_id: UUID) -> StoredOffsets:
        """The highest of rows: none may be past the journal's end. The lowest of all: replay begins there."""
        found = await ask_each(self._parts, lambda part: part.offsets(journal_id))
        rows = [each.rows for each in found]
        oldest = min(*rows, *(each.snapshots for each in found))
        return StoredOffsets(max(rows), oldest, others=found[0].others, behind=min(rows))

    async def tend(self, now: int, retention: Retention) -> int:
        """See `engine.ports.StateKeeper`."""
        return sum(await ask_each(self._parts, lambda part: part.tend(now, retention)))

    async def sum_up(self) -> bool:
        """See `engine.ports.StateKeeper`. One after the other; one that is away does not hold up the others."""
        more, fault = False, None
        for part in self._parts:
            try:
                more = await part.sum_up() or more
            except (StoreRefusedError, StoreUnavailableError) as error:
                fault = error
        if fault is not None and not more:
            raise fault
        return more

    async def snapshots(self, keys: Iterable[UserKey]) -> list[UserState]:
        """See `engine.ports.StateKeeper`: only shards of these users are asked."""
        asked = [(part, mine) for part, mine in zip(self._parts, self._by_shard(keys), strict=True) if mine]
        found = await ask_each(asked, lambda pair: pair[0].snapshots(pair[1]))
        return [state for states in found for state in states]

    async def recent_snapshots(self, since: int) -> list[UserState]:
        """See `engine.ports.StateKeeper`."""
        found = await ask_each(self._parts, lambda part: part.recent_snapshots(since))
        return [state for states in found for state in states]

    async def notebooks(self) -> list[tuple[str, str, NotebookTotals]]:
        """See `engine.ports.StateKeeper`. Each shard knows all; one that is behind knows less, and they merge."""
        found = await ask_each(self._parts, PostgresStore.notebooks)
        return [notebook for notebooks in found for notebook in notebooks]
