"""A WebSocket client that keeps its own copy of each topic's state, made from snapshots and patches alone."""

import json
from collections.abc import Callable
from typing import Any, Self

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from loadtest.views import merged

STREAM = "/api/v1/stream"
NUMBERED = {"snapshot", "delta", "alerts"}
# A class of thousands in one snapshot; the library's own limit is 1 MiB.
FRAME_BYTES = 2**26


@attrs.define
class Topic:
    """What a subscriber knows of one topic."""

    epoch: str
    seq: int
    state: dict[str, Any]


class Subscriber:
    """Connect with ``await Subscriber.connect(nursery, port)``; its reader runs in that nursery until the end."""

    def __init__(self, websocket: WebSocketConnection, stream: trio.abc.Stream) -> None:
        self.websocket = websocket
        self.frames: list[dict[str, Any]] = []
        self.topics: dict[str, Topic] = {}
        self.alerts: dict[str, list[dict[str, Any]]] = {}  # by topic
        self.faults: list[str] = []  # frames out of sequence
        self._resumed: set[str] = set()  # topics in whose seq a merged delta may jump
        self.close_code: int | None = None
        self._stream = stream
        self._news = trio.Event()

    @classmethod
    async def connect(cls, nursery: trio.Nursery, port: int, *topics: str) -> Self:
        """Connect, subscribe to the topics, and wait for the snapshot of each."""
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        websocket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", STREAM, max_message_size=FRAME_BYTES)
        self = cls(websocket, stream)
        nursery.start_soon(self._read)
        for topic in topics:
            await self.subscribe(topic)
        return self

    async def send(self, frame: Any) -> None:
        """Send an object as JSON, or text as it is."""
        await self.websocket.send_message(frame if isinstance(frame, str) else json.dumps(frame))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes beneath the WebSocket: frames that no client makes."""
        await self._stream.send_all(data)

    async def subscribe(self, topic: str) -> Topic:
        await self.send({"type": "subscribe", "topics": [topic]})
        await self.until(lambda: topic in self.topics, what=f"snapshot of {topic}")
        return self.topics[topic]

    async def resume(self, topic: str, held: Topic) -> None:
        """Go on from what another client held when it was cut, and wait for the first frame."""
        self.topics[topic] = held
        self._resumed.add(topic)
        before = len(self.frames)
        position = {"epoch": held.epoch, "seq": held.seq}
        await self.send({"type": "subscribe", "topics": [topic], "resume": {topic: position}})
        await self.until(lambda: len(self.frames) > before, what=f"an answer to the resume of {topic}")

    async def unsubscribe(self, topic: str) -> None:
        await self.send({"type": "unsubscribe", "topics": [topic]})

    async def until(self, condition: Callable[[], Any], *, within: float = 10, what: str = "") -> Any:
        """Wait until a condition on what was received holds, looking after each frame."""
        with trio.move_on_after(within):
            while not (value := condition()):
                await self._news.wait()
            return value
        last = self.frames[-1] if self.frames else None
        raise AssertionError(f"not within {within} s: {what} (closed: {self.close_code}, last frame: {last})")

    async def frame(self, kind: str, *, within: float = 10) -> dict[str, Any]:
        """The latest frame of a type, waited for if there is none."""
        found: dict[str, Any] = await self.until(lambda: self.latest(kind), within=within, what=f"a {kind} frame")
        return found

    def latest(self, kind: str) -> dict[str, Any] | None:
        return next((frame for frame in reversed(self.frames) if frame["type"] == kind), None)

    def state(self, topic: str = "class:default") -> dict[str, Any]:
        return self.topics[topic].state

    def user(self, user_id: str, topic: str = "class:default") -> dict[str, Any]:
        """A user's object as this client knows it; empty when there is none."""
        user: dict[str, Any] = self.state(topic)["users"].get(user_id, {})
        return user

    async def close(self) -> None:
        await self.websocket.aclose()

    async def _read(self) -> None:
        try:
            while True:
                frame = json.loads(await self.websocket.get_message())
                self._take(frame)
                self._wake()
        except ConnectionClosed as closed:
            self.close_code = closed.reason.code if closed.reason else 1006
            self._wake()
        finally:
            await trio.aclose_forcefully(self._stream)

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _take(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        if frame["type"] not in NUMBERED:
            return
        known = self.topics.get(frame["topic"])
        if frame["type"] == "snapshot":
            self.topics[frame["topic"]] = Topic(frame["epoch"], frame["seq"], frame["state"])
            return
        if known is None or frame["epoch"] != known.epoch or not self._follows(frame, known.seq):
            self.faults.append(f"{frame['type']} {frame['epoch']}/{frame['seq']} after {known}")
            return
        known.seq = frame["seq"]
        if frame["type"] == "delta":
            known.state = merged(known.state, frame["changes"])
        else:
            self.alerts.setdefault(frame["topic"], []).extend(frame["alerts"])

    def _follows(self, frame: dict[str, Any], seq: int) -> bool:
        number: int = frame["seq"]
        return number == seq + 1 or (frame["topic"] in self._resumed and number >= seq)

    def alerts_of(self, user_id: str, topic: str = "class:default") -> list[str]:
        """The kinds of a user's alerts, in the order they came; without clusters, which others share in."""
        kinds = [alert["alert"] for alert in self.alerts.get(topic, []) if alert["user_id"] == user_id]
        return [kind for kind in kinds if kind != "error_cluster"]
