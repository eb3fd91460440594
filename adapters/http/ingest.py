"""``POST /api/v1/events``: the hot path. 202 only after the commit that holds the events."""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from engine.clock import WallClock
from engine.decode import Decoded, decode_body
from engine.errors import MalformedError, TooManyEventsError, UnavailableError
from engine.ports import Intake

from .messages import CORS, PREFLIGHT, Request, answer, error

PATH: Final = b"/api/v1/events"
_JSON: Final = b"application/json"
_NDJSON: Final = b"application/x-ndjson"
_ALLOW: Final = b"allow: POST, OPTIONS\r\n" + CORS
_encode: Final = msgspec.json.Encoder().encode


class Ingest:
    """Answers requests for the ingest endpoint."""

    def __init__(self, intake: Intake, *, max_events: int, clock: WallClock) -> None:
        self._intake = intake
        self._max_events = max_events
        self._clock = clock

    async def __call__(self, request: Request) -> bytes:
        """The whole answer, as bytes."""
        keep = request.keep_alive
        if request.method == b"OPTIONS":
            return answer(HTTPStatus.NO_CONTENT, headers=PREFLIGHT, keep_alive=keep)
        if request.method != b"POST":
            return error(405, "method_not_allowed", "POST events here", headers=_ALLOW, keep_alive=keep)
        ndjson = False
        for name, value in request.headers:
            if name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
                ndjson = kind == _NDJSON
                if not ndjson and kind not in (_JSON, b""):
                    message = "content-type must be application/json or application/x-ndjson"
                    return error(415, "unsupported_media_type", message, headers=CORS, keep_alive=keep)
            elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
                message = "content-encoding is not understood; send the body as it is"
                return error(415, "unsupported_encoding", message, headers=CORS, keep_alive=keep)
        try:
            decoded = decode_body(request.body, ndjson=ndjson, received_at=self._clock(), max_events=self._max_events)
            if not decoded.events:
                return answer(422, _encode(_refusal(decoded)), headers=CORS, keep_alive=keep)
            fresh = await self._intake.accept(decoded.events)
        except MalformedError as fault:
            return error(400, "malformed", str(fault), headers=CORS, keep_alive=keep)
        except TooManyEventsError as fault:
            return error(413, "too_many_events", str(fault), headers=CORS, keep_alive=keep)
        except UnavailableError as fault:
            headers = b"retry-after: %d\r\n" % fault.retry_after_s + CORS
            return error(503, "unavailable", str(fault), headers=headers, keep_alive=keep)
        return answer(202, _encode(_receipt(decoded, fresh)), headers=CORS, keep_alive=keep)


def _receipt(decoded: Decoded, fresh: list[bool]) -> dict[str, Any]:
    accepted = sum(fresh)
    receipt: dict[str, Any] = {
        "status": "received",
        "accepted": accepted,
        "duplicates": len(fresh) - accepted,
        "rejected": decoded.rejected,
    }
    if decoded.single:
        receipt["event_id"] = decoded.events[0].event_id
    return receipt


def _refusal(decoded: Decoded) -> dict[str, Any]:
    first = f": {decoded.rejected[0].error}" if decoded.rejected else ": the body holds none"
    return {
        "error": {"code": "no_valid_event", "message": f"no event could be taken{first}"},
        "rejected": decoded.rejected,
    }
