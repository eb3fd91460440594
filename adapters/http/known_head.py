"""A head that was parsed before: a client that keeps its connection sends the same one again and again.

Browsers and proxies repeat every header to the letter, but for ``Content-Length``. Parsing them again and checking what
was checked was an eighth of what an event costs (docs/performance.md). The parser stays the only judge of a head: what
is not the same bytes as one that it accepted on this connection goes to it.
"""

import re
from typing import Final, Self

import msgspec

from .messages import Request

_find_length: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]+)\r\n").search
_END: Final = b"\r\n\r\n"
# Digits of a Content-Length that are looked at: bodies of one read have no more.
_DIGITS: Final = 6
# Bytes and headers of a head that is kept: browsers send some 700, in a dozen. Each open connection may keep one.
_MAX_HEAD: Final = 2048
_MAX_HEADERS: Final = 32


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """The bytes around the length, and what they mean."""

    before: bytes
    after: bytes
    request: Request  # the first that had it, without its body
    host: bytes
    size: int  # as http.max_header_bytes counts

    @classmethod
    def of(cls, data: bytes, request: Request, size: int) -> Self | None:
        """The head of a request that came alone in ``data``; None where it says no length, and so need not come again.

        ``size`` is the head's, in bytes.
        """
        end = len(data) - len(request.body)
        if end > _MAX_HEAD or len(request.headers) > _MAX_HEADERS:
            return None
        length = _find_length(data, 0, max(end, 0))
        host = request.header(b"host")
        if length is None or host is None or int(length[1]) != len(request.body):
            return None
        # Line ends may come before a request and after it: the first blank line must be the one before the body.
        if data.find(_END, 0, end) != end - len(_END) or not data.startswith(request.target, len(request.method) + 1):
            return None  # or it named another host in its target
        headers = [header for header in request.headers if header[0] != b"content-length"]
        return cls(
            data[: length.start(1)],
            data[length.end(1) : end],
            msgspec.structs.replace(request, headers=headers, body=b""),
            host,
            size,
        )

    def again(self, data: bytes) -> Request | None:
        """The request that ``data`` is, where it is this head, a length, and exactly so much body."""
        before, after, first = self.before, self.after, self.request
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(after, start, start + _DIGITS + len(after))
        digits = data[start:end]
        if end < 0 or not digits.isdigit():
            return None
        body = data[end + len(after) :]
        if int(digits) != len(body):
            return None
        # By position, in the order of the fields, as for every event.
        headers = [*first.headers, (b"content-length", digits)]
        return Request(first.method, first.target, headers, body, True, "1.1", first.content_type)
