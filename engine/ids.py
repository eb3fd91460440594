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
_REST_BITS: Final = 74  # of a UUIDv7, beside its time, version and variant
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


class _Uuid7:
    """Makes UUIDv7s that rise, also within a millisecond: RFC 9562 section 6.2, method 2.

    Events that say neither id nor time share the moment of their receipt, and state is made in the order of ids then:
    of a batch, what came later must have the higher one.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._rest = 0  # 74 bits

    def __call__(self) -> str:
        """The next one, as text."""
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._ms, self._rest = ms, secrets.randbits(_REST_BITS)
        else:  # also where the clock was set back
            self._rest += 1 + secrets.randbits(32)
            if self._rest >> _REST_BITS:
                self._ms, self._rest = self._ms + 1, secrets.randbits(_REST_BITS)
        high, low = self._rest >> 62, self._rest & (1 << 62) - 1
        return str(uuid.UUID(int=self._ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low))


uuid7: Final = _Uuid7()
