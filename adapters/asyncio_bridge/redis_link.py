"""redis-py under trio-asyncio: single commands and pipelines, on a pool of connections.

Errors of redis-py stop here: StoreMisconfiguredError says that the server answers, and not as it must (password,
rights, memory, not a Redis), and StoreUnavailableError that it is away.
"""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import trio
import trio_asyncio
from redis import asyncio as redis_asyncio
from redis import exceptions
from redis.asyncio.connection import BlockingConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from adapters.kind import REDIS, TLS, address_of, kind_of
from engine.errors import StoreMisconfiguredError, StoreUnavailableError
from engine.measures import Histograms

from .telling import first_line, shown

# Seconds until a server that does not answer counts as away: to a connect, and to a command or pipeline.
_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 2.0
# Seconds that a command waits for a free connection of the pool.
_POOL_S: Final = 1.0
# A closing connection is not waited for longer than this, in seconds.
_CLOSE_S: Final = 0.3
# Redis' port where a URL names none.
_PORT: Final = 6379
# The metrics' name for where these connections lead.
_DATABASE: Final = "redis"

# A command and its arguments.
Command: TypeAlias = Sequence[str | bytes | int]


class RedisLink:
    """A pool of at most ``max_connections``, made as they are needed. A command that fails is not repeated."""

    def __init__(self, url: str, *, max_connections: int, times: Histograms | None = None) -> None:
        """``url``: redis://, rediss:// (TLS) or unix://. ``times`` gets how long calls take, by their kind."""
        self._url = url
        self._max_connections = max_connections
        self._times = Histograms() if times is None else times
        self._client: redis_asyncio.Redis | None = None

    @property
    def where(self) -> str:
        """The address, without a secret."""
        return shown(self._url)

    @property
    def connections(self) -> int:
        """How many are open."""
        if self._client is None:
            return 0
        pool = self._client.connection_pool
        # redis-py has no public count; a pooled connection that was lost is not open.
        pooled = [*pool._available_connections, *pool._in_use_connections]  # noqa: SLF001
        return sum(each.is_connected for each in pooled)

    async def call(self, kind: str, *command: str | bytes | int) -> Any:
        """Run one command and return its answer, texts as bytes; ``kind`` is its type in the metrics."""
        return (await self.pipeline(kind, [command]))[0]

    async def pipeline(self, kind: str, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip, not as a transaction. Raises the first error of any, after all have run."""
        with self._timed(kind), self._errors():
            return list(await trio_asyncio.aio_as_trio(self._execute)(commands))

    async def explained(self, error: StoreUnavailableError) -> StoreUnavailableError:
        """A better error, when it is because a server of another kind listens there."""
        if isinstance(error, StoreMisconfiguredError):
            return error
        address = address_of(self._url, _PORT)
        kind = None if address is None else await kind_of(address)
        if kind in (None, REDIS) or (kind == TLS and urlsplit(self._url).scheme == "rediss"):
            return error
        return StoreMisconfiguredError(f"Redis at {self.where}: {kind} answers there: correct redis.url")

    async def close(self) -> None:
        """Let go of every connection; returns soon even when the server is gone."""
        client, self._client = self._client, None
        if client is not None:
            told = suppress(StoreUnavailableError)
            with trio.move_on_after(_CLOSE_S, shield=True), told, self._errors():
                await trio_asyncio.aio_as_trio(client.connection_pool.disconnect)()

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        """On asyncio's side, as all of redis-py must be, its making included."""
        if self._client is None:
            self._client = self._new_client()
        client = self._client
        if len(commands) == 1:
            return [await client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute()

    def _new_client(self) -> "redis_asyncio.Redis":
        """What the URL says, and over it what this class relies on: bytes, its deadlines, no hidden retries."""
        options: dict[str, Any] = dict(parse_url(self._url))
        options |= {
            "max_connections": self._max_connections,
            "timeout": _POOL_S,
            "socket_connect_timeout": _CONNECT_S,
            "socket_timeout": _ANSWER_S,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "decode_responses": False,
        }
        client = redis_asyncio.Redis(connection_pool=BlockingConnectionPool(**options))
        client.response_callbacks.clear()  # they turn answers into objects of redis-py
        return client

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        began = trio.current_time()
        try:
            yield
        finally:
            self._times.of(_DATABASE, kind).observe(trio.current_time() - began)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        here = f"Redis at {self.where}"
        try:
            yield
        except exceptions.InvalidResponse:
            raise StoreMisconfiguredError(f"{here}: no Redis answers there: correct redis.url") from None
        except (exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError) as error:
            raise StoreMisconfiguredError(
                f"{here} refuses: {first_line(error)}: correct the password in redis.url"
            ) from None
        except exceptions.ResponseError as error:
            raise StoreMisconfiguredError(f"{here} refuses: {first_line(error)}{_advice(error)}") from None
        except (ssl.SSLError, exceptions.RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailableError(f"{here} is away: {first_line(error)}") from None
        except (ValueError, TypeError) as error:  # a port or a parameter of the URL
            raise StoreMisconfiguredError(f"redis.url cannot be used: {type(error).__name__}") from None


def _advice(error: BaseException) -> str:
    """What to do about a refusal, where Redis itself does not say it."""
    if isinstance(error, exceptions.NoPermissionError):
        return ": let the user in redis.url do it (docs/redis.md)"
    if isinstance(error, exceptions.ReadOnlyError):
        return " Let redis.url lead to its primary"
    if "DB index" in str(error):
        return ": correct the number at the end of redis.url"
    if isinstance(error, exceptions.OutOfMemoryError):
        return " Raise it, or set maxmemory-policy to allkeys-lru"
    return ""
