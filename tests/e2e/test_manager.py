"""The daemon under a process manager: it says how it is, serves on the socket that it is given, and reads its
configuration again when asked.

``CLASSPULSE_RESTARTS`` says how often it is restarted under load (the full form is 10).
"""

import json
import os
import signal
import socket
import time
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio
import trio.testing

from tests.e2e.api import Api
from tests.e2e.daemon import READY_WITHIN_S, Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import free_port
from tests.e2e.reckoning import check_counters, check_rows
from tests.e2e.samples import run
from tests.e2e.waiting import eventually
from tests.e2e.wire import request_bytes, send_raw

RESTARTS = int(os.environ.get("CLASSPULSE_RESTARTS", "2"))
READY_AGAIN_WITHIN_S = 8
WATCHDOG_S = 1.0


class Notices:
    """The manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)

    async def __aenter__(self):
        await self._socket.bind(self.address.replace("@", "\0", 1))
        return self

    async def __aexit__(self, *_):
        self._socket.close()

    async def next(self, *, but: str = "WATCHDOG=1", within: float = READY_WITHIN_S) -> dict[str, str]:
        """The next message that is not ``but``."""
        with trio.fail_after(within):
            while True:
                text = (await self._socket.recv(4096)).decode()
                if text != but:
                    return dict(line.split("=", 1) for line in text.splitlines())


def nobody() -> str:
    """A database that is never there: the daemon serves without it, and nothing must be made for it."""
    return f"postgresql://postgres@127.0.0.1:{free_port()}/nobody"


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
async def test_it_says_when_it_is_ready_and_when_it_stops(abstract, data_dir):
    address = f"@classpulse-test-{data_dir.parent.name}" if abstract else str(data_dir.parent / "notify")
    async with Notices(address) as notices:
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        daemon = Daemon(data_dir, dsn=nobody(), environ=environ)
        await in_thread(daemon.launch)
        try:
            assert await notices.next() == {"STATUS": "starting"}
            ready = await notices.next()
            await in_thread(daemon.wait_ready)
            assert ready == {"READY": "1", "STATUS": f"ready on {daemon.url}"}
            assert (await Api(daemon).post(run())).status == 202
            daemon.signal(signal.SIGTERM)
            assert (await notices.next())["STOPPING"] == "1"
            assert (await notices.next())["STATUS"].startswith("stopping: 1 events")
            assert await in_thread(daemon.wait) == 0, daemon.stderr
        finally:
            daemon.kill()


async def test_the_watchdog_is_fed_while_the_loop_turns_and_not_while_it_stands(data_dir):
    address = str(data_dir.parent / "notify")
    async with Notices(address) as notices:
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        async with Daemon(data_dir, dsn=nobody(), environ=environ) as daemon:
            while "READY" not in await notices.next():
                pass
            for _ in range(3):
                assert await notices.next(but="", within=10) == {"WATCHDOG": "1"}
            daemon.signal(signal.SIGSTOP)
            try:
                with trio.move_on_after(3 * WATCHDOG_S) as silence:
                    await notices.next(but="WATCHDOG=1", within=60)
                assert silence.cancelled_caught
                late = 0
                with trio.move_on_after(WATCHDOG_S):
                    while True:
                        await notices.next(but="")
                        late += 1
                assert not late
            finally:
                daemon.signal(signal.SIGCONT)
            assert await notices.next(but="", within=10) == {"WATCHDOG": "1"}


async def test_a_manager_that_is_gone_does_no_harm(data_dir):
    async with Daemon(data_dir, dsn=nobody(), environ={"NOTIFY_SOCKET": str(data_dir / "nobody")}) as daemon:
        assert (await Api(daemon).post(run())).status == 202


# --- SIGHUP


def logged(daemon: Daemon, event: str) -> list[dict]:
    lines = (json.loads(line) for line in daemon.stderr.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


async def reloaded(daemon: Daemon, event: str, count: int) -> dict:
    """Ask for a reload, and wait for the ``count``-th line of its kind."""
    daemon.signal(signal.SIGHUP)

    async def found():
        return len(logged(daemon, event)) == count

    await eventually(found, what=event)
    return logged(daemon, event)[-1]


async def test_sighup_takes_up_what_it_can_and_names_what_needs_a_restart(data_dir):
    file = data_dir.parent / "classpulse.toml"
    file.write_text('[http]\nallowed_hosts = ["127.0.0.1"]\n')
    address = str(data_dir.parent / "notify")
    async with Notices(address) as notices:
        daemon = Daemon(
            data_dir, dsn=nobody(), arguments=["--config", str(file)], environ={"NOTIFY_SOCKET": address}
        )  # fmt: skip
        async with daemon:
            api = Api(daemon)
            while "READY" not in await notices.next():
                pass

            async def status_of_named():
                return (await send_raw(daemon.port, request_bytes("GET", "/livez", host="hub.example.org"))).status

            assert await status_of_named() == 421
            file.write_text(
                '[http]\nallowed_hosts = ["127.0.0.1", "hub.example.org"]\nmax_body_bytes = 2000\n'
                "[stuck]\nconsecutive_errors = 5\n[journal]\nmin_free_bytes = 1\n"
            )
            line = await reloaded(daemon, "configuration reloaded", 1)
            assert sorted(line["applied"]) == ["http.allowed_hosts", "http.max_body_bytes", "journal.min_free_bytes"]
            assert line["need_restart"] == ["stuck.consecutive_errors"]
            began = await notices.next()
            assert began["RELOADING"] == "1"
            assert int(began["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert (await notices.next())["READY"] == "1"
            assert await status_of_named() == 200
            assert (await api.post(run(error_message="x" * 3000))).status == 413

            file.write_text("[http]\nmax_body_bytes = 'none'\n")
            line = await reloaded(daemon, "configuration not reloaded: it has faults", 1)
            assert line["faults"] == ['http.max_body_bytes: expected an integer, got "none"']
            assert (await notices.next())["RELOADING"] == "1"
            assert (await notices.next())["READY"] == "1"
            assert await status_of_named() == 200

            file.unlink()
            await reloaded(daemon, "configuration not reloaded: it has faults", 2)
            assert (await api.post(run())).status == 202


# --- the socket


@asynccontextmanager
async def listening(host: str = "127.0.0.1"):
    """What systemd does for a .socket unit."""
    with socket.create_server((host, 0), backlog=4096) as listener:
        yield listener


async def test_it_serves_on_the_socket_that_it_is_given(data_dir):
    async with listening() as listener:
        daemon = Daemon(data_dir, dsn=nobody(), listener=listener, settings={"HTTP__PORT": str(free_port())})
        async with daemon:
            assert daemon.port == listener.getsockname()[1]
            assert (await Api(daemon).post(run())).status == 202
            children = psutil.Process(daemon.pid).children(recursive=True)
            assert children == []
        async with trio.open_nursery() as nursery:  # not refused: it waits until somebody is there again

            async def asks():
                assert (await Api(daemon).call("GET", "/livez")).status == 200

            nursery.start_soon(asks)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await in_thread(daemon.start)
        assert await in_thread(daemon.stop) == 0


async def test_children_of_the_daemon_know_nothing_of_the_manager(data_dir):
    """The embedded PostgreSQL, that is: it must not take the socket, nor speak for the daemon."""
    async with listening() as listener, Notices(str(data_dir.parent / "notify")) as notices:
        environ = {"NOTIFY_SOCKET": notices.address, "WATCHDOG_USEC": "30000000"}
        async with Daemon(data_dir, listener=listener, environ=environ) as daemon:
            children = psutil.Process(daemon.pid).children(recursive=True)
            looked_at = 0
            for child in children:
                with suppress(psutil.NoSuchProcess):  # some of PostgreSQL's workers come and go
                    assert not {"LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys()
                    assert not [each for each in child.net_connections("tcp") if each.laddr.port == daemon.port]
                    looked_at += 1
            assert looked_at


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_mode_open_refuses_a_socket_that_others_reach(host, data_dir):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        daemon = Daemon(data_dir, dsn=nobody(), listener=listener)
        await in_thread(daemon.launch)
        assert await in_thread(daemon.wait) == 2
        assert daemon.stderr.startswith(f"config: auth.mode: the inherited socket listens on {host}, ")
        assert len(daemon.stderr.splitlines()) == 1


async def test_a_descriptor_that_is_no_listening_socket_is_a_clear_fault(data_dir):
    with socket.socket() as idle:
        daemon = Daemon(data_dir, dsn=nobody(), listener=idle)
        await in_thread(daemon.launch)
        assert await in_thread(daemon.wait) == 1
        assert daemon.stderr == "serve: LISTEN_FDS: descriptor 3 is not a listening TCP socket\n"


@pytest.mark.slow
async def test_restarts_under_load_are_not_seen_by_clients(database, data_dir):
    """A client may send again what it sent on an idle connection that was closed; anything else counts as a failure."""
    slowest = 0.0
    async with listening() as listener:
        daemon = Daemon(data_dir, dsn=database.dsn, listener=listener)
        await in_thread(daemon.start)
        try:
            async with Load(daemon, seed=5, pause_s=0.01, leaving=0.3) as load:
                for _ in range(RESTARTS):
                    await load.progress(300)
                    assert await in_thread(daemon.stop) == 0, daemon.stderr
                    began = time.monotonic()
                    await in_thread(daemon.start)
                    slowest = max(slowest, time.monotonic() - began)
                await load.progress(300)
                await load.finish()
            await Api(daemon).wait_flushed()
            await check_rows(database, load.acknowledged)
            await check_counters(Api(daemon), database, load.acknowledged.values())
            assert await in_thread(daemon.stop) == 0, daemon.stderr
        finally:
            daemon.kill()
    print(f"{RESTARTS} restarts, {load.requests} requests, ready after at most {slowest:.1f} s")  # noqa: T201
    assert load.faults == []
    assert load.refusals == []
    assert load.failures == []
    assert slowest < READY_AGAIN_WITHIN_S
