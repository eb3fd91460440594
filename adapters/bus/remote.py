"""`engine.ports.Bus` and `Cache` on one Redis."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
import trio

from adapters.asyncio_bridge import RedisLink
from engine.backoff import Backoff
from engine.errors import StoreMisconfiguredError, StoreUnavailableError

from .backlog import Backlog, Batch, Message, Write

# How long a reader waits for a cached value, in seconds: making it anew costs about as much.
_PATIENCE_S: Final = 0.25
# Seconds before the next try of a server that is away, doubling up to the last.
_FIRST_S: Final = 0.1
_LAST_S: Final = 2.0
# How long the shutdown waits for what still waits to go out, in seconds.
_FAREWELL_S: Final = 0.3

# Many in one command: a PUBLISH or SET each costs several times as much here, most of it for the answer
# (docs/performance.md). The messages are one argument, because each argument costs too: msgpack, of texts, as the
# unpacker within Redis knows no bytes.
_PUBLISH: Final = (
    "local told = cmsgpack.unpack(ARGV[1]) for i = 1, #told do redis.call('publish', told[i][1], told[i][2]) end "
    "return #told"
)
_PUT_VALUES: Final = (
    "for i = 1, #KEYS do redis.call('set', KEYS[i], ARGV[2 * i - 1], 'px', ARGV[2 * i]) end return #KEYS"
)
# Fields and their end in one step, so that nothing is left for ever when the connection is cut between the two.
_PUT_FIELDS: Final = (
    "redis.call('del', KEYS[1]) redis.call('hset', KEYS[1], unpack(ARGV, 2)) "
    "return redis.call('pexpire', KEYS[1], ARGV[1])"
)

_pack: Final = msgspec.msgpack.Encoder().encode

log = structlog.get_logger("redis")


class RemoteBus:
    """Everything goes into a bounded backlog at once, and from there in pipelines; nobody waits for the server."""

    name = "redis"

    def __init__(self, link: RedisLink, backlog: Backlog | None = None) -> None:
        self._link = link
        self._backlog = Backlog() if backlog is None else backlog
        self._fault: str | None = "not reached yet"
        self._refused = False  # it answers, and would not take what it was sent
        self._told = False  # the fault is in the log

    # --- engine.ports.Bus

    def publish(self, messages: list[Message]) -> None:
        """See `engine.ports.Bus`."""
        self._backlog.publish(messages)

    # --- engine.ports.Cache

    async def get(self, key: str) -> bytes | None:
        """See `engine.ports.Cache`."""
        write = self._backlog.waiting(key)
        if write is not None:
            return write.value if write.expires_at > trio.current_time() else None
        if self._fault is not None and not self._refused:
            return None
        with trio.move_on_after(_PATIENCE_S):
            try:
                value = await self._link.call("get", "GET", key)
            except StoreUnavailableError:
                return None
            return value if isinstance(value, bytes) else None
        return None

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `engine.ports.Cache`."""
        self._backlog.write(key, Write(trio.current_time() + ttl_s, value))

    def put_fields(self, key: str, fields: Mapping[str, str], ttl_s: float) -> None:
        """See `engine.ports.Cache`."""
        self._backlog.write(key, Write(trio.current_time() + ttl_s, fields=fields))

    def discard(self, key: str) -> None:
        """See `engine.ports.Cache`."""
        self._backlog.write(key, Write(float("inf")))

    # --- for health and metrics

    @property
    def health(self) -> dict[str, Any]:
        """For `/api/v1/health`."""
        facts: dict[str, Any] = {
            "status": "healthy" if self._fault is None else "unhealthy",
            "dropped": self._backlog.dropped,
        }
        return facts if self._fault is None else facts | {"error": self._fault}

    @property
    def dropped(self) -> int:
        """Messages and writes that never went out, since the start."""
        return self._backlog.dropped

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._link.connections

    async def ping(self) -> None:
        """Prove that it answers. Raises StoreUnavailableError."""
        await self._link.call("ping", "PING")

    # --- the one that sends

    async def run(self) -> None:
        """Send what waits, for ever; while the server is away, try to reach it with growing pauses."""
        backoff = Backoff(_FIRST_S, _LAST_S)
        while True:
            try:
                if self._fault is not None:
                    await self.ping()  # costs nothing of the backlog when it fails
                    self._answers()
                    if not self._refused:
                        backoff.reset()
                await self._backlog.wait_filled()
                await self._send()
            except StoreUnavailableError as error:
                self._failed(await self._link.explained(error))
                await trio.sleep(backoff.pause_s())
            else:
                backoff.reset()

    async def close(self) -> None:
        """Send what waits, if that is quick, and let go of the connections."""
        with trio.move_on_after(_FAREWELL_S, shield=True):
            try:
                while self._backlog and self._fault is None:
                    await self._send()
            except StoreUnavailableError as error:
                self._failed(error)
        await self._link.close()

    async def _send(self) -> None:
        batch = self._backlog.take()
        try:
            if told := commands(batch):
                await self._link.pipeline("pipeline", told)
        except BaseException as error:
            self._backlog.failed(batch)
            self._refused = isinstance(error, StoreMisconfiguredError)
            raise
        self._refused = False
        self._answers()

    def _answers(self) -> None:
        """It does; but one that refused what it was sent must first take some."""
        if self._refused:
            return
        if self._told:
            log.info("redis is there", redis=self._link.where, dropped=self._backlog.dropped)
        self._fault, self._told = None, False

    def _failed(self, error: StoreUnavailableError) -> None:
        self._fault = str(error)
        if not self._told:
            self._told = True
            log.warning("redis is away; what it is told meanwhile may be lost", reason=self._fault)


def commands(batch: Batch) -> list[list[str | bytes | int]]:
    """What Redis is told."""
    told: list[list[str | bytes | int]] = []
    if batch.messages:
        texts = [(channel, text.decode()) for channel, text in batch.messages]
        told.append(["EVAL", _PUBLISH, 0, _pack(texts)])
    now = trio.current_time()
    keys: list[str | bytes | int] = []
    values: list[str | bytes | int] = []
    for key, (expires_at, value, fields) in batch.writes.items():
        if value is not None:
            keys.append(key)
            values += (value, _milliseconds(expires_at - now))
        elif fields is not None:
            pairs = [part for field in fields.items() for part in field]
            told.append(["EVAL", _PUT_FIELDS, 1, key, _milliseconds(expires_at - now), *pairs])
        else:
            told.append(["DEL", key])
    if keys:
        told.append(["EVAL", _PUT_VALUES, len(keys), *keys, *values])
    return told


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
