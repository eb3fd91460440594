"""A learning session: one client's stay with a notebook, and how sessions are kept that nobody works in any more.

A student has a new client session with each reload of the page, and all but the last are over. Packed, those of one
client together, they take a quarter of the room, and no flush looks at them. A record is MessagePack of (whether all
are closed, the client, its sessions), so that it can be found, and told closed, without decoding it.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

_CLOSED: Final = b"\x93\xc3"  # MessagePack: an array of three, and true
_OPEN: Final = b"\x93\xc2"


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


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[bool, str, list[Session]]).decode


def session_key(client: str, notebook: str | None) -> str:
    """The key of a session that the client named. Neither part can hold NUL."""
    return f"{client}\0{notebook or ''}"


def pack_sessions(client: str, sessions: list[Session], *, closed: bool) -> bytes:
    """The record of all of a client's sessions; consumes them. ``closed``: every one of them is."""
    for session in sessions:
        session.client = None
    return _encode((closed, client, sessions))


def unpack_sessions(record: bytes) -> list[Session]:
    """The sessions of a record."""
    _, client, sessions = _decode(record)
    for session in sessions:
        session.client = client
    return sessions


def all_closed(record: bytes) -> bool:
    """Whether every session of a record is closed."""
    return record.startswith(_CLOSED)


def record_of(client: str, records: Iterable[bytes]) -> bytes | None:
    """The one of a client."""
    name = _encode(client)
    prefixes = (_CLOSED + name, _OPEN + name)
    return next((record for record in records if record.startswith(prefixes)), None)
