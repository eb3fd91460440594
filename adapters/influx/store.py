"""`engine.ports.RowStore` on InfluxDB: cell events and samples as points; it holds no other event, and no offset."""

from email.utils import parsedate_to_datetime

import trio

from adapters.chunks import in_chunks
from engine.checks import Finding, clock_ahead
from engine.clock import WallClock
from engine.errors import StoreUnavailableError
from engine.measures import Histograms
from engine.ports import Flush

from .answers import Answer
from .lines import cell_lines, sample_lines
from .senders import Sender, V1Sender, V2Sender, client_of, request
from .target import Target


class InfluxStore:
    """Points are written again after a fault that left it open whether they were: they are the same points."""

    name = "influxdb"

    def __init__(
        self, target: Target, *, index_is_tag: bool, clock: WallClock, times: Histograms | None = None
    ) -> None:
        self._target = target
        self._index_is_tag = index_is_tag
        self._clock = clock
        self._times = times or Histograms()
        self._client = client_of(target)
        self._sender: Sender | None = None

    async def open(self) -> None:
        """Prove that it takes what we write."""
        await self._look()

    async def close(self) -> None:
        """Let go of its connections."""
        if self._sender is not None:
            await self._sender.close()
        await self._client.aclose()

    @property
    def connections(self) -> int:
        """One is kept at most: a write waits for the one before."""
        return int(self._sender is not None)

    async def ping(self) -> None:
        """See `engine.ports.RowStore`."""
        began = trio.current_time()
        try:
            answer = await request(self._client, "GET", "/ping")
        finally:
            self._times.of(self.name, "ping").observe(trio.current_time() - began)
        if answer.status_code not in (200, 204):
            raise StoreUnavailableError(f"InfluxDB: {self._target.url} answered {answer.status_code} to a ping")

    async def write(self, flush: Flush) -> None:
        """See `engine.ports.RowStore`. It has no transactions: points of a flush that fails may be there."""
        lines = sample_lines(flush.samples)
        for chunk in in_chunks(flush.commits):
            lines += cell_lines(chunk, index_is_tag=self._index_is_tag)
            await trio.lowlevel.checkpoint()
        if lines:
            await self._send("\n".join(lines).encode())

    async def check(self) -> Finding:
        """See `engine.checks.Checkable`."""
        version, date = await self._look()
        return Finding(
            f"InfluxDB {version}",
            f"{self._target.url}, api {self._target.api}",
            0 if date is None else _clock_ahead(date, self._clock()),
            (f"may write to {self._target.container}",),
        )

    async def _look(self) -> tuple[str, float | None]:
        """Its version, and its time in seconds since the epoch, as far as it tells; raises what a write would.

        An empty write tells what a full one would be told about token, organization and bucket, and writes nothing.
        """
        answer = await request(
            self._client,
            "POST",
            "/write" if self._target.api == "v1" else "/api/v2/write",
            params=self._target.write_parameters,
            content=b"",
        )
        # 2.x says that nothing is in it, after it has looked at all the rest.
        if answer.status_code != 400 or not answer.text.startswith("{"):
            self._answer(answer.status_code, answer.text, answer.headers.get("Retry-After")).check()
        date = answer.headers.get("Date")
        try:
            at = None if date is None else parsedate_to_datetime(date).timestamp()
        except ValueError:
            at = None
        return answer.headers.get("X-Influxdb-Version", "of unknown version"), at

    async def _send(self, body: bytes) -> None:
        if self._sender is None:
            self._sender = V1Sender(self._target, self._client) if self._target.api == "v1" else V2Sender(self._target)
        began = trio.current_time()
        try:
            sent = await self._sender.send(body)
        finally:
            self._times.of(self.name, "write").observe(trio.current_time() - began)
        self._answer(*sent).check()

    def _answer(self, status: int, body: str, retry_after: str | None) -> Answer:
        return Answer(self._target, status, body, retry_after=retry_after, clock=self._clock)


def _clock_ahead(date: float, now: int) -> int:
    """How far a clock that tells whole seconds is ahead of ours, in ms; within its second it agrees."""
    theirs = int(date * 1000)
    return -clock_ahead(theirs, now, theirs + 999)
