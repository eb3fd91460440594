"""``ops``: what operators watch."""

from collections.abc import Callable
from typing import Any, Final

import trio

from engine.delta import Document

from .topic import Topic

# How often it looks, in seconds: its numbers change with every event, and nobody reads them faster.
_LOOK_S: Final = 1.0

Facts = Callable[[], dict[str, Any]]


class OpsTopic(Topic):
    """Facts about the daemon, like health's but from memory alone; its alerts are those of every class's limits."""

    def __init__(self, epoch: str, facts: Facts) -> None:
        self._document = Document()
        super().__init__("ops", epoch, 0, self._document)
        self._facts = facts
        self._looked_at = float("-inf")

    def refresh(self) -> None:
        """See `Topic`."""
        now = trio.current_time()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            if self._document.put(self._facts()):
                self._snapshot = None
