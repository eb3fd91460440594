"""What comes on a connection, made into requests: the parser is httptools, what it lets through is refused here.

llhttp is strict about line ends, folded lines, spaces before colons and lengths that repeat or conflict. It leaves to
us: the sizes of head and body, ``Host``, ``Expect``, ``Transfer-Encoding`` in HTTP/1.0 and codings before ``chunked``,
targets that are no path, and upgrades, on which it always raises.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import Final, Protocol

import httptools

from .forwarded import NAMES, Forwarded, Proxies
from .known_head import KnownHead
from .messages import CORS, Headers, Request, error

# Headers that need a closer look.
_RARE: Final = NAMES | {b"content-encoding", b"transfer-encoding", b"expect"}
# Browsers send some twenty headers, proxies add a few. Ten thousand of six bytes fit into http.max_header_bytes, and
# cost the parser and the collector milliseconds.
MAX_HEADERS: Final = 200
# Bytes of chunked coding that may come with a byte of body: a chunk of one byte is "1", two line ends, and the byte.
_CODING: Final = 8
_SLASH: Final = ord("/")


class Limits(Protocol):
    """What a request may be."""

    max_header_bytes: int
    max_body_bytes: int
    refuse_forwarded: bool
    proxies: Proxies

    def allows_host(self, host: bytes) -> bool:
        """Whether the ``Host`` header names us."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The connection ends with this answer: what follows on it cannot be trusted."""

    def __init__(self, status: int, code: str, message: str, headers: bytes = b"") -> None:
        super().__init__(message)
        self.answer = error(status, code, message, headers=headers + CORS, keep_alive=False)


class Reader(ABC):
    """Parses into `_ready`, request after request; holds the one that is not complete."""

    # Slots, here and in what a connection is: from thirty attributes on CPython 3.11 keeps a dict for each instance,
    # which is slower to look into, and five times as large.
    __slots__ = (
        "_began", "_begun", "_body", "_content_encoding", "_content_type", "_expects", "_fed", "_forwarded",
        "_head_complete", "_head_size", "_headers", "_known", "_limits", "_more", "_old", "_parser", "_plain",
        "_ready", "_rest", "_size", "_target", "_version",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._rest: bytes | None = None  # what came after the head of a request that wants to upgrade
        self._began = False  # a request began in what was read last
        self._old = False  # an HTTP/1.0 request has come: its answer says whether the connection is kept
        self._known: KnownHead | None = None  # of the last request that may come again with another body
        self._plain = False  # what was read last began with a request, and holds nothing that needed a closer look
        self._head_size = 0  # of the last request
        self._reset()

    @abstractmethod
    def peer(self) -> str:
        """The address of who is connected; empty where it has none."""

    def _feed(self, data: memoryview) -> None:
        """Parse what was read into `_ready`, or raise Refusal."""
        if self._known is not None and not self._begun and self._repeats(self._known, bytes(data)):
            return
        self._known = None  # what it makes of the next depends on this
        self._began = False
        self._plain = not (self._begun or self._ready)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = bytes(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as wrapped:
            if isinstance(wrapped.__context__, Refusal):
                raise wrapped.__context__ from None
            raise
        except httptools.HttpParserError as fault:
            raise Refusal(400, "malformed", f"not HTTP/1.1: {fault}") from None
        if self._begun:
            self._check_incomplete(len(data))
        elif self._plain and len(self._ready) == 1 and self._ready[0].keep_alive and self._rest is None:
            self._known = KnownHead.of(bytes(data), self._ready[0], self._head_size)

    def _reset(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._version = "1.1"
        self._content_type: bytes | None = None
        self._content_encoding: bytes | None = None
        self._forwarded: Forwarded | None = None
        self._body = b""
        self._more: list[bytes] = []  # pieces of the body after the first
        self._size = 0  # of the body
        self._fed = 0  # bytes after those that it began with
        self._head_complete = False
        self._begun = False  # bytes of a request that is not complete yet have come
        self._expects = False  # the client waits for "100 Continue" before it sends the body

    def _repeats(self, known: KnownHead, data: bytes) -> bool:
        """Take a request whose head was parsed before; False: the parser has to see it."""
        limits = self._limits
        # The operator may have changed these since.
        if known.size > limits.max_header_bytes or not limits.allows_host(known.host):
            return False
        request = known.again(data)
        if request is None or len(request.body) > limits.max_body_bytes:
            return False
        self._headers = []  # another list is another request, for the sweeper
        self._ready.append(request)
        return True

    # --- httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun = self._began = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers of a chunked body come here too; nothing needs them."""
        if self._head_complete:
            return
        if len(self._headers) >= MAX_HEADERS:
            raise Refusal(431, "headers_too_large", f"the request has more than {MAX_HEADERS} headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Everything but the body is there: refuse what must not go on."""
        self._head_complete = True
        size = len(self._target)
        host = None
        hosts = 0
        version = self._version = self._parser.get_http_version()
        for name, value in self._headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
                host = value
            elif name == b"content-type":
                self._content_type = value
            elif name in _RARE:
                self._note_rare(name, value)
        self._head_size = size
        if size > self._limits.max_header_bytes:
            self._refuse_head()
        if version != "1.1":
            self._check_version(version)
        if hosts != 1 and (hosts or version != "1.0"):
            raise Refusal(400, "malformed", "exactly one Host header is needed")
        if self._target[0] != _SLASH:
            host = self._split_target(host)
        if self._forwarded is not None:
            host = self._forwarded.host or host
        if host is not None and not self._limits.allows_host(host):
            raise Refusal(421, "misdirected", "this host name is not served here; see http.allowed_hosts")

    def on_body(self, body: bytes) -> None:
        """A piece of the body, after chunked coding is undone."""
        self._size += len(body)
        if self._size > self._limits.max_body_bytes:
            self._refuse_body()
        if self._body:
            self._more.append(body)
        else:
            self._body = body

    def on_message_complete(self) -> None:
        """A request is whole."""
        request = Request(
            self._parser.get_method(),
            self._target,
            self._headers,
            b"".join((self._body, *self._more)) if self._more else self._body,
            self._parser.should_keep_alive(),
            self._version,
            self._content_type,
            self._content_encoding,
        )
        if self._forwarded is not None:
            _tell(request, self._forwarded)
        self._ready.append(request)
        self._reset()

    # --- what is seldom

    def _note_rare(self, name: bytes, value: bytes) -> None:
        self._plain = False
        if name == b"content-encoding":
            before = self._content_encoding
            self._content_encoding = value if before is None else before + b", " + value
        elif name == b"transfer-encoding":
            if self._version == "1.0":  # a proxy between may frame it by Content-Length instead
                raise Refusal(400, "malformed", "HTTP/1.0 has no Transfer-Encoding")
            if value.strip().lower() != b"chunked":
                raise Refusal(400, "malformed", "no Transfer-Encoding but chunked is understood")
        elif name == b"expect":
            if self._version == "1.0":  # RFC 9110 section 10.1.1: to be ignored
                return
            if value.strip().lower() != b"100-continue":
                raise Refusal(417, "expectation_failed", "no expectation but 100-continue can be met")
            self._expects = True
        elif self._limits.refuse_forwarded:
            raise Refusal(403, "forwarded", "forwarded requests need auth.allow_open_network while auth.mode is open")
        elif self._forwarded is None and self._limits.proxies.trusts(self.peer()):
            self._forwarded = self._limits.proxies.read(self._headers)

    def _check_version(self, version: str) -> None:
        self._plain = False
        if version != "1.0":
            raise Refusal(400, "malformed", f"HTTP/{version} is not spoken here")
        self._old = True

    def _split_target(self, host: bytes | None) -> bytes | None:
        """Turn the absolute form into a path; its host outranks the header (RFC 9112 section 3.2.2)."""
        target = self._target
        if target == b"*" and self._parser.get_method() == b"OPTIONS":
            return host
        if self._parser.get_method() == b"CONNECT":  # refused as the upgrade that it is
            return host
        scheme, found, rest = target.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        if not slash:
            authority, mark, query = rest.partition(b"?")
            path = mark + query
        if not found or scheme.lower() not in (b"http", b"https") or not authority or b"@" in authority:
            raise Refusal(400, "malformed", "the target must be a path, or an http URL without a user")
        self._target = b"/" + path
        return authority

    def _check_incomplete(self, size: int) -> None:
        """After each read that leaves a request incomplete."""
        if not self._began:
            self._fed += size  # what it began with is not counted: other requests may have come before it
            self._check_coding()
        if self._head_complete and not self._more:
            for name, value in self._headers:
                if name == b"content-length" and int(value) > self._limits.max_body_bytes:
                    self._refuse_body()
            self._expects = self._expects and not self._size

    def _check_coding(self) -> None:
        """What came of a request that is not body: its head, the framing of its chunks, its trailers."""
        body = self._size if self._head_complete else 0
        if self._fed - body - _CODING * body > self._limits.max_header_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        limit = self._limits.max_header_bytes
        raise Refusal(431, "headers_too_large", f"the headers are larger than http.max_header_bytes ({limit})")

    def _refuse_body(self) -> None:
        limit = self._limits.max_body_bytes
        raise Refusal(413, "body_too_large", f"the body is larger than http.max_body_bytes ({limit})")


def _tell(request: Request, forwarded: Forwarded) -> None:
    """Let a request look as it did before the proxies."""
    request.scheme = forwarded.scheme or request.scheme
    request.client = forwarded.client or ""
    if forwarded.host is not None:
        request.headers = [header for header in request.headers if header[0] != b"host"]
        request.headers.append((b"host", forwarded.host))
