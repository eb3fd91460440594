"""``POST /api/v1/events``: the hot path. 202 only after the commit that holds the events."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

import msgspec
import structlog

from engine.clock import WallClock
from engine.decode import Decoded, Rejected, decode_body
from engine.errors import MalformedError, OverLimitError, TooManyEventsError, UnavailableError
from engine.measures import Histograms
from engine.ports import Intake

from .inflate import InflatedTooLargeError, gunzip
from .messages import CORS, PREFLIGHT, Request, answer, date_line, error, internal

PATH: Final = b"/api/v1/events"
_JSON: Final = b"application/json"
_NDJSON: Final = b"application/x-ndjson"
_encode: Final = msgspec.json.Encoder().encode

# Takes the whole answer to one request, as bytes.
Reply: TypeAlias = Callable[[bytes], None]

log = structlog.get_logger("ingest")

_ONE: Final = [True]


class _RefusedError(Exception):
    """The whole request is answered with this error."""

    def __init__(self, status: int, code: str, message: str, headers: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class _Awaited(msgspec.Struct, frozen=True):
    """What the answer to a request needs that waits for its commit."""

    events: int
    rejected: list[Rejected]
    single: str | None  # the event's id, where the body was one object
    keep_alive: bool
    reply: Reply
    began: float  # of the monotonic clock, in seconds


class Ingest:
    """Answers requests for the ingest endpoint, through ``reply``: a POST when its commit is on the disk."""

    def __init__(
        self,
        intake: Intake,
        *,
        max_events: int,
        max_body_bytes: int,
        clock: WallClock,
        times: Histograms | None = None,
    ) -> None:
        self._intake = intake
        self._max_events = max_events
        self.max_body_bytes = max_body_bytes  # may be changed while it runs
        self._clock = clock
        self._date = b""
        self._one = b""
        self._times = Histograms() if times is None else times
        self._route = PATH.decode()
        self._accepted = self._times.of(self._route, "202")
        self.rejected = self.refused = 0  # events since the start: not valid, or not taken now

    def take(self, request: Request, reply: Reply) -> bool:
        """Take one request; False: it is for another. ``reply`` is called once with the whole answer, now or later."""
        if request.target != PATH and request.path != PATH:  # noqa: PLR1714 - the path is made only when it is needed
            return False
        try:
            if request.method == b"POST":
                self._post(request, reply)
            elif request.method == b"OPTIONS":
                reply(answer(204, headers=PREFLIGHT, keep_alive=request.keep_alive))
            else:
                reply(_error(request, 405, "method_not_allowed", "POST events here", b"allow: POST, OPTIONS\r\n"))
        except Exception:
            log.exception("ingest failed")
            reply(internal(request, CORS))
        return True

    def _post(self, request: Request, reply: Reply) -> None:
        began = monotonic()
        kind = request.content_type or _JSON
        body = request.body
        try:
            if kind != _JSON:
                kind = _media_type(kind)
            if request.content_encoding is not None:
                body = self._inflated(request.content_encoding, body)
            decoded = decode_body(body, ndjson=kind == _NDJSON, received_at=self._clock(), max_events=self._max_events)
        except _RefusedError as fault:
            self._tell(reply, began, _error(request, fault.status, fault.code, str(fault), fault.headers))
        except MalformedError as fault:
            self._tell(reply, began, _error(request, 400, "malformed", str(fault)))
        except TooManyEventsError as fault:
            self._tell(reply, began, _error(request, 413, "too_many_events", str(fault)))
        else:
            self._accept(decoded, request, reply, began)

    def _accept(self, decoded: Decoded, request: Request, reply: Reply, began: float) -> None:
        """Hand the events on, if there are any; the answer comes when they are durable."""
        if not decoded.events:
            self.rejected += len(decoded.rejected)
            refusal = _encode(_refusal(decoded))
            self._tell(reply, began, answer(422, refusal, headers=CORS, keep_alive=request.keep_alive))
            return

        # Only this is kept until the commit: request and body are let go while the processor's cache holds them.
        awaited = _Awaited(
            len(decoded.events),
            decoded.rejected,
            decoded.events[0].event_id if decoded.single else None,
            request.keep_alive,
            reply,
            began,
        )
        settle = partial(self._settle, awaited)
        try:
            self._intake.accept(decoded.events, settle)
        except OverLimitError as fault:
            self._accept(decoded.without(fault.refused), request, reply, began)
        except UnavailableError as fault:
            settle(fault)

    def _settle(self, awaited: "_Awaited", outcome: list[bool] | UnavailableError) -> None:
        """Answer a request whose commit is over."""
        if outcome == _ONE and awaited.single is None and not awaited.rejected and awaited.keep_alive:
            awaited.reply(self._one_accepted())
            self._accepted.observe(monotonic() - awaited.began)
        elif isinstance(outcome, UnavailableError):
            self.refused += awaited.events
            retry_after = b"retry-after: %d\r\n" % outcome.retry_after_s
            refusal = error(503, "unavailable", str(outcome), headers=retry_after + CORS, keep_alive=awaited.keep_alive)
            self._tell(awaited.reply, awaited.began, refusal)
        else:
            self.rejected += len(awaited.rejected)
            body = _encode(_receipt(outcome, awaited.rejected, awaited.single))
            receipt = answer(202, body, headers=CORS, keep_alive=awaited.keep_alive)
            self._tell(awaited.reply, awaited.began, receipt)

    def _inflated(self, coding: bytes, body: bytes) -> bytes:
        name = coding.strip().lower()
        if name in (b"identity", b""):
            return body
        if name not in (b"gzip", b"x-gzip"):
            # What would be understood is named beside it (RFC 9110 section 12.5.3).
            message = "content-encoding must be gzip, or none"
            raise _RefusedError(415, "unsupported_encoding", message, b"accept-encoding: gzip\r\n")
        try:
            return gunzip(body, self.max_body_bytes)
        except InflatedTooLargeError:
            message = f"the body is inflated larger than http.max_body_bytes ({self.max_body_bytes})"
            raise _RefusedError(413, "body_too_large", message) from None

    def _tell(self, reply: Reply, began: float, data: bytes) -> None:
        """Any answer but the most frequent."""
        reply(data)
        self._times.of(self._route, data[9:12].decode()).observe(monotonic() - began)

    def _one_accepted(self) -> bytes:
        """The most frequent answer by far, as real clients send one event in an array; it changes with its date."""
        date = date_line()
        if date is not self._date:
            self._date = date
            self._one = answer(202, _encode(_receipt(_ONE, [], None)), headers=CORS)
        return self._one


def _media_type(header: bytes) -> bytes:
    """The media type without its parameters."""
    kind = header.partition(b";")[0].strip().lower() or _JSON
    if kind not in (_JSON, _NDJSON):
        message = "content-type must be application/json or application/x-ndjson"
        raise _RefusedError(415, "unsupported_media_type", message)
    return kind


def _error(request: Request, status: int, code: str, message: str, headers: bytes = b"") -> bytes:
    with_body = request.method != b"HEAD"
    return error(status, code, message, headers=headers + CORS, keep_alive=request.keep_alive, with_body=with_body)


def _receipt(fresh: list[bool], rejected: list[Rejected], single: str | None) -> dict[str, Any]:
    accepted = sum(fresh)
    receipt: dict[str, Any] = {
        "status": "received",
        "accepted": accepted,
        "duplicates": len(fresh) - accepted,
        "rejected": rejected,
    }
    if single is not None:
        receipt["event_id"] = single
    return receipt


def _refusal(decoded: Decoded) -> dict[str, Any]:
    first = f": {decoded.rejected[0].error}" if decoded.rejected else ": the body holds none"
    return {
        "error": {"code": "no_valid_event", "message": f"no event could be taken{first}"},
        "rejected": decoded.rejected,
    }
