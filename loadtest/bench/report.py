"""What a bench found: one table of what is promised, the figures behind it below, and all of it as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path


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
        """A figure whose ratio to its floor has a verdict."""
        ratio = value / floor
        held = ratio >= limit if least else ratio <= limit
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
    lines += ["", *_promised(rows), "", "ratio: to the floor where there is one, else to the bound"]
    for row in rows:
        lines += ["", *_detail(row)]
    return "\n".join(lines)


def _promised(rows: list[Row]) -> list[str]:
    """What is promised and what came, in columns."""
    cells = [("", "floor", "figure", "", "bound", "ratio", "verdict")]
    for row in rows:
        if not row.judged:
            continue
        cells.append((row.title, "", "", "", "", "", "" if row.held else "MISSED"))
        for each in row.figures:
            if each.held is None:
                continue
            floor = "" if each.floor is None else _number(each.floor)
            ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
            verdict = "held" if each.held else "MISSED"
            cells.append((f"  {each.name}", floor, _number(each.value), each.unit, each.bound or "", ratio, verdict))
        cells += [("  went wrong, see below", "", str(len(row.problems)), "", "= 0", "", "MISSED")] * bool(row.problems)
    # Titles may run on over the columns, which are empty there.
    widths = [max(len(cell) for cell in column) for column in zip(*(each for each in cells if each[4]), strict=True)]
    lines = []
    for name, floor, figure, unit, bound, ratio, verdict in cells:
        columns = (f"{floor:>{widths[1]}}", f"{figure:>{widths[2]}} {unit:<{widths[3]}}", f"{bound:<{widths[4]}}")
        text = "  ".join((f"{name:<{widths[0]}}", *columns, f"{ratio:>{widths[5]}}", verdict))
        lines.append(text.rstrip() if bound else name if not verdict else f"{name}: {verdict}")
    return lines


def _detail(row: Row) -> list[str]:
    """One row with all that was measured."""
    lines = [f"{row.title}: {'HELD' if row.held else 'MISSED'}" if row.judged else row.title]
    width = max((len(figure.name) for figure in row.figures), default=0)
    for each in row.figures:
        bound = "" if each.held is None else f"   {'ok  ' if each.held else 'MISS'} {each.bound}"
        lines.append(f"  {each.name:<{width}}  {_number(each.value):>11} {each.unit:<8}{bound}".rstrip())
    lines += [f"  note: {note}" for note in row.notes]
    lines += [f"  PROBLEM: {problem}" for problem in row.problems]
    return lines


def write_json(path: Path, machine: dict[str, str], rows: list[Row]) -> None:
    """The same for programs."""
    found = {"machine": machine, "rows": [asdict(row) | {"held": row.held} for row in rows]}
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
