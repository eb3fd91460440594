"""A learning session: one client's stay with a notebook, and how sessions are kept that nobody works in any more.

A student has a new client session with each reload of the page, and all but the last are over. Packed, those of one
client together, they take an eighth of the room, and no flush looks at them. A record is MessagePack of (1 where all
are closed, else 0; the client; its sessions), so that it can be found, and told closed, without decoding it. Clients
name themselves by UUIDs, which are 16 bytes there.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

_CLOSED: Final = b"\x93\x01"  # MessagePack: an array of three, and 1
_OPEN: Final = b"\x93\x00"
_UUID_CHARACTERS: Final = 36


class Session(msgspec.Struct, array_like=True, gc=False):
    """It stretches to hold what arrives."""

    notebook: str | None
    client: str | None  # the client's session id
    start: int  # ms, first and last event time
    end: int
    executions: int = 0
    errors: int = 0
    closed: int = -1  # event time of the latest close; -1: none
    row_start: int = -1  # where its stored row says that it starts, of one that was packed; -1: any other

    def absorb(self, other: "Session") -> None:
        """Join another part of the same session."""
        self.start = min(self.start, other.start)
        self.end = max(self.end, other.end)
        self.executions += other.executions
        self.errors += other.errors
        self.closed = max(self.closed, other.closed)

    @property
    def is_closed(self) -> bool:
        """Whether nothing came after its close."""
        return self.closed >= self.end


class _Packed(msgspec.Struct, array_like=True, gc=False):
    """A session in a record, most of its numbers small ones."""

    notebook: str | None
    start: int  # ms
    lasted: int  # ms
    executions: int
    errors: int
    went_on: int | None  # ms, after its close; None: it has none


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[int, Any, list[_Packed]]).decode  # the client: text or bytes
# As records first were: a truth value, the client as text, and sessions as they are in memory.
_decode_long: Final = msgspec.msgpack.Decoder(tuple[bool, str, list[Session]]).decode


def session_key(client: str, notebook: str | None) -> str:
    """The key of a session that the client named. Neither part can hold NUL."""
    return f"{client}\0{notebook or ''}"


def pack_sessions(client: str, sessions: list[Session], *, closed: bool) -> bytes:
    """The record of all of a client's sessions. ``closed``: every one of them is."""
    packed = [
        _Packed(
            each.notebook,
            each.start,
            each.end - each.start,
            each.executions,
            each.errors,
            None if each.closed < 0 else each.end - each.closed,
        )
        for each in sessions
    ]
    # A copy: what `encode` returns has room for half as much again.
    return bytes(memoryview(_encode((int(closed), _short(client), packed))))


def unpack_sessions(record: bytes) -> list[Session]:
    """The sessions of a record."""
    _, name, sessions = _decode(record)
    client = name if isinstance(name, str) else _uuid_text(name.hex())
    return [
        Session(
            each.notebook,
            client,
            each.start,
            end := each.start + each.lasted,
            each.executions,
            each.errors,
            -1 if each.went_on is None else end - each.went_on,
        )
        for each in sessions
    ]


def all_closed(record: bytes) -> bool:
    """Whether every session of a record is closed."""
    return record.startswith(_CLOSED)


def first_end(record: bytes) -> int:
    """When the first of a record's sessions ended, in ms."""
    return min(each.start + each.lasted for each in _decode(record)[2])


def record_of(client: str, records: Iterable[bytes]) -> bytes | None:
    """The one of a client."""
    name = _encode(_short(client))
    prefixes = (_CLOSED + name, _OPEN + name)
    return next((record for record in records if record.startswith(prefixes)), None)


def shortened(record: bytes) -> bytes:
    """A record as it is now, of one that may be of an earlier version."""
    if record.startswith((_CLOSED, _OPEN)):
        return record
    closed, client, sessions = _decode_long(record)
    return pack_sessions(client, sessions, closed=closed)


def _short(client: str) -> str | bytes:
    """A client's name as records hold it: the 16 bytes of a UUID that is written as they usually are."""
    if len(client) != _UUID_CHARACTERS:
        return client
    digits = client.replace("-", "")
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        return client
    return found if _uuid_text(found.hex()) == client else client


def _uuid_text(digits: str) -> str:
    """RFC 9562 section 4, of 32 digits. The class of the standard library takes four times as long."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
