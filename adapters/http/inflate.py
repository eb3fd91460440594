"""Bodies that come compressed (``Content-Encoding: gzip``, RFC 1952)."""

import zlib
from typing import Final

from engine.errors import MalformedError

# Members of one body. Clients that append one for each of their writes fit; each costs an inflater of its own.
MAX_MEMBERS: Final = 100
_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS
# What is inflated of a member before its own word (ISIZE) is believed, and only when that shrank more than events do:
# a bomb is then refused for a fortieth of its price, and a body that was cut is still told so.
_PROBE_BYTES: Final = 32_768
_SUSPECT_RATIO: Final = 200


class InflatedTooLargeError(Exception):
    """The body is larger than the limit once it is inflated."""


def gunzip(body: bytes, limit: int) -> bytes:
    """The body as it was, never more than ``limit`` bytes of it in memory, however small it came.

    Members that follow each other count as one body. Raises MalformedError, InflatedTooLargeError.
    """
    parts: list[bytes] = []
    room = limit
    rest = body
    for _ in range(MAX_MEMBERS):
        inflater = zlib.decompressobj(_GZIP_ONLY)
        try:
            part = inflater.decompress(rest, min(room + 1, _PROBE_BYTES))
            if len(part) <= room and (tail := inflater.unconsumed_tail):
                shrunk = len(part) > _SUSPECT_RATIO * (len(rest) - len(tail))
                if shrunk and int.from_bytes(rest[-4:], "little") > limit:
                    raise InflatedTooLargeError
                part += inflater.decompress(tail, room + 1 - len(part))
        except zlib.error:
            raise MalformedError("the body is not gzip, as its content-encoding says") from None
        room -= len(part)
        if room < 0:
            raise InflatedTooLargeError
        if not inflater.eof:
            raise MalformedError("the gzip body ends too early")
        parts.append(part)
        rest = inflater.unused_data
        if not rest:
            return b"".join(parts)
    raise MalformedError(f"the gzip body has more than {MAX_MEMBERS} members")
