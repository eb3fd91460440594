"""Requests that a real client sent, as files in ``tests/recordings``."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

FOLDER = Path(__file__).parents[1] / "recordings"
_TIME = re.compile(r'(?<="eventTime":")[^"]*(?=")')


@attrs.frozen
class Request:
    t_ms: int
    conn: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: str | None
    answered: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return json.loads(self.body) if self.body else []


@attrs.frozen
class Recording:
    requests: tuple[Request, ...]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event as often as it was sent, in the order sent."""
        return [event for request in self.requests for event in request.events]


def load(name: str) -> Recording:
    """A recording whose last event happens now.

    The daemon takes an event of more than 30 days ago as one with a wrong clock, so a recording would go stale: all
    its times are moved by the same amount, and nothing else of a body is touched.
    """
    requests = []
    for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        headers = tuple((key, value) for key, value in found.pop("headers"))
        requests.append(Request(**{"body": None, **found}, headers=headers))
    latest = max(parsed(time) for request in requests for time in _TIME.findall(request.body or ""))
    shift = datetime.now(UTC) - latest

    def moved(match: re.Match[str]) -> str:
        return written(parsed(match[0]) + shift)

    return Recording(tuple(attrs.evolve(each, body=each.body and _TIME.sub(moved, each.body)) for each in requests))


def parsed(time: str) -> datetime:
    return datetime.fromisoformat(time)


def written(time: datetime) -> str:
    """RFC 3339 with milliseconds, as JavaScript writes it."""
    time = time.astimezone(UTC)
    time -= timedelta(microseconds=time.microsecond % 1000)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
