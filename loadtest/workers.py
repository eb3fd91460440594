"""Who makes the load: this process, or several of their own, whose counts are merged.

A worker process reads its plan and then "go" from stdin, writes a tick a second and at last its whole account to
stdout, one JSON message a line. It ends when its stdin does, so none outlives the run.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import trio

from loadtest.errors import LoadTestError
from loadtest.generator import Generator, Tick
from loadtest.histograms import Histogram
from loadtest.ledger import Entry, Tally
from loadtest.plan import Clock, Plan
from loadtest.processes import ROOT

TICK_S: Final = 1.0
READY_WITHIN_S: Final = 30.0


class Assignment(msgspec.Struct):
    """A worker's part."""

    plan: Plan
    share: int
    of: int


class Message(msgspec.Struct, omit_defaults=True):
    """One line from a worker."""

    ready: bool = False
    tick: Tick | None = None
    tally: Tally | None = None
    entries: list[Entry] = []


class Worker(Protocol):
    """Makes load once. `tally` and `entries` are whole when `run` has returned."""

    tally: Tally
    entries: list[Entry]

    async def prepare(self) -> None:
        """Get ready to begin at once."""

    async def run(self, clock: Clock, told: Callable[[Tick], None]) -> None:
        """Play; `told` hears every tick."""

    def stop(self) -> None:
        """End early, with what there is."""


class OwnWorker:
    """This process."""

    def __init__(self, plan: Plan) -> None:
        self._generator = Generator(plan)
        self.tally = self._generator.tally
        self.entries = self._generator.entries

    async def prepare(self) -> None:
        """See `Worker`."""

    async def run(self, clock: Clock, told: Callable[[Tick], None]) -> None:
        """See `Worker`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ticking, self._generator, told)
            await self._generator.run(clock)
            nursery.cancel_scope.cancel()
        told(self._generator.tick())

    def stop(self) -> None:
        """See `Worker`."""
        self._generator.stop()


class ChildWorker:
    """A process of its own, in a session of its own: Ctrl-C reaches us, and we end it in order."""

    def __init__(self, plan: Plan, share: int, of: int) -> None:
        self.tally = Tally()
        self.entries: list[Entry] = []
        self._assignment = Assignment(plan, share, of)
        self._process: trio.Process | None = None
        self._lines: Lines | None = None
        self._stopped = trio.Event()

    async def prepare(self) -> None:
        """Start it and wait until it has its plan."""
        self._process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "loadtest.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._lines = Lines(self._process.stdout)
        await self._tell(msgspec.json.encode(self._assignment))
        with trio.move_on_after(READY_WITHIN_S):
            message = await self._next()
            if message is not None and message.ready:
                return
        raise LoadTestError(f"worker {self._assignment.share} did not become ready")

    async def run(self, clock: Clock, told: Callable[[Tick], None]) -> None:
        """See `Worker`."""
        try:
            await self._tell(msgspec.json.encode(clock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_stopped)
                while (message := await self._next()) is not None:
                    if message.tick is not None:
                        told(message.tick)
                    if message.tally is not None:
                        self.tally, self.entries = message.tally, message.entries
                        break
                else:
                    raise LoadTestError(f"worker {self._assignment.share} ended without an account")
                nursery.cancel_scope.cancel()
        finally:
            await self.aclose()

    def stop(self) -> None:
        """See `Worker`."""
        self._stopped.set()

    async def aclose(self) -> None:
        """End the process, in order if it will."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(process.stdin)
            with trio.move_on_after(3):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _end_when_stopped(self) -> None:
        await self._stopped.wait()
        await self._tell(b"stop")

    async def _tell(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(line + b"\n")
        except trio.BrokenResourceError as error:
            raise LoadTestError(f"worker {self._assignment.share} has died") from error

    async def _next(self) -> Message | None:
        assert self._lines is not None
        line = await self._lines.next()
        return None if line is None else msgspec.json.decode(line, type=Message)


class Lines:
    """Lines of a stream, of any length."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._ready: list[bytes] = []
        self._parts: list[bytes] = []

    async def next(self) -> bytes | None:
        """The next line, or None at the end."""
        while not self._ready:
            data = await self._stream.receive_some(1 << 18)
            if not data:
                return None
            first, *rest = bytes(data).split(b"\n")
            self._parts.append(first)
            for part in rest:
                self._ready.append(b"".join(self._parts))
                self._parts = [part]
            if len(self._ready) > 1:
                self._ready.reverse()
        return self._ready.pop()


class Messages:
    """What a worker says, whole messages alone: half a line would spoil the next one."""

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()

    async def say(self, message: Message) -> None:
        """BrokenResourceError when nobody is there any more."""
        async with self._lock:
            with trio.CancelScope(shield=True):  # until the parent reads, or is gone
                await self._stream.send_all(msgspec.json.encode(message) + b"\n")


async def _ticking(generator: Generator, told: Callable[[Tick], None]) -> None:
    while True:
        await trio.sleep(TICK_S)
        told(generator.tick())


def merged(workers: Iterable[Worker]) -> tuple[Tally, list[Entry]]:
    """The accounts of all."""
    tally, entries = Tally(), list[Entry]()
    for worker in workers:
        tally.merge(worker.tally)
        entries.extend(worker.entries)
    return tally, entries


def added(ticks: Iterable[list[Tick]]) -> Tick:
    """One of several workers' several; people at work are those of each one's last."""
    whole = Tick(0.0, Histogram(), 0, 0, 0, 0)
    for of_worker in ticks:
        for tick in of_worker:
            whole.post.merge(tick.post)
            whole.requests += tick.requests
            whole.acknowledged += tick.acknowledged
            whole.errors += tick.errors
        whole.over_s = max(whole.over_s, sum(tick.over_s for tick in of_worker))
        whole.at_work += of_worker[-1].at_work
    return whole


async def _child() -> None:
    """The worker process."""
    incoming = Lines(trio.lowlevel.FdStream(0))
    say = Messages(trio.lowlevel.FdStream(os.dup(1))).say
    os.dup2(2, 1)  # what a scenario of one's own prints is no message
    line = await incoming.next()
    if line is None:
        return
    assignment = msgspec.json.decode(line, type=Assignment)
    generator = Generator(assignment.plan, assignment.share, assignment.of)
    await say(Message(ready=True))
    line = await incoming.next()
    if line is None:
        return
    clock = msgspec.json.decode(line, type=Clock)

    async def ticks() -> None:
        while True:
            await trio.sleep(TICK_S)
            await say(Message(tick=generator.tick()))

    async def until_told() -> None:
        await incoming.next()
        generator.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticks)
        nursery.start_soon(until_told)
        await generator.run(clock)
        nursery.cancel_scope.cancel()
    await say(Message(tick=generator.tick(), tally=generator.tally, entries=generator.entries))


if __name__ == "__main__":
    trio.run(_child)
