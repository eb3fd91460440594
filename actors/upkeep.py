"""Upkeep: now and then, a store makes room for what comes and lets go of what is old."""

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
        """A round once the store is known, and then every hour."""
        await self._recovery.done.wait()
        while True:
            reach("upkeep.tend")
            try:
                self._strays = await self._store.tend(self._clock(), self._retention)
            except (StoreUnavailableError, StoreRefusedError) as error:
                log.warning("upkeep put off", store=self._store.name, reason=str(error))
                await trio.sleep(_RETRY_S)
            else:
                await trio.sleep(_INTERVAL_S)
