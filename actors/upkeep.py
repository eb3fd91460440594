"""Upkeep: now and then, a store makes room for what comes and lets go of what is old."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from engine.clock import WallClock
from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.faults import reach
from engine.ports import Retention, StateKeeper

from .recovery import Recovery

# Between two rounds, and before the next try of one that failed, in seconds.
_INTERVAL_S: Final = 3600.0
_RETRY_S: Final = 60.0
# Between two rounds of sums, in seconds. And how long the store is left alone in one, to how long it worked: who asks
# for a summary of rows that are not summed waits a little longer, while who stores them should not.
_SUMS_INTERVAL_S: Final = 30.0
_SUMS_REST: Final = 3.0

log = structlog.get_logger("upkeep")


class Upkeep:
    """Has no mailbox: it acts by the clock alone."""

    def __init__(self, store: StateKeeper, recovery: Recovery, retention: Retention, clock: WallClock) -> None:
        self._store = store
        self._recovery = recovery
        self._retention = retention
        self._clock = clock
        self._strays = 0

    @property
    def health(self) -> dict[str, Any]:
        """What an operator should know beside the store's status; usually nothing."""
        return {"stray_rows": self._strays} if self._strays else {}

    async def run(self) -> None:
        """A round once the store is known, and then every hour; and sums all the time."""
        await self._recovery.done.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, self._tend, _INTERVAL_S)
            nursery.start_soon(self._repeat, self._sum_up, _SUMS_INTERVAL_S)

    async def _repeat(self, round_of: Callable[[], Awaitable[None]], interval_s: float) -> None:
        put_off = False
        while True:
            try:
                await round_of()
            except (StoreUnavailableError, StoreRefusedError) as error:
                if not put_off:  # once for as long as it lasts
                    log.warning("upkeep put off", store=self._store.name, reason=str(error))
                put_off = True
                await trio.sleep(_RETRY_S)
            else:
                put_off = False
                await trio.sleep(interval_s)

    async def _tend(self) -> None:
        reach("upkeep.tend")
        self._strays = await self._store.tend(self._clock(), self._retention)

    async def _sum_up(self) -> None:
        reach("upkeep.sum_up")
        began = trio.current_time()
        while await self._store.sum_up():
            await trio.sleep(_SUMS_REST * (trio.current_time() - began))
            began = trio.current_time()
