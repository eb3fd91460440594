"""Requests that no decent client sends: a corpus of cases with a name, and as many more as wanted, made from a seed.

A case that once did harm is added to `CORPUS`.
"""

import gzip
import json
import random
from collections.abc import Iterator

from tests.adapters.framing import BAD_FRAMING

EVENTS = b"/api/v1/events"
NEST = 200_000  # brackets: past what recursion survives, under the limit of a body

_CELL = {
    "event_id": "fuzz",
    "event_type": "cell_executed",
    "user_id": "fuzz@example.org",
    "class_id": "fuzz",
    "session_id": "s",
    "notebook_path": "a/b.ipynb",
    "cell_id": "c",
    "cell_index": 3,
    "execution_count": 7,
    "execution_duration_ms": 12.5,
    "has_error": True,
    "error_message": "ValueError: x",
    "total_cells": 9,
    "timestamp": "2026-03-01T10:00:00Z",
    "data": {"notebookPath": "x", "n": [1, {"a": None}]},
}

# JSON texts that stand where a value should.
ODD = [
    b"null", b"true", b"{}", b"[]", b'""', b"-1", b"1e999", b"-0", b"1e-400", b"NaN", b"Infinity", b"1.5",
    b"9223372036854775808", b"1" * 400, b"1" * 5000, b'"\\ud800"', b'"\\u0000"', b'"\x00"', b'"\xff"', b'"\\x"',
    b'"' + b"x" * 70_000 + b'"', b"[" * 2000 + b"]" * 2000, b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"__proto__":{"a":1},"a":1,"a":2}', b"'x'", b"01", b"\xef\xbb\xbf1", b'"2026-13-45T99:99:99Z"', b"1e18",
    b'"0000-00-00T00:00:00Z"', b"-62135596800001", b'"\\u202e"', b"[[[]]]", b"tru", b"",
]  # fmt: skip
BODIES = {
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": json.dumps(_CELL).encode("utf-16"),
    "latin-1": '{"user_id":"é"}'.encode("latin-1"),
    "open brackets": b"[" * NEST,
    "nested arrays": b"[" * NEST + b"]" * NEST,
    "nested objects": b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
    "nested data": b'{"user_id":"u","event_type":"x","data":' + b"[" * NEST + b"]" * NEST + b"}",
    "a number without end": b"1" * 1_000_000,
    "a string without end": b'"' + b"x" * 1_000_000,
    "too many events": b"[" + b",".join([b"{}"] * 5000) + b"]",
    "only commas": b"," * 100_000,
    "half a million bad lines": b"{\n" * 500_000,
    "only line ends": b"\n" * 100_000,
    "a key a thousand times": b"{" + b",".join([b'"user_id":"a"'] * 1000) + b"}",
    "escapes": b'{"user_id":"' + b"\\ud83d" * 40 + b'"}',
}
HEADERS = [
    b"Host: localhost", b"Host: evil.example", b"Host:", b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: 99999999999999999999", b"Content-Length: 9999999", b"Content-Length: 0x10", b"Content-Length: 1,1",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked", b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade",
    b"Upgrade: websocket", b"Upgrade: h2c", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: x",
    b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Protocol: \xff,,",
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99", b"Expect: 100-continue", b"Expect: x",
    b"Content-Encoding: gzip", b"Content-Encoding: br", b"Content-Encoding: gzip, gzip", b"Content-Type: text/plain",
    b"Content-Type: application/x-ndjson", b"Content-Type: ;;", b"Content-Type: \xff", b"X-Forwarded-For: 1.2.3.4",
    b"Forwarded: for=;;,", b"Origin: \xff", b"Origin: https://evil.example", b"Access-Control-Request-Method: \xff",
    b" folded", b"\tfolded", b"no colon", b": no name", b"x: " + b"y" * 33_000, b"\xff: x", b"x: \x00", b"x: a\rb",
    b"Range: bytes=0-", b"Cookie: " + b"a=b;" * 500, b"Authorization: Bearer \xff", b"If-None-Match: *",
]  # fmt: skip
UPGRADE = [
    b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]  # fmt: skip
TARGETS = [
    b"/", b"*", b"//", b"/livez", b"/readyz", b"/metrics", b"/docs", b"/api/v1/openapi.json", b"/api/v1/health",
    b"/api/v1/stream", b"/api/v1/events", b"/api/v1/events?x=%", b"/api/v1/events/", b"/api/v1/ingest/x/events",
    b"http://localhost/livez", b"http://evil.example/", b"http://", b"http://[::1", b"http://a@localhost/", b"/%00",
    b"/%ff%fe", b"/%zz", b"/..//../etc/passwd", b"/" + b"a" * 33_000, b"/livez#x", b"/livez%0a", b"/\xff", b"x",
    b"/api/v1/classes/%00/overview", b"/api/v1/classes/%ff/overview", b"/api/v1/classes//overview",
    b"/api/v1/classes/__proto__/overview", b"/api/v1/users/%00/sessions", b"/api/v1/users/%ff/sessions",
    b"/api/v1/users/%ED%A0%80/sessions", b"/api/v1/users/a%0Ab/sessions", b"/api/v1/users/%2F/sessions",
    b"/api/v1/users/a/sessions?limit=0", b"/api/v1/users/a/sessions?limit=-1", b"/api/v1/users/a/sessions?limit=%D9%A3",
    b"/api/v1/users/a/sessions?limit=999999999999999999999", b"/api/v1/users/a/sessions?cursor=%FF",
    b"/api/v1/users/a/sessions?cursor=OTk5OTk5OTk5OTk5OS4wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA%3D%3D",
    b"/api/v1/users/a/sessions?cursor=%C3%A9", b"/api/v1/users/a/sessions?cursor=a", b"/api/v1/users/a/sessions?class=%00",
    b"/api/v1/users/a/sessions?notebook=%00", b"/api/v1/users/a/sessions?notebook=%ED%A0%80", b"/api/v1/users/a/sessions?&&=&",
    b"/api/v1/users/a/sessions?notebook=" + b"%F0%9F%92%A9" * 500,
]  # fmt: skip
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"get", b"M-SEARCH", b"G\0T", b""]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 6 + [
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"HTTP/11",
    b"RTSP/1.0",
    b"ICE/1.0",
    b"",
]


def post(body: bytes, *headers: bytes) -> bytes:
    return _request(b"POST", EVENTS, b"Content-Length: %d" % len(body), *headers, body=body)


def _request(method: bytes, target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join((b"%b %b %b" % (method, target, version), b"Host: localhost", *headers, b"", body))


def _chunked(*chunks: bytes) -> bytes:
    return _request(b"POST", EVENTS, b"Transfer-Encoding: chunked", body=b"".join(chunks) + b"0\r\n\r\n")


_GOOD = json.dumps(_CELL).encode()
CORPUS = {
    **{name: data.replace(b"Host: h", b"Host: localhost") for name, data in BAD_FRAMING.items()},
    **{f"body: {name}": post(body) for name, body in BODIES.items()},
    **{f"lines: {name}": post(body, b"Content-Type: application/x-ndjson") for name, body in BODIES.items()},
    "a body of zeros": post(b"\0" * 100_000),
    "gzip bomb": post(gzip.compress(bytes(50_000_000)), b"Content-Encoding: gzip"),
    "gzip bomb of JSON": post(gzip.compress(b"[" * 30_000_000), b"Content-Encoding: gzip"),
    "gzip in gzip": post(gzip.compress(gzip.compress(bytes(9_000_000))), b"Content-Encoding: gzip"),
    "gzip members": post(gzip.compress(b"") * 40_000, b"Content-Encoding: gzip"),
    "gzip nesting bomb": post(gzip.compress(BODIES["nested arrays"]), b"Content-Encoding: gzip"),
    "chunk extensions": _chunked(*[b"1;" + b"x" * 5000 + b"\r\n \r\n"] * 100),
    "chunks of one byte": _chunked(*[b"1\r\n \r\n"] * 20_000),
    "trailers": _request(
        b"POST", EVENTS, b"Transfer-Encoding: chunked", body=b"0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"
    ),
    "headers": _request(b"GET", b"/livez", *[b"a: b"] * 20_000),
    "line ends before the request": b"\r\n" * 50_000 + _request(b"GET", b"/livez"),
    "an expectation, and no body": _request(b"POST", EVENTS, b"Expect: 100-continue", b"Content-Length: 5"),
    "another expectation": _request(b"POST", EVENTS, b"Expect: x", b"Content-Length: 5"),
    "forwarded": _request(b"GET", b"/livez", b"Forwarded: for=;;,"),
    "a stream without an upgrade": _request(b"GET", b"/api/v1/stream"),
    "an upgrade with a body": _request(b"GET", b"/api/v1/stream", *UPGRADE, b"Content-Length: 2", body=b"{}"),
    "frames of zeros": _request(b"GET", b"/api/v1/stream", *UPGRADE, body=bytes(1000)),
    "a body for OPTIONS": _request(b"OPTIONS", EVENTS, b"Content-Length: 3", body=b"{}{"),
    "another host": _request(b"GET", b"http://evil.example/livez"),
    "another method": _request(b"TRACE", b"/livez"),
    "pipelined": _request(b"GET", b"/livez") * 500,
    "pipelined behind the last": _request(b"GET", b"/livez", b"Connection: close") + post(_GOOD) * 50,
}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The corpus, then cases made by ``seed`` up to ``count``: a name that tells how it was made, and the bytes."""
    yield from list(CORPUS.items())[:count]
    makers = (_mutated, _mutated, _typed, _typed, _encoded, _assembled, _assembled)
    for number in range(len(CORPUS), count):
        chance = random.Random(f"{seed}.{number}")
        yield f"CLASSPULSE_SEED={seed} case {number}", chance.choice(makers)(chance)


def segments(data: bytes, chance: random.Random) -> list[bytes]:
    """The bytes in up to four pieces, as a network may deliver them."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 3))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _small(chance: random.Random) -> bytes:
    """A valid request, or a corpus case that is no larger than most."""
    valid = (
        post(_GOOD),
        _request(b"GET", b"/api/v1/users/a/sessions?limit=5&class=fuzz"),
        _request(b"GET", b"/api/v1/classes/fuzz/overview"),
        _chunked(b"%x;a=b\r\n%b\r\n" % (len(_GOOD), _GOOD)),
        post(gzip.compress(_GOOD), b"Content-Encoding: gzip"),
        _request(b"GET", b"/api/v1/stream", *UPGRADE),
    )
    return chance.choice(valid) if chance.random() < 0.7 else chance.choice(_SMALL)


_SMALL = [data for data in CORPUS.values() if len(data) < 2000]
_BYTES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"\xff",
    b"\t",
    b"\r\n\r\n",
    b"%00",
    b'"',
    b"{",
    b"[",
    b",",
    b";",
    b"0",
]


def _mutated(chance: random.Random) -> bytes:
    data = bytearray(_small(chance))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 0, 1, 1, 2, 10, 100)))
        piece = chance.choice(
            (chance.choice(_BYTES), chance.randbytes(chance.choice((1, 2, 20))), bytes(data[start:end]) * 2)
        )
        data[start:end] = piece
    if chance.random() < 0.2:
        data += _small(chance)
    return bytes(data)


def _typed(chance: random.Random) -> bytes:
    """Well-framed, the JSON is not what it should be."""
    event = {key.encode(): json.dumps(value).encode() for key, value in _CELL.items()}
    event[b"event_id"] = b'"%d"' % chance.randrange(1000)
    for _ in range(chance.choice((1, 1, 2, 5))):
        key = chance.choice([*event, b"userId", b"eventTime", b"duration", b"metadata", b"code", b"completed_cells"])
        event[key] = chance.choice(ODD)
    text = b"{" + b",".join(b'"%b":%b' % item for item in event.items()) + b"}"
    way = chance.random()
    if way < 0.2:
        return post(b"[" + b",".join([text, chance.choice(ODD), _GOOD]) + b"]")
    if way < 0.4:
        return post(b"\n".join([text, chance.choice(ODD), _GOOD]), b"Content-Type: application/x-ndjson")
    if way < 0.5:
        return post(text[: chance.randrange(len(text))])
    return post(text)


def _encoded(chance: random.Random) -> bytes:
    """Compressed, in chunks or by another content type, well or badly."""
    packed = bytearray(gzip.compress(_GOOD * chance.choice((1, 3, 2000)), mtime=0))
    if chance.random() < 0.7:
        packed[chance.randrange(len(packed))] = chance.randrange(256)
    if chance.random() < 0.3:
        del packed[chance.randrange(len(packed)) :]
    body = bytes(packed) * chance.choice((1, 1, 2, 200))
    if chance.random() < 0.5:
        return post(
            body, chance.choice((b"Content-Encoding: gzip", b"Content-Encoding: x-gzip", b"Content-Encoding: br"))
        )
    pieces = [body[at : at + 300] for at in range(0, min(len(body), 6000), 300)]
    sizes = (
        lambda size: b"%x" % size,
        lambda size: b"%X;q" % size,
        lambda size: b"%x" % (size + chance.choice((-1, 0, 0, 0, 1))),
    )
    return _chunked(*[b"%b\r\n%b\r\n" % (chance.choice(sizes)(len(piece)), piece) for piece in pieces])


def _assembled(chance: random.Random) -> bytes:
    """Parts that may not fit together."""
    headers = [chance.choice(HEADERS) for _ in range(chance.choice((0, 1, 1, 2, 4, 6)))]
    body = chance.choice((b"", b"", _GOOD, b"{}", b"5\r\nhello\r\n0\r\n\r\n", chance.randbytes(40)))
    if body and chance.random() < 0.6:
        headers.append(b"Content-Length: %d" % len(body))
    method = chance.choice(METHODS) if chance.random() < 0.4 else chance.choice((b"GET", b"POST"))
    return _request(method, chance.choice(TARGETS), *headers, version=chance.choice(VERSIONS), body=body)
