"""JSON text in and out, with what no store can hold put right: NUL, lone surrogates, numbers past a double."""

import json
import re
from math import isfinite
from typing import Any, Final, NoReturn

import msgspec

from engine.errors import MalformedError

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class _NoConstantError(ValueError):
    """NaN or an infinity, which Python's decoder would take."""


def decode_json(body: bytes) -> Any:
    """Decode JSON. What the fast decoder refuses (lone surrogates, numbers past a double) the standard one settles."""
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        if type(fault) is msgspec.DecodeError and b"\\u" not in body:
            # The standard decoder would say the same, for a body of 1 MiB after 0.1 s.
            raise MalformedError(f"not JSON: {fault}") from None
        try:
            document = json.loads(decode_utf8(body), parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise MalformedError(f"not JSON: {error}") from None
        except _NoConstantError as error:
            raise MalformedError(f"not JSON: {error}") from None
        except ValueError:
            raise MalformedError("a number has thousands of digits") from None
        except RecursionError:
            raise MalformedError("nested too deeply") from None
    except RecursionError:
        raise MalformedError("nested too deeply") from None
    # NUL and surrogates can only come as \u escapes, so most bodies need no second look.
    if b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body:
        try:
            return _scrub(document)
        except RecursionError:
            raise MalformedError("nested too deeply") from None
    return document


def decode_utf8(body: bytes) -> str:
    """Raises MalformedError where it is none."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8 at byte {error.start}") from None


def _no_constant(name: str) -> NoReturn:
    raise _NoConstantError(f"{name} is not a JSON value")


def _scrub(value: Any) -> Any:
    """Replace what no store can hold: NUL and lone surrogates."""
    if type(value) is str:
        return _SURROGATE.sub("\ufffd", value.replace("\0", "\u2400"))
    if type(value) is list:
        return [_scrub(item) for item in value]
    if type(value) is dict:
        return {_scrub(key): _scrub(item) for key, item in value.items()}
    return value


def encode_json(value: dict[str, Any], most: int) -> bytes:
    """Compact JSON. Raises MalformedError for what JSON cannot say, or PostgreSQL not read back.

    What comes out longer than ``most`` is not looked through: 349,000 values of 1 MiB took 80 ms.
    """
    try:
        text = _encode(value)
        finite = len(text) > most or _finite(value)
    except RecursionError:
        raise MalformedError("nested too deeply") from None
    except OverflowError:  # integers past 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if not finite:
        raise MalformedError("a number in it is out of range")
    return text


def _finite(value: Any) -> bool:
    """Whether every number in it is finite; JSON such as 1e999 decodes to infinity, which JSON cannot say back."""
    if type(value) is float:
        return isfinite(value)
    if type(value) is dict:
        return all(_finite(item) for item in value.values())
    if type(value) is list:
        return all(_finite(item) for item in value)
    return True
