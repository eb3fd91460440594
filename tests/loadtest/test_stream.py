"""The lean end of a WebSocket, against frames that another implementation (wsproto) writes and reads."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, Pong, TextMessage

from loadtest.errors import TransportError
from loadtest.stream import ClientStream

# Around the two lengths from which on a head is longer.
_texts = st.integers(0, 300).map(lambda size: "x" * size) | st.sampled_from(("y" * 65535, "z" * 65536)) | st.text()


class Peer:
    """A server's end: what it says, and what it heard."""

    def __init__(self) -> None:
        mine, self._theirs = trio.testing.memory_stream_pair()
        self.client = ClientStream(mine, b"")
        self._server = Connection(ConnectionType.SERVER)

    def written(self, *events: Event) -> bytes:
        return b"".join(map(self._server.send, events))

    async def say(self, *events: Event) -> None:
        await self._theirs.send_all(self.written(*events))

    async def hang_up(self) -> None:
        await self._theirs.aclose()

    async def heard(self) -> list[Event]:
        self._server.receive_data(await self._theirs.receive_some())
        return list(self._server.events())


@given(messages=st.lists(st.lists(_texts, min_size=1, max_size=3), min_size=1, max_size=4), data=st.data())
def test_messages_come_whole_and_in_order_however_they_are_cut(messages, data):
    """Each is a list of its parts, with a ping between any two."""
    peer = Peer()
    events: list[Event] = []
    for parts in messages:
        for number, part in enumerate(parts, 1):
            events += [TextMessage(part, message_finished=number == len(parts)), Ping(b"?")]
    text = peer.written(*events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found: list[bytes] = []

    async def send() -> None:
        for piece in filter(None, pieces):
            await peer._theirs.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await peer.hang_up()

    async def read() -> None:
        while True:
            found.extend(await peer.client.receive())

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with pytest.raises(TransportError, match="1006"):
                await read()

    trio.run(main)
    assert found == ["".join(parts).encode() for parts in messages]


@pytest.mark.parametrize("size", [0, 125, 126, 65535])
async def test_what_it_sends_is_read_by_another_implementation(size):
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.client.send, b"a" * size)
        (message,) = await peer.heard()
    assert isinstance(message, Message)
    assert message.data == "a" * size


async def test_a_ping_is_answered_with_what_it_holds():
    peer = Peer()
    await peer.say(Ping(b"here?"), TextMessage("news"))
    assert await peer.client.receive() == [b"news"]
    (pong,) = await peer.heard()
    assert isinstance(pong, Pong)
    assert pong.payload == b"here?"


async def test_the_servers_reason_to_close_is_told():
    peer = Peer()
    await peer.say(CloseConnection(4401, "no access"))
    with pytest.raises(TransportError, match="closed with 4401"):
        await peer.client.receive()


async def test_what_came_together_with_a_close_is_not_lost():
    peer = Peer()
    await peer.say(TextMessage("news"), TextMessage("more"), CloseConnection(1001))
    assert await peer.client.receive() == [b"news", b"more"]
    for _ in range(2):
        with pytest.raises(TransportError, match="closed with 1001"):
            await peer.client.receive()


async def test_a_message_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("loadtest.stream.MOST_BYTES", 1000)
    peer = Peer()
    await peer._theirs.send_all(peer.written(TextMessage("x" * 3000))[:2000])
    with pytest.raises(TransportError, match="too long"):
        await peer.client.receive()
