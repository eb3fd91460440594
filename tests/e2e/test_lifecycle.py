"""Start, stop, and what a data directory and a database are to each other."""

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import PostgresServer, free_port, query
from tests.e2e.reckoning import check_counters, check_rows
from tests.e2e.samples import run
from tests.e2e.waiting import eventually

# The contract's limit for the shutdown order, from the signal to the exit.
SHUTDOWN_WITHIN_S = 10
LOCKED_OUT_WITHIN_S = 30


async def refusing(port: int) -> bool:
    """Whether nobody listens on the port any more."""
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return True
    await stream.aclose()
    return False


def checked_dsn(daemon: Daemon) -> str:
    """Where the embedded PostgreSQL listens now, as ``classpulse check`` tells an operator."""
    checked = daemon.command("check")
    assert checked.returncode == 0, checked
    return next(word for word in checked.stdout.split() if word.startswith("postgresql://"))


def postmasters(data_dir: Path) -> list[Path]:
    """The pid files of servers that run, or were killed."""
    return list(data_dir.rglob("postmaster.pid"))


async def check_locked_out(daemon: Daemon, *named: str) -> None:
    """A daemon that must not start: it says why in one line (naming one of ``named``) and exits with a fault."""
    await in_thread(daemon.launch)
    code = await in_thread(daemon.wait, LOCKED_OUT_WITHIN_S)
    assert code in {1, 2}, (code, daemon.stderr)
    assert "ready" not in daemon.stdout
    complaints = [line for line in daemon.stderr.splitlines() if line.strip() and not is_log(line)]
    assert len(complaints) == 1, daemon.stderr
    assert any(name in complaints[0] for name in named), complaints[0]


def is_log(line: str) -> bool:
    """A structured line for machines, not the one that an operator reads."""
    return line.startswith("{") and "level" in json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_stop_under_load_loses_nothing(number, database, data_dir):
    daemon = await in_thread(Daemon(data_dir, dsn=database.dsn).start)
    try:
        async with Load(daemon, seed=1, pause_s=0.01) as load:
            await load.progress(500)
            daemon.signal(number)
            assert await in_thread(daemon.wait, SHUTDOWN_WITHIN_S) == 0, daemon.stderr
        assert "Traceback" not in daemon.stderr
        await check_rows(database, load.acknowledged, possible=load.sent)
        assert load.faults == []
    finally:
        daemon.kill()


@pytest.mark.slow
async def test_a_restart_goes_on_where_the_stop_was(database, data_dir):
    daemon = Daemon(data_dir, dsn=database.dsn)
    async with Load(daemon, seed=2) as load:
        for _ in range(3):
            async with daemon:
                await load.progress(200)
        async with daemon:
            await load.finish()
            await Api(daemon).wait_flushed()
            await check_rows(database, load.acknowledged)
            await check_counters(Api(daemon), database, load.acknowledged.values())
    assert load.faults == []


@pytest.mark.slow
async def test_a_second_signal_ends_it_at_once_and_loses_nothing(data_dir):
    """The first stop hangs in its last flush, for PostgreSQL is frozen; the second signal does not wait for it."""
    with PostgresServer() as server:
        database = server.create_database()
        daemon = await in_thread(Daemon(data_dir, dsn=database.dsn).start)
        try:
            await Api(daemon).accept(run("early"))
            await Api(daemon).wait_flushed()
            server.pause()
            events = [run("late", cell_index=index) for index in range(20)]
            await Api(daemon).accept(events)
            daemon.signal(signal.SIGTERM)
            await eventually(lambda: refusing(daemon.port), what="no more connections")
            assert daemon.running
            daemon.signal(signal.SIGTERM)
            assert await in_thread(daemon.wait, 3) == 1, daemon.stderr
        finally:
            daemon.kill()
            server.resume()
        async with daemon:
            await Api(daemon).wait_flushed()
            assert await database.value("select count(*) from cell_executions where user_id = 'late'") == 20
            assert (await Api(daemon).user("late"))["cell_executions"] == 20


async def test_two_daemons_on_one_data_directory(postgres, database, data_dir):
    other = postgres.create_database()
    async with Daemon(data_dir, dsn=database.dsn) as first:
        await check_locked_out(Daemon(data_dir, dsn=other.dsn), str(data_dir), "data_dir")
        await Api(first).accept(run())
        await Api(first).wait_flushed()
        assert await database.value("select count(*) from cell_executions") == 1
    other.drop()


@pytest.mark.slow
async def test_two_daemons_on_one_database(database, make_data_dir):
    async with Daemon(make_data_dir(), dsn=database.dsn) as first:
        await check_locked_out(Daemon(make_data_dir(), dsn=database.dsn), "database", "postgres")
        await Api(first).accept(run())
        await Api(first).wait_flushed()
        assert await database.value("select count(*) from cell_executions") == 1


async def test_a_fresh_data_directory_with_an_old_database(database, make_data_dir):
    async with Daemon(make_data_dir(), dsn=database.dsn) as old:
        await Api(old).accept([run(cell_index=index) for index in range(10)])
    async with Daemon(make_data_dir(), dsn=database.dsn) as fresh:
        api = Api(fresh)
        assert (await api.user("alice"))["cell_executions"] == 10
        events = [run(cell_index=index) for index in range(5, 12)]
        await api.accept(events)
        await api.wait_flushed()
        assert (await api.user("alice"))["cell_executions"] == 17
        seqs = await database.query(
            "select seq from cell_executions where event_id in "
            f"({', '.join(repr(event['event_id']) for event in events)}) order by seq"
        )
        assert [row["seq"] for row in seqs] == list(range(1, 8))
        assert await database.value("select count(*) from cell_executions") == 17
        assert await database.value("select sum(cell_executions) from learning_sessions") == 17
        assert await database.value("select count(distinct journal_id) from sink_offsets") == 2
        assert len(await api.sessions("alice")) == 1


async def test_an_old_data_directory_with_a_fresh_database(data_dir, database):
    """What never reached a store is still in the journal, and goes to whichever database is there next."""
    async with Daemon(data_dir, dsn=f"postgresql://postgres@127.0.0.1:{free_port()}/nobody") as old:
        await Api(old).accept([run(cell_index=index) for index in range(10)])
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        await Api(daemon).wait_flushed()
        assert await database.value("select count(*) from cell_executions") == 10
        assert (await Api(daemon).user("alice"))["cell_executions"] == 10


@pytest.mark.slow
async def test_what_the_journal_no_longer_has_stops_the_start(postgres, database, data_dir):
    """Rounds of events and stops until the journal let go of the first ones; then the database is replaced."""
    fresh = postgres.create_database()
    for round_ in range(3):
        async with Daemon(data_dir, dsn=database.dsn) as daemon:
            await Api(daemon).accept([run(f"user{round_}", cell_index=index) for index in range(10)])
            await Api(daemon).wait_flushed()

    refused = Daemon(data_dir, dsn=fresh.dsn)
    await check_locked_out(refused, "gap", "--accept-gap")
    assert "--accept-gap" in refused.stderr
    assert "1" in refused.stderr  # the gap begins at the journal's first event

    async with Daemon(data_dir, dsn=fresh.dsn, arguments=["--accept-gap"]) as accepted:
        await Api(accepted).accept(run("later"))
        await Api(accepted).wait_flushed()
        assert await fresh.value("select count(*) from cell_executions where user_id = 'later'") == 1
    async with Daemon(data_dir, dsn=fresh.dsn) as again:  # the gap was accepted once and for all
        await Api(again).accept(run("later", cell_index=1))
        await Api(again).wait_flushed()
        assert await fresh.value("select count(*) from cell_executions where user_id = 'later'") == 2
    fresh.drop()


@pytest.mark.slow
async def test_the_embedded_default(data_dir):
    """A stop ends the embedded PostgreSQL too; a start finds its data; a kill leaves a server that the next start finds."""
    daemon = Daemon(data_dir)
    async with daemon:
        await Api(daemon).accept(run("alice"))
        await Api(daemon).wait_flushed()
        dsn = await in_thread(checked_dsn, daemon)
        assert await in_thread(query, dsn, "select user_id from cell_executions") == [{"user_id": "alice"}]
    assert not (data_dir / "postgres" / "postmaster.pid").exists()
    async with daemon:
        assert (await Api(daemon).user("alice"))["cell_executions"] == 1
        await Api(daemon).accept(run("alice", cell_index=1))
        await in_thread(daemon.kill)
    async with daemon:
        await Api(daemon).wait_flushed()
        assert (await Api(daemon).user("alice"))["cell_executions"] == 2
        dsn = await in_thread(checked_dsn, daemon)
        assert await in_thread(query, dsn, "select cell_executions from learning_sessions") == [{"cell_executions": 2}]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("HTTP__PORT", "abc", "http.port"), ("HTTP__PROT", "1", "http.prot"), ("AUTH__MODE", "keys", "auth.mode")],
)
async def test_a_bad_configuration_is_exit_2_and_one_line_a_fault(data_dir, key, value, named):
    daemon = Daemon(data_dir, settings={key: value})
    await in_thread(daemon.launch)
    assert await in_thread(daemon.wait) == 2
    (line,) = daemon.stderr.splitlines()
    assert line.startswith(f"config: {named}: ")
