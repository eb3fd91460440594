"""The two ways that points go to a server: one request each, and what was answered."""

import zlib
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import httpx
import trio

from engine.errors import StoreUnavailableError

from .target import REQUEST_S, Target

# Speed before size: most of what gzip can save on lines, it saves at once. 31: with gzip's header (zlib's manual).
_LEVEL: Final = 1
_GZIP: Final = 31
# How long closing may take, in seconds.
_CLOSE_S: Final = 0.3


class Sent(NamedTuple):
    """How the server answered."""

    status: int
    body: str
    retry_after: str | None


class Sender(Protocol):
    """Sends lines. Raises StoreUnavailableError when there was no answer."""

    async def send(self, lines: bytes) -> Sent:
        """One write."""

    async def close(self) -> None:
        """Let go of its connections."""


class V1Sender:
    """`/write` of InfluxDB 1.x, by httpx."""

    def __init__(self, target: Target, client: httpx.AsyncClient) -> None:
        self._target = target
        self._client = client

    async def send(self, lines: bytes) -> Sent:
        """See `Sender`."""
        body = await trio.to_thread.run_sync(_gzip, lines)
        answer = await request(
            self._client,
            "POST",
            "/write",
            params=self._target.write_parameters,
            content=body,
            headers={"Content-Encoding": "gzip"},
        )
        return Sent(answer.status_code, answer.text, answer.headers.get("Retry-After"))

    async def close(self) -> None:
        """See `Sender`. The client is its maker's."""
        await trio.lowlevel.checkpoint()


class V2Sender:
    """`/api/v2/write` of InfluxDB 2 and 3, by the library's synchronous API, in one worker thread at a time."""

    def __init__(self, target: Target) -> None:
        # Here, because it takes 0.2 s and some megabytes that only v2 needs.
        from influxdb_client.client.influxdb_client import InfluxDBClient  # noqa: PLC0415
        from influxdb_client.client.write_api import SYNCHRONOUS  # noqa: PLC0415
        from influxdb_client.rest import ApiException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        self._target = target
        self._limiter = trio.CapacityLimiter(1)
        self._refusal: type[Any] = ApiException
        self._failures = (HTTPError, OSError)
        self._client: Any = InfluxDBClient(
            target.url, target.token, org=target.org, timeout=int(REQUEST_S * 1000), enable_gzip=True
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    async def send(self, lines: bytes) -> Sent:
        """See `Sender`. A cancelled one ends in its thread, within the deadline of a request."""
        return await trio.to_thread.run_sync(self._send, lines, limiter=self._limiter, abandon_on_cancel=True)

    def _send(self, lines: bytes) -> Sent:
        try:
            self._api.write(bucket=self._target.bucket, org=self._target.org, record=lines)
        except self._refusal as refusal:
            if not refusal.status:  # no answer: TLS failed
                raise StoreUnavailableError(f"InfluxDB: {self._target.url} is away: TLS failed") from None
            return Sent(refusal.status, str(refusal.body or ""), (refusal.headers or {}).get("Retry-After"))
        except self._failures as error:
            raise StoreUnavailableError(f"InfluxDB: {self._target.url} is away: {type(error).__name__}") from None
        return Sent(204, "", None)

    async def close(self) -> None:
        """See `Sender`."""
        # A write that was given up may hold the thread until its deadline; nobody waits for that.
        with trio.move_on_after(_CLOSE_S), suppress(Exception):  # what a pool says when it is thrown away is no news
            await trio.to_thread.run_sync(self._client.close, limiter=self._limiter, abandon_on_cancel=True)


def client_of(target: Target, timeout: httpx.Timeout | float = REQUEST_S) -> httpx.AsyncClient:
    """A client for one server; ``timeout`` is in seconds.

    It reads no environment: what is configured is what is called.
    """
    return httpx.AsyncClient(
        base_url=target.url,
        auth=target.authorization,
        headers=target.headers,
        timeout=timeout,
        trust_env=False,
    )


async def request(client: httpx.AsyncClient, method: str, path: str, **arguments: Any) -> httpx.Response:
    """One request under one deadline. Raises StoreUnavailableError when it is not answered."""
    with trio.move_on_after(REQUEST_S):
        return await patient_request(client, method, path, **arguments)
    raise StoreUnavailableError(f"InfluxDB: {client.base_url} is away: no answer within {REQUEST_S:g} s")


async def patient_request(client: httpx.AsyncClient, method: str, path: str, **arguments: Any) -> httpx.Response:
    """One request without a deadline but the client's own. Raises StoreUnavailableError when it is not answered."""
    try:
        return await client.request(method, path, **arguments)
    except (httpx.RequestError, httpx.InvalidURL, OSError) as error:
        # A refused connection has many words; its type says it in one.
        raise StoreUnavailableError(f"InfluxDB: {client.base_url} is away: {type(error).__name__}") from None


def _gzip(lines: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(lines) + packer.flush()
