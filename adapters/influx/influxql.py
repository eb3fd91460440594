"""InfluxQL over ``/query``, which InfluxDB 1.x, 2.x and 3.x answer, as rows; errors become ours.

Values that a client chose are bound (``params``, InfluxDB 1.6's documentation, "Bind parameters"), never pasted:
who writes a statement here puts names and numbers of this program into it, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import httpx
import msgspec
import trio

from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.measures import Histograms

from .senders import client_of, patient_request
from .target import Target

# Seconds: until a server that does not answer a connect counts as away; and until a query is given up.
_CONNECT_S: Final = 5.0
_PATIENCE_S: Final = 30.0
# The metrics' name for where these queries go.
_DATABASE: Final = "influxdb"
_NOT_EXECUTED: Final = "not executed"
_TEXT_SHOWN: Final = 200  # characters of what the server says

_encode: Final = msgspec.json.Encoder().encode

Bound: TypeAlias = Mapping[str, str | int]


class _Series(msgspec.Struct, gc=False):
    columns: list[str]
    tags: dict[str, str] = {}
    values: list[list[Any]] = []


class _Result(msgspec.Struct, gc=False):
    series: list[_Series] = []
    error: str | None = None
    partial: bool = False


class _Answer(msgspec.Struct, gc=False):
    results: list[_Result] = []
    error: str | None = None


_decode: Final = msgspec.json.Decoder(_Answer).decode


class Point(msgspec.Struct, gc=False):
    """One row of a result: the tags that it was grouped by, its time, and the columns after it."""

    tags: dict[str, str]
    time: int  # ns since the epoch
    values: list[Any]


class InfluxQl:
    """One database of a server."""

    def __init__(self, target: Target, times: Histograms | None = None) -> None:
        """``times`` gets how long queries take."""
        self._times = (times or Histograms()).of(_DATABASE, "select")
        database, _, policy = target.bucket.partition("/") if target.api == "v1" else (target.bucket, "", "")
        self._place = {"db": database} | ({"rp": policy} if policy else {})
        self._client = client_of(target, httpx.Timeout(None, connect=_CONNECT_S))

    async def query(self, *statements: str, bound: Bound) -> list[list[Point]]:
        """Run statements; returns the points of each. ``bound``: the values of ``$name`` in them.

        Raises StoreUnavailableError, for one that takes too long too; StoreRefusedError where trying again is no use.
        """
        with trio.move_on_after(_PATIENCE_S):
            return await self._ask(statements, bound)
        raise StoreUnavailableError(f"InfluxDB: the query took longer than {_PATIENCE_S:.0f} s: ask for less")

    async def _ask(self, statements: Sequence[str], bound: Bound) -> list[list[Point]]:
        form = {
            **self._place,
            "epoch": "ns",
            "q": ";".join(statements),
            "params": _encode(bound).decode(),
        }
        began = trio.current_time()
        try:
            answer = await patient_request(self._client, "POST", "/query", data=form)
        finally:
            self._times.observe(trio.current_time() - began)  # failures too: who looks wants to see a time-out
        try:
            results = _results(answer)
        except StoreUnavailableError as error:
            # The fault of the first of several statements is told under this name (InfluxDB 1.6); alone it says more.
            if len(statements) > 1 and _NOT_EXECUTED in str(error):
                await self._ask(statements[:1], bound)
            raise
        if len(results) != len(statements):
            raise StoreUnavailableError("InfluxDB: the answer is not complete")
        return [list(_points(result)) for result in results]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


def _results(answer: httpx.Response) -> list[_Result]:
    """What the server found. Raises what stands for its errors."""
    status = answer.status_code
    try:
        content = _decode(answer.content)
    except msgspec.DecodeError:
        content = _Answer(error=answer.text)
    if status in (401, 403, 404):
        raise StoreRefusedError(f"InfluxDB refuses the query ({status}): {_shown(content.error)}")
    if status != 200 or content.error is not None:
        raise StoreUnavailableError(f"InfluxDB: {status}: {_shown(content.error)}")
    for result in content.results:
        if result.error is not None:
            kind = StoreRefusedError if "not found" in result.error else StoreUnavailableError
            raise kind(f"InfluxDB: {_shown(result.error)}")
    if any(result.partial for result in content.results):
        raise StoreUnavailableError("InfluxDB cut the answer short: raise its max-row-limit")
    return content.results


def _points(result: _Result) -> Iterator[Point]:
    for series in result.series:
        for time, *values in series.values:
            yield Point(series.tags, time, values)


def _shown(text: str | None) -> str:
    return " ".join((text or "no reason given").split())[:_TEXT_SHOWN]
