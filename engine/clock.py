"""Wall-clock times: milliseconds since the epoch inside, RFC 3339 outside."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

# Wall-clock time in ms; injected, so that tests choose it. Deadlines use trio's clock instead.
WallClock: TypeAlias = Callable[[], int]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# RFC 3339 section 5.6. `datetime.fromisoformat` alone also takes week dates, basic forms and times without a zone.
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)


def wall_clock() -> int:
    """The time now, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def parse_rfc3339(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time with zone; raises ValueError for anything else."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(text)
    leap = match[1] == "60"  # a leap second is legal in RFC 3339 and unknown to datetime: the second after :59
    if leap:
        text = f"{text[:17]}59{text[19:]}"
    since = datetime.fromisoformat(text.upper()) - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000 + (1000 if leap else 0)


def to_datetime(ms: int) -> datetime:
    """The aware UTC datetime of ``ms`` since the epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def from_datetime(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def rfc3339(ms: int) -> str:
    """``2026-11-23T14:53:51.830Z``."""
    return to_datetime(ms).isoformat(timespec="milliseconds")[:-6] + "Z"
