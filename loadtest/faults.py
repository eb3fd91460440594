"""Faults in a run, of the servers that the harness started itself: `postgres-stop@60s+30s`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from loadtest import durations
from loadtest.errors import UsageError
from loadtest.local import Servers
from loadtest.plan import Clock

# What it does, and how long it lasts when that is not said, in seconds.
KINDS: Final = {
    "postgres-stop": ("stop PostgreSQL, start it again after the time", 10.0),
    "postgres-kill": ("stop PostgreSQL without a checkpoint, start it again after the time", 2.0),
    "kill-daemon": ("SIGKILL to the daemon, start it again after the time", 1.0),
    "pause-daemon": ("SIGSTOP to the daemon, SIGCONT after the time", 2.0),
}


@dataclass(frozen=True)
class Fault:
    """What, when (seconds since the run's begin), and for how long."""

    kind: str
    at_s: float
    for_s: float

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.kind}@{self.at_s:g}s+{self.for_s:g}s"


def parse(text: str) -> Fault:
    """A fault as people write it; UsageError says what is wrong."""
    kind, at, times = text.partition("@")
    if kind not in KINDS or not at:
        raise UsageError(f"fault: expected {' or '.join(f'{kind}@20s+5s' for kind in KINDS)}, got {text!r}")
    begin, _, length = times.partition("+")
    what = f"--fault {text}"
    return Fault(kind, durations.seconds(begin, what), durations.seconds(length, what) if length else KINDS[kind][1])


async def play(faults: list[Fault], servers: Servers, clock: Clock) -> None:
    """Each at its time, one after the other; what was taken away is given back, also when the run is stopped."""
    for fault in faults:
        await trio.sleep(max(0.0, fault.at_s - clock.offset_s))
        take, give_back = _actions(fault, servers)
        try:
            await trio.to_thread.run_sync(take)
            await trio.sleep(max(0.0, fault.at_s + fault.for_s - clock.offset_s))
        finally:
            with trio.CancelScope(shield=True):  # bounded by the servers' own deadlines
                await trio.to_thread.run_sync(give_back)


def _actions(fault: Fault, servers: Servers) -> tuple[Callable[[], None], Callable[[], None]]:
    match fault.kind:
        case "postgres-stop":
            return servers.cluster.stop, servers.cluster.start
        case "postgres-kill":
            return servers.cluster.crash, servers.cluster.start
        case "kill-daemon":
            return servers.daemon.kill, servers.daemon.start
    return partial(servers.daemon.pause, stopped=True), partial(servers.daemon.pause, stopped=False)
