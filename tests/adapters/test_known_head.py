"""A head that came before is not parsed again: what a connection makes of its bytes must not depend on that."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.http.forwarded import Proxies
from adapters.http.reader import Reader, Refusal

HOSTS = {b"class.example"}


class Plain(Reader):
    """What is read on one connection; ``learns=False``: each head goes to the parser."""

    def __init__(self, *, learns, **limits):
        self.limits = SimpleNamespace(
            **{"max_header_bytes": 1000, "max_body_bytes": 300, "refuse_forwarded": True, "proxies": Proxies(())}
            | limits,
            allows_host=lambda host: host.lower() in HOSTS,
        )
        self._learns = learns
        self.parsed = 0
        super().__init__(self.limits)

    def peer(self):
        return "127.0.0.1"

    def on_message_begin(self):
        self.parsed += 1
        super().on_message_begin()

    def read(self, data):
        """What one read brings: requests, and what is refused."""
        if not self._learns:
            self._known = None
        try:
            self._feed(memoryview(data))
        except Refusal as refusal:
            found = [refusal.answer.partition(b"\r\n")[0]]
        else:
            found = []
        while self._ready:
            request = self._ready.popleft()
            found.insert(
                0,
                (
                    *(getattr(request, name) for name in request.__struct_fields__ if name != "headers"),
                    sorted(request.headers),
                ),
            )
        return found, self._begun, self._rest


def post(body, *headers, length=None, target="/api/v1/events", end="\r\n\r\n"):
    lines = [f"POST {target} HTTP/1.1", "Host: class.example", "Content-Type: application/json", *headers]
    lines.insert(len(lines) - len(headers) // 2, f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + end.encode() + body


BODIES = [
    b"",
    b"{}",
    b"\r\n{}",
    b"\r\n",
    b"[1]",
    b"x" * 99,
    b"x" * 100,
    b"x" * 300,
    b"x" * 301,
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
]
bodies = st.sampled_from(BODIES)
headers = st.lists(
    st.sampled_from(
        [
            "Origin: http://127.0.0.1:8888", "Content-Encoding: gzip", "Expect: 100-continue", "Connection: close",
            "Transfer-Encoding: chunked", "Content-Length: 2", "X-Forwarded-For: 10.0.0.1", "X-A: content-length: 3",
        ]
    ),
    max_size=2,
)  # fmt: skip


def request_read(target, body, headers, length, cut):
    """What a client may send at once: a request, one that is cut, or one with a line end behind it."""
    data = post(body, *headers, length=length, target=target)
    return data + b"\r\n" if cut < 0 else data[: len(data) - cut]


requests = st.builds(
    request_read,
    st.sampled_from(["/api/v1/events", "/api/v1/events", "http://class.example/x", "http://other.example/x"]),
    bodies,
    headers,
    st.sampled_from([None, None, None, None, 0, 2, 100, "007", "+2", "2 ", "", "99999999999999999999"]),
    st.sampled_from([0, 0, 0, 0, 1, 40, -1]),
)
reads = st.one_of(
    requests,
    st.tuples(requests, requests).map(b"".join),  # pipelined
    st.sampled_from(
        [b"\r\n", b"x", b"GET / HTTP/1.1\r\nHost: class.example\r\n\r\n", post(b"{}").replace(b"Host: c", b"Host: b")]
    ),
)


@given(st.lists(st.tuples(reads, st.integers(1, 3)), min_size=1, max_size=6))
def test_a_connection_that_knows_heads_reads_the_same(sequence):
    knowing, parsing = Plain(learns=True), Plain(learns=False)
    for data, times in sequence:
        for _ in range(times):
            expected = parsing.read(data)
            assert knowing.read(data) == expected
            if any(isinstance(each, bytes) for each in expected[0]):
                return  # a refusal ends the connection


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_head_with_one_byte_changed_is_as_unknown_as_any(at, byte):
    knowing, parsing = Plain(learns=True), Plain(learns=False)
    first = post(b'{"a":1}', "Origin: http://x")
    changed = bytearray(first)
    changed[at % len(first)] = byte
    for data in (first, bytes(changed)):
        assert knowing.read(data) == parsing.read(data)


def test_line_ends_after_a_request_do_not_move_where_the_next_body_begins():
    """The parser passes over them; taken for a part of the body they would frame the next request two bytes off."""
    knowing, parsing = Plain(learns=True), Plain(learns=False)
    first, second = post(b"\r\n{}") + b"\r\n", post(b"\r\n") + b"[]"
    for data in (first, second):
        assert knowing.read(data) == parsing.read(data)


def test_a_host_in_the_target_is_looked_at_each_time():
    reader = Plain(learns=True)
    for times in (1, 2):
        reader.read(post(b"{}", target="http://class.example/api/v1/events"))
        assert reader.parsed == times


def test_the_parser_sees_a_head_once():
    reader = Plain(learns=True)
    for body in [b"{}", b"[1]", b"x" * 99, b"x" * 100, b"x" * 300]:
        ((request,), _, _) = reader.read(post(body))
        assert request[2] == body
        assert (b"content-length", str(len(body)).encode()) in request[-1]
    assert reader.parsed == 1


@pytest.mark.parametrize(
    ("limit", "value", "status"),
    [("max_body_bytes", 1, b"413"), ("max_header_bytes", 20, b"431"), ("allows_host", lambda host: False, b"421")],
)
def test_limits_that_change_meanwhile_hold_for_known_heads_too(limit, value, status):
    reader = Plain(learns=True)
    reader.read(post(b"{}"))
    setattr(reader.limits, limit, value)
    ((answer,), _, _) = reader.read(post(b"{}"))
    assert status in answer


def test_what_needs_a_closer_look_gets_it_each_time():
    for header in ("Content-Encoding: gzip", "Expect: 100-continue"):
        reader = Plain(learns=True)
        for times in (1, 2, 3):
            reader.read(post(b"{}", header))
            assert reader.parsed == times
