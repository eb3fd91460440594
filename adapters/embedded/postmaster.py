"""The server as others find it: what its files in the cluster claim, and what it answers on its socket."""

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from adapters.embedded.account import child_options
from adapters.embedded.install import wheel
from engine.errors import StoreUnavailableError

_ASK_S = 10.0  # for one statement of psql


class LockFile(NamedTuple):
    """What ``postmaster.pid`` claims (source: PostgreSQL's src/include/utils/pidfile.h)."""

    pid: int
    socket_dir: Path
    ready: bool


def running_dsn(directory: Path, *, binaries: Path | None = None) -> str | None:
    """The libpq URL of the server that now runs on the cluster in ``directory``, or None. Blocks, for 10 s at most.

    What ``postmaster.pid`` claims is proven by connecting. StartError when the wheel is needed and not installed.
    """
    lock = lock_file(directory)
    try:
        # Anybody could make a removed socket directory again: only the cluster's owner is believed.
        if lock is None or lock.socket_dir.lstat().st_uid != directory.stat().st_uid:
            return None
        named = _ask(binaries or wheel(), lock.socket_dir, "postgres", "show data_directory")
        return dsn_at(lock.socket_dir) if Path(named).samefile(directory) else None
    except (OSError, StoreUnavailableError):
        return None


def lock_file(directory: Path) -> LockFile | None:
    """What the cluster's ``postmaster.pid`` claims; None when it is missing or incomplete."""
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return LockFile(int(lines[0]), Path(lines[4]), lines[7:8] == ["ready   "])
    except (OSError, ValueError, IndexError):
        return None


def last_socket_dir(directory: Path) -> Path | None:
    """The socket's directory of the last server that started here, as ``postmaster.opts`` tells: it outlives a stop.

    A copied cluster brings the file along, so a server of another cluster may live in that directory.
    """
    with suppress(OSError, ValueError):
        found = re.search(r' "--unix_socket_directories=([^"]+)"', (directory / "postmaster.opts").read_text())
        return Path(found[1]) if found else None
    return None


def drop_false_lock(directory: Path) -> None:
    """Remove a ``postmaster.pid`` that stops every start: it is empty, or its pid is now another program's.

    PostgreSQL itself overlooks neither. Safe, as the caller holds the data directory and PostgreSQL finds backends
    that outlived their postmaster by the cluster's shared memory.
    """
    with suppress(OSError):
        path, lock = directory / "postmaster.pid", lock_file(directory)
        if path.stat().st_size == 0 or (lock and not Path(f"/proc/{lock.pid}/cwd").samefile(directory)):
            path.unlink()


def dsn_at(socket_dir: Path, database: str = "classpulse") -> str:
    """The libpq URL of the database behind the socket in that directory."""
    return f"postgresql://classpulse@/{database}?host={quote(str(socket_dir), safe='')}"


def _ask(install: Path, socket_dir: Path, database: str, statement: str) -> str:
    psql = [str(install / "bin" / "psql"), "-XwqAt", "-d", dsn_at(socket_dir, database), "-c", statement]
    try:
        done = subprocess.run(psql, capture_output=True, check=False, timeout=_ASK_S, **child_options(None))  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise StoreUnavailableError(f"PostgreSQL did not answer psql within {_ASK_S:.0f} s") from error
    if done.returncode != 0:
        raise StoreUnavailableError(f"PostgreSQL refused psql: {last_lines(done.stderr)}")
    return os.fsdecode(done.stdout).strip()


def ensure_database(install: Path, socket_dir: Path) -> None:
    """Prove the database by a query, made first if it is missing."""
    try:
        _ask(install, socket_dir, "classpulse", "select 1")
    except StoreUnavailableError:
        _ask(install, socket_dir, "postgres", "create database classpulse")
        _ask(install, socket_dir, "classpulse", "select 1")


def last_lines(output: bytes) -> str:
    """The last five lines as one."""
    return " | ".join(output.decode(errors="replace").strip().splitlines()[-5:])


def children_of(pid: int) -> list[int]:
    """The processes of a postmaster; empty where the system does not tell (only Linux does)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
