"""What real JupyterLab clients sent, played against the daemon; the counts are those of ``shared/clients/README.md``."""

from functools import partial

import pytest

from tests.e2e import stored
from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.oracle import Counters, Oracle
from tests.e2e.player import Player
from tests.e2e.recording import Request, load
from tests.e2e.subscriber import Subscriber

USER = "student042@example.com"
CLASS = "class:default"


async def follow_help(subscriber: Subscriber, transitions: list[str], request: Request) -> None:
    """Frames are conflated: wait until each change of the wish for help was seen, or a quick player outruns them."""
    for event in request.events:
        if event["eventType"] not in {"help", "help_stop"}:
            continue
        wanted = event["eventType"] == "help"
        seen_before = transitions[-1:] == ["help"]
        await subscriber.until(
            lambda wanted=wanted: ("help_since" in subscriber.user(USER)) == wanted, what=f"help {wanted}"
        )
        if wanted != seen_before:
            transitions.append("help" if wanted else "no help")


async def test_everything_a_client_sent_is_stored_and_shown(database, data_dir, nursery):
    recording = load("cell_monitor")
    oracle = Oracle(recording.events)
    notebooks = sorted({event["notebook_path"] for event in oracle.events})
    assert len(oracle.events) == 65
    assert oracle.users() == {USER: Counters(cell_executions=52, error_count=24)}
    assert sum(oracle.sessions().values()) == 4
    assert oracle.help_episodes() == 3
    assert [(len(oracle.done(path)), oracle.cells(path)) for path in notebooks] == [(8, 12)] * 3

    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        subscriber = await Subscriber.connect(nursery, daemon.port, CLASS)
        assert subscriber.state()["users"] == {}
        help_seen: list[str] = []
        player = Player(daemon.port, after=partial(follow_help, subscriber, help_seen))
        await player.play(recording)

        await subscriber.until(
            lambda: subscriber.user(USER).get("cell_executions") == 52 and "help_since" not in subscriber.user(USER),
            what="the last event on the stream",
        )
        assert subscriber.faults == []
        assert help_seen == ["help", "no help"] * 3
        shown = subscriber.user(USER)
        assert shown["error_count"] == 24
        assert shown["progress"] == pytest.approx(8 / 12, abs=1e-4)
        assert shown["consecutive_errors"] == oracle.consecutive_errors() == 0
        assert shown["status"] == "active"
        assert shown["user_name"] == "山田 太郎"
        assert shown["team"] == "チームB"
        assert shown["notebook_path"] == "nb_02.ipynb"
        summary = subscriber.state()["summary"]
        assert summary["total_students"] == summary["active"] == 1
        assert (summary["cell_executions"], summary["error_count"]) == (52, 24)
        assert summary["avg_progress"] == pytest.approx(8 / 12, abs=1e-4)

        overview = await api.overview()
        assert overview["class_id"] == "default"
        assert overview["state"] == subscriber.state()
        assert (overview["epoch"], overview["seq"]) == (subscriber.topics[CLASS].epoch, subscriber.topics[CLASS].seq)

        await api.wait_flushed()
        listed = await api.sessions(USER)
        assert len(listed) == 4
        assert sum(session["cell_executions"] for session in listed) == 52
        assert sum(session["error_count"] for session in listed) == 24
        assert [session["started_at"] for session in listed] == sorted(
            (session["started_at"] for session in listed), reverse=True
        )
        await check_stored(database, oracle)
    await check_stored(database, oracle)  # nor does a stop add anything


@pytest.mark.parametrize("name", ["cell_monitor_503_twice", "cell_monitor_reset"])
@pytest.mark.parametrize("answer_first", [True, False], ids=["answer-lost", "request-lost"])
async def test_what_a_client_sends_again_counts_once(name, answer_first, database, data_dir, nursery):
    recording = load(name)
    oracle = Oracle(recording.events)
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        subscriber = await Subscriber.connect(nursery, daemon.port, CLASS)
        played = await Player(daemon.port, answer_first=answer_first).play(recording)

        bodies = [each.answer.json() for each in played if each.answer and each.request.method == "POST"]
        accepted = sum(body["accepted"] for body in bodies)
        if name == "cell_monitor_503_twice":
            assert accepted == len(oracle.events)
        elif answer_first:
            assert accepted == 0  # each was stored by the delivery whose answer was lost
        expected = oracle.users()[USER]
        await subscriber.until(
            lambda: subscriber.user(USER).get("cell_executions") == expected.cell_executions, what="the executions"
        )
        assert subscriber.user(USER)["error_count"] == expected.error_count
        assert subscriber.faults == []
        await api.wait_flushed()
        assert (await api.user(USER))["cell_executions"] == expected.cell_executions
        await check_stored(database, oracle)


async def check_stored(database, oracle: Oracle) -> None:
    """PostgreSQL holds exactly the oracle's events, each once, and counts them as the oracle does."""
    rows = await stored.event_ids(database)
    assert set(rows) == {event["event_id"] for event in oracle.events}
    assert set(rows.values()) == {1}
    executions = oracle.of_type("cell_executed")
    assert await database.value("select count(*) from cell_executions") == len(executions)
    assert await database.value("select count(*) from cell_executions where has_error") == sum(
        event["has_error"] for event in executions
    )
    assert await database.value("select count(*) from activity_events") == len(oracle.events) - len(executions)
    assert await stored.sessions(database) == oracle.sessions()
    assert await database.value(stored.HELP_EPISODES) == oracle.help_episodes()
    assert {(row["notebook_path"], row["done"], row["cells"]) for row in await database.query(stored.DONE)} == {
        (path, len(oracle.done(path)), oracle.cells(path)) for path in {path for path, _ in oracle.last_runs()}
    }
