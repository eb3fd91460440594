"""The health of the daemon, in the contract's words."""

from collections.abc import Callable
from typing import Any, Final

import trio

from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.ports import Store

# How long a check waits for a store's answer, in seconds.
_PING_S: Final = 1.0

# Facts about one part: ``status`` (healthy, unhealthy), and what an operator wants to know beside it.
Facts = Callable[[], dict[str, Any]]


class Health:
    """Asks the journal and the store; the store really, so one that went away in a quiet hour is seen."""

    def __init__(self, journal: Facts, store: Store, writer: Facts) -> None:
        self._journal = journal
        self._store = store
        self._writer = writer

    async def __call__(self) -> dict[str, Any]:
        """``{"status": healthy|degraded|unhealthy, "checks": {…}}``."""
        journal, store = self._journal(), await self._check_store()
        if journal["status"] != "healthy":
            status = "unhealthy"  # events cannot be made durable
        else:
            status = "healthy" if store["status"] == "healthy" else "degraded"
        absent = {"status": "not_configured"}
        return {
            "status": status,
            "checks": {"journal": journal, self._store.name: store, "influxdb": absent, "redis": absent},
        }

    async def _check_store(self) -> dict[str, Any]:
        facts = self._writer()
        began = trio.current_time()
        fault: str | None = f"no answer within {_PING_S:g} s"
        with trio.move_on_after(_PING_S):
            try:
                await self._store.ping()
                fault = None
            except (StoreUnavailableError, StoreRefusedError) as error:
                fault = str(error)
        facts["response_time_ms"] = round((trio.current_time() - began) * 1000, 1)
        if fault is not None:
            facts |= {"status": "unhealthy", "error": facts.get("error", fault)}
        return facts
