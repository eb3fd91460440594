"""The one place that knows asyncio: asyncpg and redis-py under trio-asyncio, as trio-flavoured calls."""

from trio_asyncio import open_loop

from .postgres import Connection, Dsn, from_timestamptz, to_timestamptz, without_password
from .redis_link import RedisLink, shown

# `open_loop` is the loop that the libraries run in; open it around everything that uses this package.
__all__ = [
    "Connection",
    "Dsn",
    "RedisLink",
    "from_timestamptz",
    "open_loop",
    "shown",
    "to_timestamptz",
    "without_password",
]
