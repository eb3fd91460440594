"""Frames that are written at once beside those that wait: whole, in their order, and none lost or doubled."""

import random
import socket

import pytest
import trio
import trio.lowlevel
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from actors.subscriber import Frame, Subscriber
from adapters import websocket
from adapters.http.messages import Request
from adapters.websocket import StreamEndpoint, _ReplayStream
from tests.e2e.waiting import eventually

HEAD = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Feed:
    """One topic: what is published goes to all who joined. As `engine.ports.LiveFeed` and `actors.subscriber.Feed`."""

    def __init__(self, capacity):
        self.members = []
        self._capacity = capacity
        self.caught_up = 0
        self.seq = 0

    def connect(self):
        return Subscriber(self._capacity, self)

    def join(self, subscriber, topic):
        self.members.append(subscriber)

    def leave(self, subscriber, topic):
        self.members.remove(subscriber)

    def begin(self, topic, resume):
        return [Frame(self.seq, "begin")]

    def catch_up(self, topic, seq):
        self.caught_up += 1
        return [Frame(self.seq, f"caught up from {seq}")]

    def publish(self, text):
        self.seq += 1
        for subscriber in self.members:
            subscriber.offer("t", Frame(self.seq, text, received_at=1))


def told(endpoint):
    """How many frames are at the socket."""
    return sum(endpoint.notify_times.counts)


class Client:
    """The other end; reads only when told to."""

    def __init__(self, stream):
        self._stream = stream
        self._protocol = Connection(ConnectionType.CLIENT)
        self.texts = []
        self.pongs = 0
        self._parts = ""

    async def begin(self):
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await self._stream.receive_some()
        await self.say(TextMessage('{"type":"subscribe","topics":["t"]}'))
        await self.read_until(lambda: self.texts == ["begin"])
        self.texts.clear()

    async def say(self, event):
        await self._stream.send_all(self._protocol.send(event))

    async def rest(self):
        """Whatever comes until the connection ends."""
        data = b""
        while more := await self._stream.receive_some():
            data += more
        return data

    async def read_until(self, done, most=2**16):
        while not done():
            data = await self._stream.receive_some(most)
            assert data, self.texts
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, Pong):
                    self.pongs += 1
                else:
                    assert isinstance(event, TextMessage)
                    self._parts += event.data
                    if event.message_finished:
                        self.texts.append(self._parts)
                        self._parts = ""


@pytest.fixture
async def linked(nursery):
    """A feed, its endpoint, and a client over a real socket with little room."""
    opened = []

    async def link(capacity=10_000):
        feed = Feed(capacity)
        endpoint = StreamEndpoint(feed, clock=lambda: 3)
        pair = socket.socketpair()
        for each in pair:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in pair)
        opened.extend((ours, theirs))
        headers = [
            (name.lower(), value) for name, _, value in (line.partition(b": ") for line in HEAD.split(b"\r\n")[1:-2])
        ]
        nursery.start_soon(endpoint.serve, Request(b"GET", b"/", headers, b"", keep_alive=True), b"", ours)
        client = Client(theirs)
        await client.begin()
        await trio.testing.wait_all_tasks_blocked()
        return feed, endpoint, client

    yield link
    for stream in opened:
        await trio.aclose_forcefully(stream)


async def test_who_waits_is_written_to_at_once(linked):
    """Before any other task runs: nobody has to be woken."""
    feed, endpoint, client = await linked()
    feed.publish("news")
    assert told(endpoint) == 1
    with trio.fail_after(5):
        await client.read_until(lambda: client.texts == ["news"])


@pytest.mark.parametrize("seed", range(6))
async def test_frames_come_whole_and_in_order_however_slowly_they_are_read(linked, seed):
    """Short and long ones (of which the socket takes a part), read in pieces, with pings and their answers between."""
    chance = random.Random(seed)
    feed, endpoint, client = await linked()
    sent, pings = [], 0
    with trio.fail_after(30):
        for number in range(300):
            text = f"{number}:" + chance.choice("aéж") * chance.choice((1, 100, 126, 3000, 70_000))
            sent.append(text)
            feed.publish(text)
            if chance.random() < 0.2:
                pings += 1
                await client.say(Ping(b"?"))
            if chance.random() < 0.5:
                await trio.lowlevel.checkpoint()
            if chance.random() < 0.3:
                before = len(client.texts)
                await client.read_until(lambda: len(client.texts) > before, chance.choice((500, 65536)))  # noqa: B023
        await client.read_until(lambda: len(client.texts) == len(sent) and client.pongs == pings)
        await trio.testing.wait_all_tasks_blocked()
    assert client.texts == sent
    assert told(endpoint) == len(sent)


async def test_the_rest_of_a_frame_comes_though_nothing_else_happens(linked):
    feed, endpoint, client = await linked()
    feed.publish("x" * 500_000)
    assert told(endpoint) == 0, "a part was written, and the rest is on its way"
    with trio.fail_after(5):
        await client.read_until(lambda: client.texts == ["x" * 500_000])
        await trio.testing.wait_all_tasks_blocked()
    assert told(endpoint) == 1


async def parts(stdlib_socket, least):
    """What another end has read when it has at least so much."""
    data = b""
    while len(data) < least:
        try:
            data += stdlib_socket.recv(65536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(stdlib_socket)
    return data


@pytest.fixture
async def ends():
    """A `_ReplayStream` over a socket with little room, and the other end: a plain socket that does not block."""
    pair = socket.socketpair()
    for each in pair:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    ours, theirs = trio.SocketStream(trio.socket.from_stdlib_socket(pair[0])), pair[1]
    theirs.setblocking(False)
    stream = _ReplayStream(ours, b"", b"")
    yield stream, theirs
    theirs.close()
    await trio.aclose_forcefully(ours)


LONG = bytes(range(256)) * 1000


async def test_nothing_comes_between_the_parts_of_what_is_being_sent(ends, nursery):
    stream, theirs = ends
    nursery.start_soon(stream.send_all, LONG)
    await trio.testing.wait_all_tasks_blocked()
    some = await parts(theirs, 1)
    assert not stream.write(b"news"), "there is room, but not between"
    assert some + await parts(theirs, len(LONG) - len(some)) == LONG
    await trio.testing.wait_all_tasks_blocked()
    assert stream.write(b"news")
    assert await parts(theirs, 4) == b"news"


async def test_the_rest_of_a_frame_comes_before_anything_else(ends):
    stream, theirs = ends
    assert stream.write(LONG)
    some = await parts(theirs, 1)
    assert not stream.write(b"news"), "there is room, but the rest comes first"
    found = bytearray(some)

    async def read():
        found.extend(await parts(theirs, len(LONG) + len(b"answer") - len(some)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await stream.send_all(b"answer")
        await stream.send_rest()
    assert bytes(found) == LONG + b"answer"


async def test_a_rest_that_is_cut_off_goes_on_where_it_was(ends):
    """As a ping does that waits too long behind it."""
    stream, theirs = ends
    assert stream.write(LONG)
    found = b""
    with trio.fail_after(10):
        while len(found) < len(LONG) // 2:
            with trio.move_on_after(0.01):
                await stream.send_all(b"never begun")
            found += await parts(theirs, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"answer")
            found += await parts(theirs, len(LONG) + len(b"answer") - len(found))
    assert found == LONG + b"answer"


async def test_who_does_not_read_gets_a_fresh_state_later(linked):
    feed, _, client = await linked(capacity=4)
    long = "x" * 200_000
    for number in range(20):
        feed.publish(f"{number}:{long}")
        await trio.lowlevel.checkpoint()
    with trio.fail_after(5):
        await client.read_until(lambda: client.texts and client.texts[-1].startswith("caught up"))
        feed.publish("news")
        await client.read_until(lambda: client.texts[-1] == "news")
    assert feed.caught_up == 1
    assert client.texts == [f"{number}:{long}" for number in range(len(client.texts) - 2)] + client.texts[-2:]
    assert client.texts[-2] == f"caught up from {len(client.texts) - 2}"


@pytest.mark.parametrize("goodbye", [b"\x88\x0c\x03\xf4restarting", b"\x88\x02\x03\xe8"], ids=["ours", "theirs"])
async def test_behind_a_goodbye_nothing_is_written(linked, nursery, goodbye, monkeypatch):
    """Whenever it is that there are news: at any step of the closing handshake."""
    monkeypatch.setattr(websocket, "_CLOSE_S", 0.05)  # this client does not say goodbye back
    for steps in range(30):
        feed, endpoint, client = await linked()
        if b"restarting" in goodbye:
            nursery.start_soon(endpoint.close)
        else:
            await client.say(CloseConnection(1000))
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        feed.publish("news")
        with trio.fail_after(5):
            data = await client.rest()
        assert data.removeprefix(b"\x81\x04news") == goodbye


async def test_a_peer_that_is_gone_ends_only_itself(linked):
    feed, endpoint, client = await linked()
    await trio.aclose_forcefully(client._stream)
    feed.publish("news")

    async def gone():
        return endpoint.subscribers == 0

    await eventually(gone)
    feed.publish("nobody hears it")
