"""Bodies that come compressed (``Content-Encoding: gzip``, RFC 1952)."""

import zlib
from typing import Final

from engine.errors import MalformedError

# Members of one body. Clients that append one for each of their writes fit; each costs an inflater of its own.
MAX_MEMBERS: Final = 100
_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS


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
            part = inflater.decompress(rest, room + 1)
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
