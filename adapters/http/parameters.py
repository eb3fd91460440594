"""What clients put into a path or a query string, checked: what cannot be understood is a 400 that names it."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from typing import Final
from uuid import UUID

from starlette.exceptions import HTTPException

from engine.decode import is_class_id
from engine.series import parse_duration

MAX_LIMIT: Final = 100  # sessions a page

# Where a page of sessions ends: `started_at` (ms) and id of its last one.
Position = tuple[int, UUID]


def class_id(text: str) -> str:
    """The id of a class."""
    if not is_class_id(text):
        raise HTTPException(400, "class: must be 1 to 64 of A-Z, a-z, 0-9, ., _ and -")
    return text


def limit(text: str) -> int:
    """How many sessions a page may have."""
    if re.fullmatch(r"[0-9]{1,6}", text) is None or not 1 <= int(text) <= MAX_LIMIT:
        raise HTTPException(400, f"limit: must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def duration(name: str, text: str) -> int:
    """Milliseconds."""
    try:
        return parse_duration(text)
    except ValueError:
        raise HTTPException(
            400, f"{name}: must be a duration of at most ten years: a whole number and one of s, m, h, d, w, like 10m"
        ) from None


def cursor(text: str | None) -> Position | None:
    """Where the page before ended."""
    if not text:
        return None
    with suppress(ValueError):
        started_at, _, row_id = urlsafe_b64decode(text).decode("ascii").partition(".")
        if re.fullmatch(r"[0-9]{1,13}", started_at):
            return int(started_at), UUID(hex=row_id)
    raise HTTPException(400, "cursor: not one that this server gave; leave it out to begin again")


def next_cursor(position: Position) -> str:
    """What `cursor` reads."""
    started_at, row_id = position
    return urlsafe_b64encode(f"{started_at}.{row_id.hex}".encode()).decode()
