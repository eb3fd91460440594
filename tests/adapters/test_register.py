"""Who is connected to the stream, as other programs find it: refreshed by heartbeats, gone with the connection."""

import socket

import trio
from trio_websocket import wrap_client_stream

from actors.broadcaster import Broadcaster
from adapters.http.messages import Request
from adapters.websocket import StreamEndpoint
from engine.clock import rfc3339
from tests.actors.world import World
from tests.adapters.events import NOW
from tests.e2e.waiting import eventually


class Register:
    """Notes what it is told, in order."""

    def __init__(self):
        self.told = []

    async def get(self, key):
        raise AssertionError(key)

    def put(self, key, value, ttl_s):
        raise AssertionError(key)

    def put_fields(self, key, fields, ttl_s):
        self.told.append((key, fields, ttl_s))

    def discard(self, key):
        self.told.append((key, None, 0))


async def test_a_connection_is_registered_refreshed_and_gone():
    register = Register()
    ours, theirs = map(trio.SocketStream, map(trio.socket.from_stdlib_socket, socket.socketpair()))
    async with trio.open_nursery() as nursery:
        feed: Broadcaster = World(nursery).broadcaster
        clock = iter(range(NOW, NOW + 10**6, 1000)).__next__
        endpoint = StreamEndpoint(feed, clock=clock, heartbeat_s=0.02, register=register)

        async def serve():
            head = b""
            while b"\r\n\r\n" not in head:
                head += await ours.receive_some()
            lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
            await endpoint.serve(Request(b"GET", b"/", headers, b"", keep_alive=True), b"", ours)

        nursery.start_soon(serve)
        await wrap_client_stream(nursery, theirs, "localhost", "/")

        async def refreshed():
            return len(register.told) >= 4

        await eventually(refreshed)
        await trio.aclose_forcefully(theirs)

        async def gone():
            return register.told[-1][1] is None

        await eventually(gone)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(ours)
    (key,) = {key for key, _, _ in register.told}
    assert key.startswith("websocket_connections:")
    *entries, _ = register.told
    assert {ttl_s for _, _, ttl_s in entries} == {0.06}
    activity = [fields["last_activity"] for _, fields, _ in entries]
    assert activity == [rfc3339(NOW + 1000 * n) for n in range(len(entries))]
    assert all(fields["user_id"] == "" for _, fields, _ in entries)
