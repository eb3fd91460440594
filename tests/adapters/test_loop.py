"""The asyncio loop of the libraries: their stray errors end nothing of ours."""

import asyncio

import trio
import trio.testing
import trio_asyncio

from adapters.asyncio_bridge import open_loop


async def test_a_callback_that_raises_ends_nothing(capsys):
    async with open_loop():
        loop = trio_asyncio.current_loop.get()
        loop.call_soon(lambda: 1 / 0)
        future = loop.create_future()
        future.set_exception(ConnectionResetError("secret"))
        del future  # nobody fetched its error
        await trio.testing.wait_all_tasks_blocked()
        assert await trio_asyncio.aio_as_trio(asyncio.sleep)(0, "alive") == "alive"
    told = capsys.readouterr()
    assert "ZeroDivisionError" in told.out + told.err
    assert "ConnectionResetError" in told.out + told.err
    assert "secret" not in told.out + told.err
