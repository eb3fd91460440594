"""Signals: the first stops what is under way and keeps what was measured, the second ends the run."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


def endings() -> list[signal.Signals]:
    """The signals that end a run; SIGHUP not where `nohup` has it ignored."""
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


class Interrupts:
    """Of one run."""

    def __init__(self) -> None:
        self.came = False
        self._begun = False  # there is something to keep; before, a first one ends the run too
        self._stop: Callable[[], None] | None = None  # what a first one does now
        self._owed = False  # a first one came between two blocks, and stops the next

    async def listen(self, run: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; `run` is all of it."""
        with trio.open_signal_receiver(*endings()) as signals:
            task_status.started()
            async for _ in signals:
                if self.came or not self._begun:
                    run.cancel()
                    continue
                self.came = True
                if self._stop is None:
                    self._owed = True
                else:
                    self._stop()

    @contextmanager
    def stopping_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """What a first one does within the block."""
        self._begun = True
        self._stop = stop
        if self._owed:
            self._owed = False
            stop()
        try:
            yield
        finally:
            self._stop = None
