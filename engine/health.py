"""The health of the daemon, in the contract's words."""

from collections.abc import Callable
from typing import Any, Final

import trio

from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.ports import RowStore

# How long a check waits for a store's answer, in seconds.
_PING_S: Final = 1.0

# Facts about one part: ``status`` (healthy, unhealthy), and what an operator wants to know beside it.
Facts = Callable[[], dict[str, Any]]


class Health:
    """Asks the journal and the stores; these really, so one that went away in a quiet hour is seen."""

    def __init__(self, journal: Facts, stores: list[tuple[RowStore, Facts]]) -> None:
        """``stores``: each with what its writer says of it."""
        self._journal = journal
        self._stores = stores

    async def __call__(self) -> dict[str, Any]:
        """``{"status": healthy|degraded|unhealthy, "checks": {…}}``."""
        journal = self._journal()
        checks: dict[str, Any] = {"journal": journal}
        checks |= {store.name: {} for store, _ in self._stores}  # in this order, whoever answers first

        async def check(store: RowStore, writer: Facts) -> None:
            checks[store.name] = await _check(store, writer)

        async with trio.open_nursery() as nursery:
            for store, writer in self._stores:
                nursery.start_soon(check, store, writer)
        if journal["status"] != "healthy":
            status = "unhealthy"  # events cannot be made durable
        else:
            status = "healthy" if all(each["status"] == "healthy" for each in checks.values()) else "degraded"
        for name in ("influxdb", "redis"):
            checks.setdefault(name, {"status": "not_configured"})
        return {"status": status, "checks": checks}


async def _check(store: RowStore, writer: Facts) -> dict[str, Any]:
    facts = writer()
    began = trio.current_time()
    fault: str | None = f"no answer within {_PING_S:g} s"
    with trio.move_on_after(_PING_S):
        try:
            await store.ping()
            fault = None
        except (StoreUnavailableError, StoreRefusedError) as error:
            fault = str(error)
    facts["response_time_ms"] = round((trio.current_time() - began) * 1000, 1)
    if fault is not None:
        facts |= {"status": "unhealthy", "error": facts.get("error", fault)}
    return facts
