"""wrk: the closed-loop load, the same script for floor and daemon."""

import json
import math
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.traffic import new_run, write_fragments
from loadtest.errors import LoadTestError
from loadtest.processes import Server, pinned

SCRIPT = Path(__file__).with_name("events.lua")
PATH = "/api/v1/events"


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. Rates are of answered requests; `sent` holds those still in flight at its end too."""

    run: str  # what its event ids begin with
    connections: int
    batch: int
    seconds: float
    answered: int
    sent: int
    p99_ms: float
    non_2xx: int
    broken: int  # connect, read and write errors, and requests over wrk's 2 s
    server_cpu_s: float  # user and system time of what was loaded, while wrk ran
    generator_busy: float  # wrk's share of its core: near 1, the figure is wrk's and not the server's

    @property
    def requests_per_s(self) -> float:
        """Answered requests a second."""
        return self.answered / self.seconds

    @property
    def events_per_s(self) -> float:
        """Events in answered requests, a second."""
        return self.requests_per_s * self.batch

    @property
    def server_busy(self) -> float:
        """The server's share of its core."""
        return self.server_cpu_s / self.seconds

    @property
    def cpu_us_per_request(self) -> float:
        """The server's CPU time for one answered request; steadier than rates where the machine is not quiet."""
        return self.server_cpu_s * 1e6 / max(1, self.answered)

    @property
    def clean(self) -> bool:
        """Every answer was 2xx and no connection broke."""
        return not (self.non_2xx or self.broken)


@dataclass(frozen=True)
class Generator:
    """wrk on one core, with its data files in `directory`."""

    core: int
    directory: Path

    def run(
        self,
        server: Server,
        *,
        users: int,
        batch: int,
        connections: int,
        seconds: float,
        events_per_s: float = math.inf,
    ) -> Load:
        """Load one server for whole seconds, as fast as it answers or at a rate (where it can keep up with that)."""
        files = write_fragments(self.directory, users)
        run = new_run()
        duration = max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "-s", str(SCRIPT), server.address + PATH, "--"]
        command += [run, str(batch), *map(str, files)]
        if events_per_s < math.inf:
            command.append(f"{batch / events_per_s * 1000:.6f}")
        server_cpu_s = server.cpu_s()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(pinned(self.core, *command), capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        server_cpu_s = server.cpu_s() - server_cpu_s
        lines = [line for line in done.stdout.splitlines() if line.startswith("BENCH ")]
        if done.returncode or not lines:
            raise LoadTestError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
        seen = json.loads(lines[0].removeprefix("BENCH "))
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Load(
            run=run,
            connections=connections,
            batch=batch,
            seconds=seen["seconds"],
            answered=seen["answered"],
            sent=seen["sent"],
            p99_ms=seen["p99_ms"],
            non_2xx=seen["non_2xx"],
            broken=seen["connect"] + seen["read"] + seen["write"] + seen["timeout"],
            server_cpu_s=server_cpu_s,
            generator_busy=cpu / seen["seconds"],
        )
