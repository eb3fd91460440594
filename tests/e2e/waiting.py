"""Waiting for a condition, with a deadline. Tests never sleep for a time they hope is long enough."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

POLL_EVERY_S = 0.02


async def eventually(
    condition: Callable[[], Awaitable[T]], *, within: float = 10, what: str = "", every: float = POLL_EVERY_S
) -> T:
    """Call ``condition`` until its value is true, and return that; fail after ``within`` seconds with the last value."""
    deadline = trio.current_time() + within
    while True:
        value = await condition()
        if value:
            return value
        if trio.current_time() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition.__qualname__} (last: {value!r})")
        await trio.sleep(every)
