"""How late this process wakes: the part of all times that is the harness' own and not the daemon's."""

from typing import Final

import trio

from loadtest.histograms import Histogram
from loadtest.plan import Clock

# Seconds between two looks.
PULSE_S: Final = 0.02


async def pulse(clock: Clock, until_s: float, behind: Histogram) -> None:
    """Record in `behind` how late each look was, until that moment of the run."""
    due = clock.offset_s + PULSE_S
    while due < until_s:
        await trio.sleep(max(0.0, due - clock.offset_s))  # it may be over while we look at the clock
        now = clock.offset_s
        while due <= now:  # after a stall: each look that was due
            behind.record(now - due)
            due += PULSE_S
