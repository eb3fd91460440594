"""Redis for tests (Debian's package `redis-server`), and a listener on its channels."""

import socket
from contextlib import suppress
from typing import Any, Self

import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.e2e.waiting import eventually
from tests.servers.process import ServerProcess


class RedisServer(ServerProcess):
    """``settings`` are Redis' own, as on its command line. Nothing is kept on the disk."""

    def __init__(self, program: str, *settings: str) -> None:
        super().__init__("redis")
        self._program = program
        self._settings = settings
        self.password: str | None = None

    def command(self) -> list[str]:
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        fixed += ["--unixsocket", self.socket_path, "--dir", str(self.base)]
        return [self._program, *fixed, *self._settings]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(1) in {b"+", b"-"}
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> str:
        return str(self.base / "redis.sock")

    def client(self) -> "redis.Redis":
        """A client of the test's own, by the administrator's rights. Close it, or use it in ``with``."""
        return redis.Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), password=self.password)

    def do(self, *command: Any) -> Any:
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def fields(self, key: str) -> dict[str, str]:
        with self.client() as client:
            return {name.decode(): value.decode() for name, value in client.hgetall(key).items()}

    async def until(self, condition, *, what: str, within: float = 10) -> Any:
        """Poll with a client of its own until ``condition(client)`` is true; returns that."""

        async def look() -> Any:
            with self.client() as client, suppress(redis.ConnectionError):
                return await trio.to_thread.run_sync(condition, client)

        return await eventually(look, within=within, what=what)


class Listener:
    """Hears every message of the channels while the block lasts: ``(channel, text)`` in the order they came."""

    def __init__(self, server: RedisServer, *channels: str) -> None:
        self._client = server.client()
        self._channels = channels
        self.heard: list[tuple[str, bytes]] = []
        self._nursery_manager = trio.open_nursery()

    async def __aenter__(self) -> Self:
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(*self._channels)
        for _ in self._channels:
            await trio.to_thread.run_sync(lambda: self._subscription.get_message(timeout=5))
        nursery = await self._nursery_manager.__aenter__()
        nursery.start_soon(self._listen)
        self._scope = nursery.cancel_scope
        return self

    async def __aexit__(self, *details: object) -> bool | None:
        self._scope.cancel()
        try:
            return await self._nursery_manager.__aexit__(*details)
        finally:
            self._subscription.close()
            self._client.close()

    async def hears(self, count: int, within: float = 10) -> list[tuple[str, bytes]]:
        """Wait for so many messages in all."""

        async def enough() -> bool:
            return len(self.heard) >= count

        await eventually(enough, within=within, what=f"{count} messages")
        return self.heard

    async def _listen(self) -> None:
        with suppress(redis.ConnectionError):  # its server was stopped
            while True:
                await trio.to_thread.run_sync(self._take)

    def _take(self) -> None:
        """What is there, in one go: a thread for each message would fall behind a quick publisher."""
        for _ in range(1000):
            message = self._subscription.get_message(timeout=0.05)
            if message is None:
                return
            self.heard.append((message["channel"].decode(), message["data"]))
