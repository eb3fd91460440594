"""Answers that cost something, read through a cache; each made once, however many ask at the same time."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
import trio

from engine.errors import ClasspulseError
from engine.keys import SUMMARY_TTL_S, summary_key
from engine.ports import Cache, SeriesQueries

Value = TypeVar("Value")

_encode: Final = msgspec.json.Encoder().encode
log = structlog.get_logger("cache")


class ReadThrough(Generic[Value]):
    """Makes a value where the cache has none. Failures are told to all who asked, and not kept."""

    def __init__(self, cache: Cache, *, kind: type[Value], ttl_s: float) -> None:
        """``kind`` is what the JSON in the cache must be; what is anything else is made anew. ``ttl_s``: seconds."""
        self._cache = cache
        self._decode = msgspec.json.Decoder(kind).decode
        self._ttl_s = ttl_s
        self._flights: dict[str, _Flight[Value]] = {}

    async def get(self, key: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        """The value of a key. Do not change it: others may have the same. Raises what ``compute`` raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
        flight.waiting += 1
        try:
            async with flight.turn:  # who is cancelled in it leaves the work to the next
                if flight.error is not None:
                    raise flight.error
                if not flight.values:
                    try:
                        flight.values.append(await self._find(key, compute))
                    except ClasspulseError as error:
                        flight.error = error
                        raise
                return flight.values[0]
        finally:
            flight.waiting -= 1
            if self._flights.get(key) is flight and (flight.over or not flight.waiting):
                del self._flights[key]  # who asks from now on looks again

    async def _find(self, key: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        text = await self._cache.get(key)
        if text is not None:
            try:
                return self._decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                log.warning("cached value is broken; it is made anew", key=key)
        value = await compute()
        self._cache.put(key, _encode(value), self._ttl_s)
        return value


class CachedSeries:
    """`engine.ports.SeriesQueries` whose summaries are read through the cache."""

    def __init__(self, cache: Cache, series: SeriesQueries) -> None:
        self._read = ReadThrough(cache, kind=dict[str, Any], ttl_s=SUMMARY_TTL_S)
        self._series = series
        self.activity = series.activity
        self.errors = series.errors

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """A notebook's summary, up to `SUMMARY_TTL_S` old."""
        compute = partial(self._series.notebook_summary, class_id, path)
        return await self._read.get(summary_key(class_id, path), compute)


class _Flight(Generic[Value]):
    """Those who ask for one key at the same time: one at a time has the turn, and the first brings it for all."""

    def __init__(self) -> None:
        self.turn = trio.Lock()
        self.waiting = 0
        self.values: list[Value] = []  # at most one
        self.error: ClasspulseError | None = None

    @property
    def over(self) -> bool:
        """Whether it is known what became of it."""
        return bool(self.values) or self.error is not None
