"""The HTTP interface of a daemon, one call a connection; errors are answers, not exceptions."""

import json
from collections.abc import Iterable
from typing import Any, Protocol
from urllib.parse import quote

from tests.e2e.waiting import eventually
from tests.e2e.wire import Answer, Headers, request_bytes, send_raw

EVENTS = "/api/v1/events"
JSON = ("Content-Type", "application/json")


class HasPort(Protocol):
    """A daemon, whose port changes with each start."""

    port: int


class Api:
    def __init__(self, daemon: HasPort) -> None:
        self._daemon = daemon

    @property
    def port(self) -> int:
        return self._daemon.port

    async def call(self, method: str, path: str, headers: Headers = (), body: bytes | None = None) -> Answer:
        host = f"127.0.0.1:{self.port}"
        return await send_raw(self.port, request_bytes(method, path, host=host, headers=headers, body=body))

    async def get(self, path: str) -> Any:
        answer = await self.call("GET", path)
        assert answer.status == 200, (path, answer)
        return answer.json()

    async def post(self, events: Any, headers: Headers = (JSON,)) -> Answer:
        """Post one event, or a list of them; bytes are sent as they are."""
        body = events if isinstance(events, bytes) else json.dumps(events).encode()
        return await self.call("POST", EVENTS, headers, body)

    async def accept(self, events: Any) -> dict[str, Any]:
        """Post events that must all be accepted."""
        answer = await self.post(events)
        assert answer.status == 202, answer
        body: dict[str, Any] = answer.json()
        assert not body.get("rejected"), body
        return body

    async def overview(self, class_id: str = "default") -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/api/v1/classes/{class_id}/overview")
        return found

    async def user(self, user_id: str, class_id: str = "default") -> dict[str, Any]:
        """A user's object in the live state; empty when there is none."""
        found: dict[str, Any] = (await self.overview(class_id))["state"]["users"].get(user_id, {})
        return found

    async def sessions(self, user_id: str, class_id: str = "default") -> list[dict[str, Any]]:
        """All of a user's stored sessions, newest first, page by page."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            path = f"/api/v1/users/{quote(user_id, safe='')}/sessions?class={class_id}&limit=10{cursor}"
            page = await self.get(path)
            found += page["sessions"]
            if page.get("next_cursor") is None:
                return found
            cursor = f"&cursor={quote(page['next_cursor'], safe='')}"

    async def health(self) -> tuple[int, dict[str, Any]]:
        answer = await self.call("GET", "/api/v1/health")
        return answer.status, answer.json()

    async def lag(self, store: str = "postgresql") -> int:
        """Events that are durable and not yet in a store."""
        _, health = await self.health()
        lag: int = health["checks"][store]["lag_events"]
        return lag

    async def wait_flushed(self, within: float = 30, store: str = "postgresql") -> None:
        """Return once a store holds everything that was acknowledged before the call."""

        async def flushed() -> bool:
            return await self.lag(store) == 0

        await eventually(flushed, within=within, what="lag_events == 0")


def ndjson(lines: Iterable[Any]) -> bytes:
    """Lines of NDJSON; bytes among them are taken as they are."""
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
