"""Times as people write them: `100ms`, `2.5s`, `10m`, `1h`."""

import re
from typing import Final

from loadtest.errors import UsageError

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_WRITTEN: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)?")


def seconds(text: str, what: str = "") -> float:
    """So many seconds; a bare number is seconds. UsageError for anything else, which names `what` it was to be."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{what and f'{what}: '}not a duration: {text!r} (write 100ms, 2.5s, 10m or 1h)")
    return float(found[1]) * _UNITS[found[2] or "s"]


def written(value: float) -> str:
    """Seconds for people, in the unit that fits."""
    if value < 0:  # a slope's
        return f"-{written(-value)}"
    if value == 0:
        return "0 ms"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 600 else f"{value / 60:.3g} min"
