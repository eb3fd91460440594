"""How late this process wakes, and how busy it is: what of all times is the harness' own and not the daemon's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass
class Work:
    """Of this process, within a block."""

    cores: float = 0.0  # CPU time over time; known at the block's end


@contextmanager
def working() -> Iterator[Work]:
    """Measure what the block takes of a core."""
    work, began, cpu = Work(), time.monotonic(), time.process_time()
    try:
        yield work
    finally:
        # Over less than a second it says how long it took to begin.
        work.cores = (time.process_time() - cpu) / max(time.monotonic() - began, 1.0)
