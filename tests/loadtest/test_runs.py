"""Whole runs of the harness, as a process, against the daemon as a process."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import asyncpg
import psutil
import pytest
import trio
import trio_asyncio

from tests.e2e.daemon import REPOSITORY, Daemon
from tests.e2e.waiting import eventually
from tests.loadtest.conftest import RECORDINGS, environment
from tests.loadtest.peer import Cutting, Forgetful, Forging, standing_before

# This machine may be slow while other tests run: what is judged here is what was lost, never a time.
NO_PROMISES = ("--slo", "")


@pytest.fixture
def at(shared_daemon, shared_database):
    """Where the daemon is, and its database."""
    return ("--target", shared_daemon.url, "--dsn", shared_database.dsn)


@pytest.fixture
def working(tmp_path):
    """Starts the harness; gives the process once load is under way."""
    started = []

    async def start(*arguments):
        errors = tmp_path / "err"
        with errors.open("w") as stderr:
            process = subprocess.Popen(  # noqa: ASYNC220 - starting is quick
                [sys.executable, "-m", "engine", "loadtest", *map(str, arguments)],
                cwd=REPOSITORY,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        started.append(process)

        async def loaded():
            return "time " in errors.read_text()

        await eventually(loaded, within=60)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def account(found, name):
    (check,) = [check for check in found["checks"] if check["name"].startswith(name)]
    return check


def test_a_class_loses_nothing(command, tmp_path):
    """classroom-200 itself, short: what is lost, doubled or not told fails it, and no time does."""
    files = ("--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    done = command("classroom-200", "--local", *NO_PROMISES, "--duration", "7s", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["options"]["students"], found["options"]["subscribers"]) == (200, 2)
    assert {check["faults"] for check in found["checks"]} == {0}
    assert not any(check.get("skipped") for check in found["checks"])
    acknowledged = found["events"]["acknowledged"]
    assert account(found, "stored, by SQL")["found"] == acknowledged > 1000
    assert account(found, "stored once")["found"] == 0
    assert account(found, "stored as sent")["found"] == acknowledged
    assert account(found, "alerts at every")["found"] > 200
    assert account(found, "counted in sessions, by SQL")["found"] == account(found, "counted in the live")["found"]
    assert account(found, "shown in every")["found"] == 2 * acknowledged
    assert account(found, "as the overview")["found"] > 200
    assert (
        account(found, "counted in sessions, by the API")["found"]
        == account(found, "counted in the live")["found"]
        > 500
    )
    assert found["figures"]["notify_p99"] >= found["figures"]["alert_p99"] > 0
    assert any(sample.get("commit_mean_s") for sample in found["samples"])
    assert any(sample.get("rss_bytes") for sample in found["samples"])
    assert "HELD" in (tmp_path / "a.html").read_text()
    assert "at work" in done.stderr


async def test_a_daemon_that_forgets_an_event_is_found_out(command, shared_daemon, shared_database, tmp_path):
    """It answered 202 to one failed run and kept nothing of it: each account names that event."""
    async with standing_before(Forgetful(shared_daemon.port, after=40)) as proxy:
        load = ("--students", 20, "--rate", 40, "--duration", "4s", "--dsn", shared_database.dsn, *NO_PROMISES)
        done = await trio.to_thread.run_sync(
            lambda: command(
                "classroom-200", "--target", proxy.url, "--transport", "lean", *load, "--json", tmp_path / "a.json"
            )
        )
    assert proxy.lost is not None
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert account(found, "stored, by SQL")["event_ids"] == [proxy.lost]
    assert account(found, "alerts at every")["event_ids"] == [proxy.lost]
    assert proxy.lost in account(found, "counted in sessions, by the API")["candidates"]
    assert proxy.lost in account(found, "counted in sessions, by SQL")["candidates"]
    assert proxy.lost in account(found, "counted in the live")["candidates"]
    assert account(found, "counted in sessions, by the API")["note"] == "sessions that are not as sent: 1"
    assert account(found, "counted in the live")["note"] == "students that are not as sent: 1"
    assert proxy.lost in done.stdout
    assert "BROKEN" in done.stdout


async def test_a_view_that_is_not_what_the_daemon_knows_is_found_out(command, shared_daemon, tmp_path):
    """A frame of the stream tells another name of one student."""
    async with standing_before(Forging(shared_daemon.port, b'"Taro Yamada 7"', b'"Taro Yamada 8"')) as proxy:
        load = ("--students", 20, "--rate", 40, "--duration", "4s", *NO_PROMISES, "--json", tmp_path / "a.json")
        done = await trio.to_thread.run_sync(lambda: command("classroom-200", "--target", proxy.url, *load))
    assert proxy.forged > 0
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    wrong = account(found, "as the overview")
    subscribers = found["subscribers"]["connected"]
    assert (wrong["faults"], wrong["astray"], wrong["note"]) == (subscribers, 1, "differ in user_name")
    (candidate,) = wrong["candidates"]
    assert re.search(r"-0*7-\d+$", candidate)
    assert candidate in done.stdout
    assert [check["name"] for check in found["checks"] if check["faults"]] == [wrong["name"]]


async def test_subscribers_that_are_cut_off_instead_of_alerted_are_no_success(command, shared_daemon, tmp_path):
    """The daemon goes on, so nothing excuses it: nobody can tell whether an alert would have come."""
    async with standing_before(Cutting(shared_daemon.port)) as proxy:
        load = ("--students", 6, "--rate", 20, "--duration", "4s", *NO_PROMISES, "--json", tmp_path / "a.json")
        done = await trio.to_thread.run_sync(lambda: command("classroom-200", "--target", proxy.url, *load))
    assert proxy.cuts > 0
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    kept = account(found, "kept, every subscriber")
    assert 0 < kept["faults"] <= proxy.cuts
    assert "times closed with 1006" in kept["note"]
    assert [check["name"] for check in found["checks"] if check["faults"]] == [kept["name"]]


async def test_what_is_in_influxdb_is_not_missed_in_postgresql(command, influx_database, database, data_dir, tmp_path):
    settings = {
        "INFLUXDB__URL": influx_database.server.url,
        "INFLUXDB__API": "v1",
        "INFLUXDB__BUCKET": influx_database.name,
    }
    load = ("--students", 20, "--rate", 40, "--duration", "3s", "--dsn", database.dsn, *NO_PROMISES)
    async with Daemon(data_dir, dsn=database.dsn, settings=settings) as daemon:
        done = await trio.to_thread.run_sync(
            lambda: command("classroom-200", "--target", daemon.url, *load, "--json", tmp_path / "a.json")
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    stored, runs = (
        account(found, "stored, but for cell events"),
        account(found, "counted in sessions, by the API")["found"],
    )
    assert stored["found"] == found["events"]["acknowledged"] - runs > 0
    assert "nothing that the API shows is missing" in done.stdout


def test_a_promise_that_breaks_is_exit_1(command, at):
    load = ("--students", 5, "--rate", 10, "--duration", "2s", "--transport", "httpx")
    done = command("classroom-200", *at, *load, "--slo", "p50<1us, errors<0.1%")
    assert done.returncode == 1
    assert "MISS p50<1us" in done.stdout
    assert "ok   errors<0.1%" in done.stdout


def test_several_processes_share_the_load(command, at, tmp_path):
    load = ("--students", 40, "--classes", 4, "--instructors", 4, "--rate", 80, "--duration", "4s", "--workers", 2)
    done = command("campus-5000", *at, *NO_PROMISES, *load, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["generator"]["processes"] == 2
    assert found["events"]["acknowledged"] > 150
    assert found["histograms"]["post"]["total"] == found["events"]["sent"]
    assert found["subscribers"]["connected"] == 4


def test_a_recording_is_replayed(command, at, tmp_path):
    file = RECORDINGS / "cell_monitor.jsonl"
    load = ("--students", 3, "--speed", 40, "--json", tmp_path / "a.json")
    done = command("replay", file, *at, *NO_PROMISES, *load)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["events"]["acknowledged"] == 3 * 65
    assert account(found, "counted in sessions, by the API")["found"] == 3 * 52


async def test_ctrl_c_gives_what_there_is(working, at, tmp_path):
    load = ("--students", 20, "--rate", 40, "--shape", "hold:1h", "--workers", 2, "--json", tmp_path / "a.json")
    process = await working("classroom-200", *at, *load, *NO_PROMISES)
    process.send_signal(signal.SIGINT)
    out, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=60))
    found = json.loads((tmp_path / "a.json").read_text())
    assert process.returncode == 1, out
    assert found["interrupted"]
    assert "INTERRUPTED" in out
    assert found["events"]["acknowledged"] > 0
    assert {check["faults"] for check in found["checks"]} == {0}, found["checks"]


@asynccontextmanager
async def storing_nothing(dsn):
    """Nobody writes to the tables of events within the block; who reads them is not in the way."""
    async with trio_asyncio.open_loop():
        connection = await trio_asyncio.aio_as_trio(asyncpg.connect)(dsn)
        execute, close = trio_asyncio.aio_as_trio(connection.execute), trio_asyncio.aio_as_trio(connection.close)
        await execute("BEGIN; LOCK TABLE cell_executions, activity_events IN SHARE ROW EXCLUSIVE MODE")
        try:
            yield
        finally:
            await close()


async def said(tmp_path, text):
    async def there():
        return text in (tmp_path / "err").read_text()

    await eventually(there, within=60)


async def test_sigterm_after_the_load_keeps_what_was_measured(working, at, tmp_path):
    load = ("--students", 20, "--rate", 40, "--shape", "hold:5s", "--json", tmp_path / "a.json")
    process = await working("classroom-200", *at, *load, *NO_PROMISES)
    await said(tmp_path, "waiting until everything")  # it waits for news for longer than a signal takes
    process.send_signal(signal.SIGTERM)
    out, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=60))
    errors = (tmp_path / "err").read_text()
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["interrupted"]
    assert found["events"]["acknowledged"] > 100
    assert {check["faults"] for check in found["checks"]} == {0}, out


async def test_sigterm_before_all_is_stored_blames_no_event(working, at, shared_database, tmp_path):
    load = ("--students", 20, "--rate", 40, "--shape", "hold:5s", "--json", tmp_path / "a.json")
    process = await working("classroom-200", *at, *load, *NO_PROMISES)
    async with storing_nothing(shared_database.dsn):
        await said(tmp_path, "waiting until everything")
        process.send_signal(signal.SIGTERM)
        out, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=60))
    assert process.returncode == 1, out
    found = json.loads((tmp_path / "a.json").read_text())
    assert {check["faults"] for check in found["checks"]} == {0}, out
    stored = account(found, "stored, by SQL")
    assert stored["skipped"]
    assert 0 <= stored["found"] < stored["expected"] == found["events"]["acknowledged"]
    assert "not yet there, and not waited for" in out


async def test_the_second_ctrl_c_ends_it_without_a_result(working, at, tmp_path):
    load = ("--students", 20, "--rate", 40, "--shape", "hold:1h", "--json", tmp_path / "a.json")
    process = await working("classroom-200", *at, *load, *NO_PROMISES)
    process.send_signal(signal.SIGINT)
    await said(tmp_path, "Once more ends it")
    process.send_signal(signal.SIGINT)
    await trio.to_thread.run_sync(lambda: process.communicate(timeout=60))
    errors = (tmp_path / "err").read_text()
    assert process.returncode == 1
    assert "ended by a signal" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("unread", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_costs_no_result(at, tmp_path, unread):
    reading, writing = os.pipe()
    os.close(reading)
    load = ("--students", "3", "--rate", "6", "--duration", "1s", "--json", str(tmp_path / "a.json"))
    done = subprocess.run(
        [sys.executable, "-m", "engine", "loadtest", "classroom-200", *at, *load, *NO_PROMISES],
        cwd=REPOSITORY,
        env=environment(),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {unread: writing},
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in (done.stderr or "")
    assert json.loads((tmp_path / "a.json").read_text())["ok"]


async def test_no_worker_outlives_a_run_that_is_killed(working, at):
    process = await working("classroom-200", *at, "--students", 4, "--shape", "hold:1h", "--workers", 2)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()

    async def gone():
        return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

    await eventually(gone, within=20)


@pytest.mark.slow
def test_faults_lose_nothing_and_are_marked(command, tmp_path):
    """A daemon and a PostgreSQL of the harness' own; both go away in the run, and come back."""
    load = ("--students", 20, "--rate", 40, "--duration", "10s", *NO_PROMISES)
    load += ("--fault", "kill-daemon@3s+0.5s", "--fault", "postgres-stop@5s+2s")
    files = ("--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    done = command("classroom-200", "--local", *load, *files, within=180)
    found = json.loads((tmp_path / "a.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert [fault[0] for fault in found["faults"]] == ["kill-daemon@3s+0.5s", "postgres-stop@5s+2s"]
    assert found["events"]["retries"] > 0
    assert found["subscribers"]["cuts"] > 0
    assert account(found, "stored, by SQL")["found"] == found["events"]["acknowledged"] > 200
    assert (tmp_path / "a.html").read_text().count('class="fault"') >= 2


@pytest.mark.slow
def test_a_small_search_for_capacity(command, at):
    """Up to 2 students nothing breaks; one promise that cannot be kept breaks at once, and is named."""
    small = ("--step", "2s", "--most", 2, "--students", 1)
    done = command("capacity", *at, *small, "--slo", "errors<1%")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "capacity: at least 2 students" in done.stdout
    assert "headroom at least x 2.0" in done.stdout
    done = command("capacity", *at, *small, "--slo", "errors<1%, p50<1us")
    assert done.returncode == 1
    assert "broke first: p50<1us" in done.stdout
    assert "daemon's CPU" in done.stdout
    assert "not carried" in done.stdout
