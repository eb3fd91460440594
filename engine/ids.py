"""Identifiers: UUIDv5 of natural keys, so that a store needs no look-up and shards agree, and UUIDv7 for new events."""

import secrets
import time
import uuid
from functools import lru_cache
from typing import Final

# Namespace of every Classpulse UUIDv5 (RFC 9562); changing it would rename every row in every database.
_NAMESPACE: Final = uuid.UUID("6f1d5c0e-6a0b-5d0c-9a51-0c1a55b01573")
# Names kept: the same few thousand come back in every flush, and SHA-1 of each was 2 us. Some 10 MB each when full.
_CACHED: Final = 32_768
# No natural key may hold it: NUL becomes U+2400 at the edge.
_SEPARATOR: Final = "\0"


def _v5(kind: str, *parts: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, _SEPARATOR.join((kind, *parts)))


@lru_cache(_CACHED)
def user_uuid(user_id: str) -> uuid.UUID:
    """The row id of a user; the same in every class."""
    return _v5("user", user_id)


@lru_cache(_CACHED)
def notebook_uuid(class_id: str, path: str) -> uuid.UUID:
    """The row id of a notebook in a class."""
    return _v5("notebook", class_id, path)


def session_uuid(class_id: str, user_id: str, notebook_path: str, session: str) -> uuid.UUID:
    """The row id of a learning session. ``session`` is the client's id, or where it began when the client gave none."""
    return _v5("session", class_id, user_id, notebook_path, session)


def alert_uuid(class_id: str, user_id: str, event_id: str, kind: str) -> uuid.UUID:
    """The id of the alert of this kind that an event raises: the same after a replay."""
    return _v5("alert", class_id, user_id, event_id, kind)


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562 section 5.7) as text: 48 bits of Unix ms, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))
