"""A watchdog for the event loop: a thread that says where it hangs, because nothing in the loop can.

It only tells. What ends a daemon that hangs is its process manager, whose own watchdog the loop feeds
(`adapters.systemd`): a loop that hangs feeds nothing.
"""

import sys
import threading
import time
import traceback
from typing import Final

import structlog
import trio

# The loop's longest turn that is not worth a word, in seconds. Work is done in pieces of milliseconds.
LIMIT_S: Final = 10.0
# Beats within the limit, so that one late beat is not taken for a hang.
_BEATS: Final = 10

log = structlog.get_logger("watchdog")


class Watchdog:
    """Run it in the loop that is to be watched."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._beat = time.monotonic()
        self._over = threading.Event()

    def beat(self) -> None:
        """The loop turns."""
        self._beat = time.monotonic()

    async def run(self) -> None:
        """Beat until cancelled."""
        self.beat()
        watcher = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True)
        watcher.start()
        try:
            while True:
                await trio.sleep(self._limit_s / _BEATS)
                self.beat()
        finally:
            self._over.set()

    def _watch(self, loop: int) -> None:
        """In the thread: look at the loop's thread once a beat; each hang is told once, and its end."""
        hung_at: float | None = None
        looked = time.monotonic()
        while not self._over.wait(self._limit_s / _BEATS):
            before, looked = looked, time.monotonic()
            beat = self._beat
            if hung_at is not None and beat != hung_at:
                log.warning("event loop turns again", seconds=round(beat - hung_at, 1))
                hung_at = None
            # If this thread did not run either, the whole process was stopped, and nobody is to blame.
            if hung_at is None and looked - beat > self._limit_s and looked - before < self._limit_s:
                hung_at = beat
                frame = sys._current_frames().get(loop)  # noqa: SLF001 - the one way to another thread's stack
                stack = "" if frame is None else "".join(traceback.format_stack(frame))
                log.error("event loop hangs", seconds=round(looked - beat, 1), stack=stack)
