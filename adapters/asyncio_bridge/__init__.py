"""The one place that knows asyncio: asyncpg and redis-py under trio-asyncio, as trio-flavoured calls."""

from .loop import open_loop
from .postgres import Connection, Dsn, from_timestamptz, to_timestamptz
from .redis_link import RedisLink
from .telling import shown

__all__ = [
    "Connection",
    "Dsn",
    "RedisLink",
    "from_timestamptz",
    "open_loop",
    "shown",
    "to_timestamptz",
]
