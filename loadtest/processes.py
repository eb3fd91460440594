"""Child processes of harness and bench: each may be pinned to a core, each is ended by its own pid."""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.errors import LoadTestError

ROOT = Path(__file__).resolve().parents[1]
READY_TIMEOUT_S = 60.0
# The daemon promises to stop within 10 s.
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Cores:
    """What is measured runs alone on `server`; PostgreSQL, wrk and the bench itself share `load`."""

    server: int
    load: int


@dataclass(frozen=True)
class Server:
    """A running program that answers HTTP."""

    pid: int
    address: str  # http://host:port

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system


def claim_cores() -> Cores:
    """The first two cores this process may use; the bench itself moves to the second."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        raise LoadTestError("the bench needs Linux and two cores: one for the server, one for load and PostgreSQL")
    os.sched_setaffinity(0, {usable[1]})
    return Cores(server=usable[0], load=usable[1])


def need(*tools: str) -> None:
    """Refuse to start without the programs that the bench calls."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise LoadTestError(f"not found: {', '.join(missing)} (Debian packages: wrk, util-linux)")


def pinned(core: int | None, *command: str) -> list[str]:
    """The command, on one core unless None; `taskset` becomes the command, so the pid stays."""
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def python_server(
    core: int | None, module: str, *arguments: str, env: Mapping[str, str], log: Path
) -> Iterator[Server]:
    """Run a module of this checkout until the block ends; its ready line says where it listens.

    Its stderr goes to `log`. At the end it gets SIGTERM and `STOP_TIMEOUT_S`, then SIGKILL and a warning.
    """
    process = launch(core, module, *arguments, env=env, log=log)
    try:
        yield Server(process.pid, ready_address(process, module, log))
    finally:
        stop(process, module)


def launch(
    core: int | None, module: str, *arguments: str, env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a module of this checkout, in a session of its own: Ctrl-C reaches us, and we end it in order."""
    command = pinned(core, sys.executable, "-m", module, *arguments)
    with log.open("ab") as errors:
        return subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )


def ready_address(process: subprocess.Popen[bytes], name: str, log: Path) -> str:
    """Wait for `… ready http://host:port` on stdout."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            line = process.stdout.readline().decode()
            if " ready http" in line:
                return line.split()[-1]
            if not line:
                break
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise LoadTestError(f"{name} did not become ready (exit code {process.poll()}); its last words:\n{tail}")


def stop(process: subprocess.Popen[bytes], name: str) -> None:
    """SIGTERM, then SIGKILL; only ever this process."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"warning: {name} did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM and was killed", file=sys.stderr)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
