"""The asyncio loop that the libraries run in, inside trio's."""

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
import trio_asyncio

log = structlog.get_logger("asyncio")


@asynccontextmanager
async def open_loop() -> AsyncIterator[None]:
    """Open it around everything that uses this package.

    A library's callback that raises, or a future of its own whose error nobody fetched, is logged. trio-asyncio would
    end the whole daemon for it; but each call to a store has its own errors and deadlines, so nobody else needs it.
    """
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_note)
        yield


def _note(_loop: object, context: dict[str, Any]) -> None:
    """Where and of which kind the error is, and no more: texts may hold what a student wrote."""
    error = context.get("exception")
    if error is None:
        log.warning("a library complains", message=context.get("message"))
        return
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    log.warning("a library's error reached nobody", error=type(error).__name__, where=where)
