"""Ctrl-C and SIGTERM: the first stops what is under way and keeps what was measured, the second ends the run."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Interrupts:
    """Of one run."""

    def __init__(self) -> None:
        self.came = False
        self._stop: Callable[[], None] | None = None  # what a first one does now; None: it ends the run too

    async def listen(self, run: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; `run` is all of it."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.came or self._stop is None:
                    run.cancel()
                else:
                    self.came = True
                    self._stop()

    @contextmanager
    def stopping_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """What a first one does within the block."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None
