"""What a bench found: one table of what is promised, the figures behind it below, and all of it as JSON."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import msgspec

# Name, floor, figure, its unit, bound, ratio, verdict.
_LINE: Final = "{:<46} {:>9} {:>9} {:<8}  {:<18} {:>6}  {}"


@dataclass(frozen=True)
class Figure:
    """One number. `bound` says what it must be, `held` whether it is; both None where nothing is promised.

    `floor` is what the same load costs where nothing but it is done, or where little of it is.
    """

    name: str
    value: float
    unit: str = ""
    bound: str | None = None
    held: bool | None = None
    floor: float | None = None
    ratio: float | None = None  # to the floor, where there is one, else to the bound


@dataclass
class Row:
    """One row of the promise, with what went wrong while measuring it; a problem fails the row."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str = "") -> None:
        """A figure that nothing is promised about."""
        self.figures.append(Figure(name, value, unit))

    def judge(
        self, name: str, value: float, unit: str, limit: float, *, least: bool = False, floor: float | None = None
    ) -> None:
        """A figure with a verdict: at most `limit`, or at least."""
        held = value >= limit if least else value <= limit
        bound = f"{'>=' if least else '<='} {_number(limit)} {unit}".rstrip()
        base = limit if floor is None else floor
        self.figures.append(Figure(name, value, unit, bound, held, floor, value / base if base else None))

    def judge_ratio(
        self, name: str, value: float, unit: str, floor: float, limit: float, *, least: bool = False
    ) -> None:
        """A figure whose ratio to its floor has a verdict; missed where one of both is not above 0."""
        ratio: float | None = None
        if value > 0 and floor > 0:
            ratio = value / floor
        else:  # a difference of two loads may be nothing but noise, and would keep any promise
            self.notes.append(f"{name}: {_number(value)} to {_number(floor)} {unit} is no ratio: measure for longer")
        held = ratio is not None and (ratio >= limit if least else ratio <= limit)
        self.figures.append(
            Figure(name, value, unit, f"{'>=' if least else '<='} {limit} of floor", held, floor, ratio)
        )

    @property
    def judged(self) -> bool:
        """There is something that it could have failed."""
        return bool(self.problems) or any(figure.held is not None for figure in self.figures)

    @property
    def held(self) -> bool:
        """Every bound held and nothing went wrong."""
        return not self.problems and all(figure.held is not False for figure in self.figures)


def _number(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def table(machine: dict[str, str], rows: list[Row]) -> str:
    """The whole report as text."""
    lines = [f"{key}: {value}" for key, value in machine.items()]
    if judged := [row for row in rows if row.judged]:
        lines += ["", _LINE.format("", "floor", "figure", "", "bound", "ratio", "verdict")]
        lines += [line for row in judged for line in _promised(row)]
        lines += ["", "ratio: to the floor where there is one, else to the bound"]
    for row in rows:
        lines += ["", *_detail(row)]
    return "\n".join(lines)


def _promised(row: Row) -> list[str]:
    """What is promised and what came."""
    lines = [f"{row.title}: {_verdict(held=row.held)}"]
    for each in row.figures:
        if each.held is not None:
            floor = "" if each.floor is None else _number(each.floor)
            ratio = "" if each.ratio is None else f"{each.ratio:.3g}"
            verdict = _verdict(held=each.held)
            lines.append(
                _LINE.format(f"  {each.name}", floor, _number(each.value), each.unit, each.bound or "", ratio, verdict)
            )
    if row.problems:
        lines.append(_LINE.format("  went wrong, see below", "", str(len(row.problems)), "", "= 0", "", "MISSED"))
    return lines


def _verdict(*, held: bool) -> str:
    return "held" if held else "MISSED"


def _detail(row: Row) -> list[str]:
    """One row with all that was measured."""
    lines = [f"{row.title}: {_verdict(held=row.held)}" if row.judged else row.title]
    width = max((len(figure.name) for figure in row.figures), default=0)
    for each in row.figures:
        bound = "" if each.held is None else f"   {'ok  ' if each.held else 'MISS'} {each.bound}"
        lines.append(f"  {each.name:<{width}}  {_number(each.value):>11} {each.unit:<8}{bound}".rstrip())
    lines += [f"  note: {note}" for note in row.notes]
    lines += [f"  PROBLEM: {problem}" for problem in row.problems]
    return lines


def write_json(path: Path, machine: dict[str, str], rows: list[Row]) -> None:
    """The same for programs; null is what was not measured."""
    found = {"machine": machine, "rows": [asdict(row) | {"held": row.held} for row in rows]}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
