"""Wall-clock times: milliseconds since the epoch inside, RFC 3339 outside."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final, TypeAlias

import msgspec

# Wall-clock time in ms; injected, so that tests choose it. Deadlines use trio's clock instead.
WallClock: TypeAlias = Callable[[], int]

_Zoned = Annotated[datetime, msgspec.Meta(tz=True)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A leap second is legal in RFC 3339 and unknown to datetime: it is taken as the second after :59.
_LEAP: Final = re.compile(r"(.{16}):60(.*)")
_FINER: Final = re.compile(r"(\.[0-9]{6})[0-9]+")  # than microseconds
# Seconds that are kept written out: some minutes. Times come close together, and a date costs most of a time.
_SECONDS_KEPT: Final = 300


def wall_clock() -> int:
    """The time now, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def parse_rfc3339(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time with zone; raises ValueError for anything else."""
    leap = _LEAP.fullmatch(text)
    moment = _moment(f"{leap[1]}:59{leap[2]}" if leap else text)
    return from_datetime(moment) + (1000 if leap else 0)


def _moment(text: str) -> datetime:
    try:
        return msgspec.convert(text, _Zoned)
    except msgspec.ValidationError:
        # Rounding may take the last moment of the last year, .NET's "for ever", out of the calendar.
        cut = _FINER.sub(r"\1", text)
        if cut == text:
            raise ValueError(text) from None
        return _moment(cut)


def to_datetime(ms: int) -> datetime:
    """The aware UTC datetime of ``ms`` since the epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def from_datetime(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def rfc3339(ms: int) -> str:
    """``2026-11-23T14:53:51.830Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_second(second)}.{rest:03}Z"


@lru_cache(_SECONDS_KEPT)
def _second(second: int) -> str:
    return to_datetime(second * 1000).isoformat()[:-6]
