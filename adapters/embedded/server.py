"""The server's life: its cluster and its process, from the first start to the end, and what a killed daemon left."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import trio
from structlog.typing import FilteringBoundLogger

from adapters.embedded.account import account_of, barrier_to, child_options, give
from adapters.embedded.install import MAJOR, copy_of, rename, runnable, wheel
from adapters.embedded.postmaster import (
    children_of,
    drop_false_lock,
    dsn_at,
    ensure_database,
    last_lines,
    last_socket_dir,
    lock_file,
    running_dsn,
)
from adapters.embedded.socket_dir import make_socket_dir, remove_socket_dir
from engine.errors import StartError, StoreUnavailableError

_LOG_MAX_BYTES = 10_000_000  # a longer log starts anew with the server
_RETRY_S = 20.0  # how long a start waits for what a killed server left behind (backends, shared memory)
_IN_USE = ("pre-existing shared memory block", "lock file")  # what PostgreSQL says meanwhile
_START_S = 300.0  # a living child may be replaying WAL; ending it would only make it begin anew
_POLL_S = 0.02  # between looks at postmaster.pid, which says "ready" when a connection is worth a try
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
        return dsn_at(self._socket_dir)

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
        account = self._account = account_of(directory)
        if account is not None and (barrier := barrier_to(account, directory.parent)):
            raise StartError(
                f"{directory} is out of reach of user {account.pw_name}, as whom PostgreSQL runs because it refuses "
                f"root: {barrier} (mode {barrier.stat().st_mode & 0o7777:04o}) does not let it in. "
                f"Run `chmod o+x {barrier}`, or choose another data directory, or do not run classpulse as root"
            )
        for half in directory.parent.glob(f"{directory.name}*.half-*"):
            shutil.rmtree(half, ignore_errors=True)
        install = self._binaries or wheel()
        if account is not None and not runnable(install, account):
            install = copy_of(install, account, directory.with_name(f"postgres-{MAJOR}"))
        return install

    async def _make_cluster(self, install: Path) -> None:
        directory = self._directory
        if (directory / "PG_VERSION").exists():
            if (version := (directory / "PG_VERSION").read_text().strip()) != MAJOR:
                raise StartError(f"{directory} was made by PostgreSQL {version}, not {MAJOR}: dump and restore it")
            if self._account is not None and directory.stat().st_uid == 0:  # restored by root from a backup
                for path in (*directory.rglob("*"), directory):
                    give(path, self._account)
            return
        if directory.exists() and any(directory.iterdir()):
            raise StartError(f"{directory} holds files but no PG_VERSION, so it is no PostgreSQL cluster: move it away")
        half = Path(tempfile.mkdtemp(prefix=f"{directory.name}.half-", dir=directory.parent))
        try:
            give(half, self._account)
            await self._tool(install, "initdb", "-D", str(half), *_INITDB.split())
            await trio.to_thread.run_sync(rename, half, directory)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    async def _start(self, install: Path) -> trio.Process:
        before, last_dir = lock_file(self._directory), last_socket_dir(self._directory)
        self._socket_dir = await trio.to_thread.run_sync(make_socket_dir, self._account, self._socket_dir)
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
            drop_false_lock(self._directory)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
        # The cluster is ours now, so the server that `before` speaks of is gone for good.
        owner = self._directory.stat().st_uid
        if before is not None and before.socket_dir != self._socket_dir:
            remove_socket_dir(before.socket_dir, owner)
        # One that outlived its daemon and then stopped in order took its lock file along, but not its directory.
        if last_dir is not None and last_dir != self._socket_dir:
            remove_socket_dir(last_dir, owner, only_empty=True)
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
            command, capture_stdout=True, capture_stderr=True, check=False, **child_options(self._account)
        )
        if done.returncode != 0:
            raise StartError(f"{tool} failed on {self._directory}: {last_lines(done.stderr)}")

    async def _spawn(self, install: Path) -> trio.Process:
        options = [f"--{setting}" for setting in _SETTINGS.split()] + [f"--unix_socket_directories={self._socket_dir}"]
        command = [str(install / "bin" / "postgres"), "-D", str(self._directory), *options]
        log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(log).st_size > _LOG_MAX_BYTES:
                os.ftruncate(log, 0)
            self._log_start = os.fstat(log).st_size
            return await trio.lowlevel.open_process(command, stdout=log, stderr=log, **child_options(self._account))
        finally:
            os.close(log)

    async def _comes_up(self, process: trio.Process) -> bool:
        """Whether the child answers a query in the database; False when it ended before it was ready."""
        assert self._socket_dir is not None
        with trio.move_on_after(_START_S):
            while process.returncode is None:
                lock = lock_file(self._directory)
                if lock is not None and lock.ready and lock.pid == process.pid:
                    tree = self._binaries or wheel()
                    await trio.to_thread.run_sync(ensure_database, tree, self._socket_dir)
                    return True
                with trio.move_on_after(_POLL_S):
                    await process.wait()
            return False
        raise StoreUnavailableError(f"PostgreSQL was not ready after {_START_S:.0f} s: {self._log_tail()}")

    async def _end(self) -> None:
        """Stop the child: fast (disconnect, checkpoint), else at once (recovery next time), else by force."""
        process, self._process = self._process, None
        if process is not None:
            for how, limit_s in ((signal.SIGINT, self._stop_timeout_s), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 1.0)):
                if process.returncode is None:
                    hung = children_of(process.pid) if how is signal.SIGKILL else []
                    process.send_signal(how)
                    for child in hung:  # one that hangs would outlive its parent, and keep the next start out
                        with suppress(ProcessLookupError):
                            os.kill(child, signal.SIGKILL)
                    with trio.move_on_after(limit_s, shield=True):
                        await process.wait()
            self._log.info("postgres_stopped", pid=process.pid, exit_code=process.returncode)
        if self._socket_dir is not None and self._socket_dir.exists():
            remove_socket_dir(self._socket_dir, self._socket_dir.stat().st_uid)

    @property
    def _log_path(self) -> Path:
        return self._directory.with_name("postgres.log")

    def _log_tail(self) -> str:
        with suppress(OSError), self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return f"{last_lines(log.read())} ({self._log_path})"
        return f"(no {self._log_path})"
