"""An HTTP peer that answers as a test tells it to: for answers that a real server gives only in need."""

import gzip

import attrs
import h11
import trio


@attrs.frozen
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as it was before its encoding."""
        return (gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body).decode()


@attrs.frozen
class Reply:
    """``stall``: take the request and never answer; ``cut``: close the connection in its place."""

    status: int = 204
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    stall: bool = False
    cut: bool = False


class ScriptedPeer:
    """``answer`` gets each request and gives the reply. Requests are kept in `requests`."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._serve, listeners, task_status=task_status)

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            while (request := await self._receive(connection, stream)) is not None:
                self.requests.append(request)
                reply = self.answer(request)
                if reply.cut:
                    return
                if reply.stall:
                    await trio.sleep_forever()
                headers = [*reply.headers, ("content-length", str(len(reply.body.encode())))]
                if reply.status == 204:
                    headers = list(reply.headers)
                await stream.send_all(
                    connection.send(h11.Response(status_code=reply.status, headers=headers))
                    + connection.send(h11.Data(data=reply.body.encode()))
                    + connection.send(h11.EndOfMessage())
                )
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()

    async def _receive(self, connection: h11.Connection, stream: trio.SocketStream) -> Request | None:
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some(65536))
                except trio.BrokenResourceError:
                    return None
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode(), headers, body)
            else:
                return None
