"""How soon subscribers hear of an event, and that one who never reads delays nobody.

``CLASSPULSE_STREAM_S`` says how many seconds each measurement takes (the full form is 30); the figures are printed.
"""

import os

import pytest
import trio

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.lesson import Lesson, Listener, percentile
from tests.e2e.samples import run
from tests.e2e.test_stream import deaf_subscriber

SECONDS = float(os.environ.get("CLASSPULSE_STREAM_S", "2"))
INTERVAL_MS = 100  # the default
STUDENTS, PERIOD_S = 200, 0.5
# A machine that runs other tests beside: what must hold on a quiet one is in the contract, and in the figures.
GENEROUS_MS = 1000


async def heard_everything(listeners: list[Listener]) -> None:
    with trio.fail_after(20):
        while not all(listener.complete() for listener in listeners):
            await trio.sleep(0.05)


async def flood(daemon: Daemon, count: int) -> None:
    """Some 400 kB of changes for whoever follows this class: fifteen of them fill any socket's buffers."""
    api, name = Api(daemon), ("漢" if count % 2 else "字") * 200
    await api.accept([run(f"u{n}", class_id="flood", user_name=name) for n in range(600)])
    await api.overview("flood")


def milliseconds(values: list[float], percent: int) -> float:
    return round(percentile(values, percent) * 1000, 1)


@pytest.mark.slow
async def test_a_class_of_200_is_followed_live(database, data_dir, nursery):
    """Two events a second from each student, twenty subscribers. From before the request to the frame's arrival."""
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        lesson = Lesson(daemon.port, STUDENTS, PERIOD_S)
        listeners = [await Listener.connect(nursery, lesson) for _ in range(20)]
        await lesson.run(SECONDS)
        await heard_everything(listeners)
        alerts = [value for listener in listeners for value in listener.alerts]
        deltas = [value for listener in listeners for value in listener.deltas]
        events = sum(map(len, lesson.sent.values()))
        print(  # noqa: T201 - the figures are what the full form is for
            f"\n{events / SECONDS:.0f} events/s to {len(listeners)} subscribers for {SECONDS:g} s, "
            f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores; in ms:\n"
            + "\n".join(
                f"{name:7} p50 {milliseconds(values, 50)}  p95 {milliseconds(values, 95)}  "
                f"p99 {milliseconds(values, 99)}  max {max(values) * 1000:.1f}"
                for name, values in (("alerts", alerts), ("deltas", deltas))
            )
        )
        assert len(alerts) == len(lesson.failed) * len(listeners)
        assert len(deltas) == events * len(listeners)
        assert milliseconds(alerts, 50) < milliseconds(deltas, 50) + GENEROUS_MS / 10
        assert milliseconds(alerts, 99) < GENEROUS_MS
        assert milliseconds(deltas, 99) < INTERVAL_MS + GENEROUS_MS


@pytest.mark.slow
async def test_one_who_never_reads_delays_none_of_fifty(database, data_dir, nursery):
    """The same lesson with and without the deaf one, in one run; deltas to the fifty, and the daemon's memory."""
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        lesson = Lesson(daemon.port, STUDENTS // 2, PERIOD_S)
        listeners = [await Listener.connect(nursery, lesson) for _ in range(50)]
        await lesson.run(1)  # warm: every student known
        await flood(daemon, 0)
        measured = {}
        for name in ("alone", "beside the deaf one", "alone again"):
            for listener in listeners:
                listener.deltas.clear()
            before = daemon.rss_bytes()
            deaf = None
            if "deaf" in name:
                deaf = await deaf_subscriber(nursery, daemon.port, "class:default", "class:flood")
                for count in range(15):
                    await flood(daemon, count)
            await lesson.run(SECONDS)
            await heard_everything(listeners)
            grown = daemon.rss_bytes() - before
            values = [value for listener in listeners for value in listener.deltas]
            measured[name] = percentile(values, 50), percentile(values, 95), grown
            if deaf is not None:
                await trio.aclose_forcefully(deaf)
        print(  # noqa: T201 - as above
            "\n"
            + "\n".join(
                f"{name:20} p50 {p50 * 1000:.1f} ms  p95 {p95 * 1000:.1f} ms  memory {grown / 1e6:+.1f} MB"
                for name, (p50, p95, grown) in measured.items()
            )
        )
        alone = max(measured["alone"][1], measured["alone again"][1])
        assert measured["beside the deaf one"][1] < 2 * alone
        assert measured["beside the deaf one"][2] < 64e6
