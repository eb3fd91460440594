"""How many of a run's people are at work, over time: ramp, hold, step and spike, one after the other.

`ramp:10s hold:50s` brings everybody in within 10 s and keeps them for 50. A level in percent may follow:
`ramp:10s@50% spike:5s hold:20s` goes to half, then to everybody for 5 s, then back to half.
"""

from dataclasses import dataclass
from typing import Final

from loadtest import durations
from loadtest.errors import UsageError

_KINDS: Final = ("ramp", "hold", "step", "spike")


@dataclass(frozen=True)
class Span:
    """When somebody is at work, in seconds since the run began."""

    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Shape:
    """The share at work, as corners (seconds, share from 0 to 1) with straight lines between."""

    corners: tuple[tuple[float, float], ...]

    @property
    def duration_s(self) -> float:
        """From the begin to the last corner."""
        return self.corners[-1][0]

    def lasting(self, duration_s: float) -> "Shape":
        """The same over another time: a longer one holds the end for longer, a shorter one is pressed together."""
        *before, (_, level) = self.corners
        if duration_s > self.duration_s and before[-1][1] == level:
            return Shape((*before, (duration_s, level)))
        factor = duration_s / self.duration_s
        return Shape(tuple((time * factor, level) for time, level in self.corners))

    def spans(self, index: int, people: int) -> list[Span]:
        """When the person with that index is at work: while more than `index` of `people` are.

        On a ramp people come one by one, evenly; at a jump they all come at once.
        """
        threshold = (index + 0.5) / people
        spans: list[Span] = []
        since: float | None = None
        (time, level), *rest = self.corners
        if level > threshold:
            since = time
        for next_time, next_level in rest:
            if (level > threshold) != (next_level > threshold):
                crossing = time + (next_time - time) * (threshold - level) / (next_level - level)
                if since is None:
                    since = crossing
                else:
                    spans.append(Span(since, crossing))
                    since = None
            time, level = next_time, next_level
        if since is not None:
            spans.append(Span(since, time))
        return spans


def parse(text: str) -> Shape:
    """A shape as people write it; UsageError says what is wrong."""
    corners: list[tuple[float, float]] = [(0.0, 0.0)]
    for word in text.replace(",", " ").split():
        kind, colon, rest = word.partition(":")
        length, _, level_text = rest.partition("@")
        if kind not in _KINDS or not colon:
            raise UsageError(f"shape: expected ramp:…, hold:…, step:… or spike:…, got {word!r}")
        length_s = durations.seconds(length)
        time, level = corners[-1]
        if kind == "hold" and not level_text:
            target = level if len(corners) > 1 else 1.0
        else:
            target = _level(level_text or "100%")
        if kind != "ramp" and target != level:
            corners.append((time, target))
        corners.append((time + length_s, target))
        if kind == "spike":
            corners.append((time + length_s, level))
    if corners[-1][0] <= 0:
        raise UsageError(f"shape: {text!r} lasts no time")
    return Shape(tuple(corners))


def _level(text: str) -> float:
    try:
        level = float(text.removesuffix("%")) / 100
    except ValueError:
        level = -1
    if not text.endswith("%") or not 0 <= level <= 1:
        raise UsageError(f"shape: a level is 0% to 100%, got {text!r}")
    return level
