"""The event loop's watchdog, with a limit that a test can wait for."""

import threading
import time

import structlog
import trio

from adapters.watchdog import Watchdog

LIMIT_S = 0.2


async def hang_here(until):
    """Blocks the loop, as no task should."""
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        time.sleep(0.01)  # noqa: ASYNC251 - that is the point


async def test_a_loop_that_hangs_is_told_of_once_with_its_stack_and_when_it_ends(nursery):
    with structlog.testing.capture_logs() as logs:
        nursery.start_soon(Watchdog(LIMIT_S).run)
        await trio.testing.wait_all_tasks_blocked()
        for hangs in (1, 2):
            await hang_here(lambda hangs=hangs: [each["event"] for each in logs].count("event loop hangs") == hangs)
            began = time.monotonic()
            await hang_here(lambda: time.monotonic() > began + LIMIT_S)  # noqa: B023 - it is told once
            with trio.fail_after(60):
                while logs[-1]["event"] != "event loop turns again":
                    await trio.sleep(LIMIT_S / 10)
    assert [each["event"] for each in logs] == ["event loop hangs", "event loop turns again"] * 2
    assert "hang_here" in logs[0]["stack"]
    assert logs[0]["seconds"] >= LIMIT_S
    assert logs[1]["seconds"] >= 2 * LIMIT_S


async def test_its_thread_ends_with_it():
    def watchers():
        return {thread for thread in threading.enumerate() if thread.name == "watchdog"}

    before = watchers()  # of an earlier test, say: it ends when it next looks
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog().run)
        await trio.testing.wait_all_tasks_blocked()
        (watcher,) = watchers() - before
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(watcher.join, 60)
    assert not watcher.is_alive()
