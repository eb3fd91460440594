"""What InfluxDB's answer to a write means: done, later, not like this, or not at all.

Answers of 1.x: https://docs.influxdata.com/influxdb/v1/tools/api/#write-http-endpoint; of 2.x:
https://docs.influxdata.com/influxdb/v2/api/#operation/PostWrite. The text of an answer can hold a student's line, so
none of it is shown; what it is known by is.
"""

import json
from email.utils import parsedate_to_datetime
from typing import Any, Final

import structlog

from engine.clock import WallClock
from engine.errors import StoreDataError, StoreRefusedError, StoreUnavailableError

from .target import Target

# The longest pause that a server may ask for, in seconds; past it we look again.
_LONGEST_PAUSE_S: Final = 300.0

# The server has set itself a limit: an operator can lift it, and then the points fit.
_LIMITS: Final = ("max-values-per-tag", "max-series-per-database", "max series", "cardinality")
# What was old enough to be dropped at once; the rest of the batch is written.
_EXPIRED: Final = ("beyond retention policy", "outside retention policy")
# The points themselves are refused.
_DATA: Final = (
    "partial write",
    "unable to parse",
    "field type conflict",
    "error parsing",
    "parsing failed",
    "invalid line",
)

log = structlog.get_logger("influxdb")


class Answer:
    """One answer to a write."""

    def __init__(self, target: Target, status: int, body: str, *, retry_after: str | None, clock: WallClock) -> None:
        self._target = target
        self._status = status
        self._body = body
        self._retry_after = retry_after
        self._clock = clock

    def check(self) -> None:
        """Return when the points are stored.

        Raises StoreUnavailableError when the same may go through later, StoreRefusedError when something must be set
        right first, StoreDataError when some of the points are wrong.
        """
        status, target = self._status, self._target
        if status == 204:
            return
        if status in (400, 422):
            self._bad_request()
        elif status == 401:
            raise StoreRefusedError(f"InfluxDB: token refused by {target.url}: check influxdb.token")
        elif status == 403:
            raise StoreRefusedError(f"InfluxDB: token may not write to {target.container} at {target.url}")
        elif status == 404:
            raise StoreRefusedError(self._not_found())
        elif status == 413:
            raise StoreDataError("InfluxDB", "RequestTooLarge")
        elif status == 429 or status >= 500:
            if "retention policy not found" in self._body:  # 1.x says that with a 500
                raise StoreRefusedError(f"InfluxDB: {target.container} has no such retention policy at {target.url}")
            raise StoreUnavailableError(f"InfluxDB: {target.url} answered {status}", retry_after_s=self._pause())
        else:
            raise StoreRefusedError(
                f"InfluxDB: {target.url} answered {status}, as none does: check influxdb.url and influxdb.api"
            )

    def _bad_request(self) -> None:
        text = self._body.lower()
        if any(sign in text for sign in _EXPIRED):
            log.warning("points older than what the retention policy keeps were dropped by InfluxDB")
        elif any(sign in text for sign in _LIMITS):
            raise StoreRefusedError(
                f"InfluxDB: {self._target.url} is at its limit of series or of values of a tag: raise that, "
                "or see influxdb.tags"
            )
        elif self._status == 422 or any(sign in text for sign in _DATA):
            conflict = "field type conflict" in text
            raise StoreDataError("InfluxDB", "FieldTypeConflict" if conflict else "MalformedLine")
        else:
            raise StoreRefusedError(
                f"InfluxDB: {self._target.url} does not take writes like this (400): check influxdb.org and .bucket"
            )

    def _not_found(self) -> str:
        target = self._target
        found = _json(self._body)
        if not isinstance(found, dict) or not any(isinstance(found.get(key), str) for key in ("error", "code")):
            return f"InfluxDB: {target.url} has no {target.api} API: check influxdb.url and influxdb.api"
        if target.api == "v2" and "organization" in self._body.lower():
            return f"InfluxDB: organization {target.org!r} not found at {target.url}: check influxdb.org"
        return f"InfluxDB: {target.container} not found at {target.url}: create it, or correct influxdb.bucket"

    def _pause(self) -> float | None:
        """`Retry-After` (RFC 9110, 10.2.3) in seconds: a number, or a date."""
        text = self._retry_after
        if text is None:
            return None
        try:
            pause = (
                float(text)
                if text.strip().isdigit()
                else parsedate_to_datetime(text).timestamp() - self._clock() / 1000
            )
        except (ValueError, OverflowError):
            return None
        return min(max(pause, 0.0), _LONGEST_PAUSE_S)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
