"""Line plots as inline SVG: no script, no font and no host but the page's own."""

from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10
from typing import Final

WIDTH: Final = 560
HEIGHT: Final = 210
LEFT: Final = 58
RIGHT: Final = 10
TOP: Final = 10
BOTTOM: Final = 26
# Distinct in print and for colour-blind readers (Okabe and Ito).
COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Series:
    """One line: points (x in seconds, y), in order; None breaks the line."""

    name: str
    points: list[tuple[float, float | None]]


@dataclass(frozen=True)
class Plot:
    """Lines over the time of a run. `scale` turns y into what the axis shows, `bound` is a promise's."""

    title: str
    unit: str
    series: list[Series]
    scale: float = 1.0
    bound: float | None = None
    logarithmic: bool = False


def svg(plot: Plot, duration_s: float, bands: list[tuple[str, float, float]]) -> str:
    """The plot; `bands` (what, from, for) are times of faults. Empty when there is nothing to show."""
    values = [y * plot.scale for line in plot.series for _, y in line.points if y is not None and isfinite(y)]
    if not values:
        return ""
    axis = _Axis.over(values + ([plot.bound * plot.scale] if plot.bound is not None else []), plot.logarithmic)
    span = max([duration_s, *(x for line in plot.series for x, _ in line.points)])
    caption = f'{escape(plot.title)}<span class="unit">{escape(plot.unit)}</span>{_legend(plot)}'
    parts = [f"<figure><figcaption>{caption}</figcaption>"]
    parts.append(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">')
    for text, begin, length in bands:
        x = _x(begin, span)
        parts.append(
            f'<rect class="fault" x="{x:.1f}" y="{TOP}" width="{max(2.0, _x(begin + length, span) - x):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(text)}</title></rect>'
        )
    for value in axis.ticks:
        y = axis.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    for second in nice_steps(0, span, 6):
        x = _x(second, span)
        anchor = "middle" if x < WIDTH - RIGHT - 14 else "end"  # or the last one is cut off
        x = min(x, WIDTH - 2)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_time(second)}</text>')
    if span > duration_s:
        x = _x(duration_s, span)
        parts.append(f'<line class="end" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    if plot.bound is not None:
        y = axis.y(plot.bound * plot.scale)
        parts.append(f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="bound-text" x="{WIDTH - RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end">promised</text>'
        )
    for number, line in enumerate(plot.series):
        color = COLORS[number % len(COLORS)]
        parts.append(f'<path d="{_path(line, plot, axis, span)}" stroke="{color}" class="line"/>')
    parts.append("</svg></figure>")
    return "".join(parts)


def _legend(plot: Plot) -> str:
    if len(plot.series) < 2:
        return ""
    return "".join(
        f'<span class="key"><i style="background:{COLORS[number % len(COLORS)]}"></i>{escape(line.name)}</span>'
        for number, line in enumerate(plot.series)
    )


def _path(line: Series, plot: Plot, axis: "_Axis", span: float) -> str:
    words: list[str] = []
    pen_down = False
    for x, y in line.points:
        if y is None or not isfinite(y):
            pen_down = False
            continue
        words.append(f"{'L' if pen_down else 'M'}{_x(x, span):.1f} {axis.y(y * plot.scale):.1f}")
        # A lone point is a dot: the round cap of a line without length.
        if not pen_down:
            words.append("h0")
        pen_down = True
    return "".join(words)


def _x(second: float, span: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, second) / span


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[float]
    logarithmic: bool

    @classmethod
    def over(cls, values: list[float], logarithmic: bool) -> "_Axis":
        if logarithmic:
            positive = [value for value in values if value > 0] or [1.0]
            first, last = floor(log10(min(positive))), floor(log10(max(positive))) + 1
            return cls(10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1)], logarithmic=True)
        high = max([*values, 0.0]) or 1.0
        low = min([*values, 0.0])
        ticks = nice_steps(low, high * 1.05, 5)
        return cls(min(low, ticks[0]), max(high * 1.05, ticks[-1]), ticks, logarithmic=False)

    def y(self, value: float) -> float:
        height = HEIGHT - TOP - BOTTOM
        if self.logarithmic:
            share = log10(max(value, self.low) / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - height * share


def nice_steps(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = -(-low // step)
    count = int((high - first * step) / step + 1e-9) + 1
    return [round((first + number) * step, 10) for number in range(count)]


def _number(value: float) -> str:
    if value and abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _time(second: float) -> str:
    if second < 600:
        return f"{second:g} s"
    return f"{second / 60:g} min"
