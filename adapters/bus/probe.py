"""A look at Redis, for the command line."""

from typing import Final
from uuid import uuid4

import trio

from adapters.asyncio_bridge import RedisLink
from engine.announcement import CHANNELS
from engine.checks import Finding, clock_ahead
from engine.clock import WallClock
from engine.errors import StoreMisconfiguredError, StoreUnavailableError
from engine.keys import connection_key, session_key, summary_key

from .backlog import Batch, Write
from .remote import commands

# What is written for the proof ends by itself, in seconds, should it not be taken away.
_TTL_S: Final = 5


class RedisCheck:
    """`engine.checks.Checkable` of Redis: does with keys of its own what the daemon will do."""

    name = "redis"

    def __init__(self, url: str, *, clock: WallClock) -> None:
        self._link = RedisLink(url, max_connections=1)
        self._clock = clock

    async def check(self) -> Finding:
        """See `engine.checks.Checkable`."""
        try:
            return await self._look()
        except StoreUnavailableError as error:
            raise await self._link.explained(error) from None
        finally:
            await self._link.close()

    async def _look(self) -> Finding:
        await self._link.call("ping", "PING")
        version, faults = await self._version()
        ahead = 0
        try:
            before = self._clock()
            seconds, microseconds = await self._link.call("time", "TIME")
            ahead = clock_ahead(before, int(seconds) * 1000 + int(microseconds) // 1000, self._clock())
            if not faults:
                await self._prove()
        except StoreMisconfiguredError as error:
            faults.append(str(error))
        return Finding(f"Redis {version}", self._link.where, ahead, (), tuple(faults or await self._deaf_channels()))

    async def _version(self) -> tuple[str, list[str]]:
        """The version, and what about the server's role rules it out."""
        try:
            text = (await self._link.call("info", "INFO")).decode()
        except StoreMisconfiguredError:
            return "of a version that it does not tell", []
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        faults = []
        if info.get("role") == "slave":
            faults.append(
                f"it is a replica, which is read-only: let redis.url lead to its primary, "
                f"{info.get('master_host')}:{info.get('master_port')}"
            )
        if info.get("redis_mode") == "cluster":
            faults.append("it is a node of a cluster, which holds some of the keys only: give it a single Redis")
        return info.get("redis_version", "?"), faults

    async def _prove(self) -> None:
        """Every command of the daemon, on names like its own."""
        probe = f"classpulse-check-{uuid4().hex}"
        expires_at = trio.current_time() + _TTL_S
        put = {make(probe, probe): Write(expires_at, b"{}") for make in (session_key, summary_key)}
        put[connection_key(probe)] = Write(expires_at, fields={"user_id": probe})
        await self._link.pipeline("check", commands(Batch([], put)))
        await self._link.call("check", "GET", session_key(probe, probe))
        forget = dict.fromkeys(put, Write(float("inf")))
        await self._link.pipeline("check", commands(Batch([], forget)))

    async def _deaf_channels(self) -> list[str]:
        """Channels that the user may not publish to. Asked without a message: programs listen there."""
        try:
            user = await self._link.call("check", "ACL", "WHOAMI")
            answers = await self._link.pipeline(
                "check", [["ACL", "DRYRUN", user, "PUBLISH", channel, ""] for channel in CHANNELS]
            )
        except StoreMisconfiguredError:  # Redis 6 cannot tell, and an ordinary user may not ask
            return []
        return [
            f"user {user.decode()} may not publish to {channel}: `ACL SETUSER {user.decode()} &{channel}`"
            for channel, answer in zip(CHANNELS, answers, strict=True)
            if answer != b"OK"
        ]
