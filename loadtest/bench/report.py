"""What a bench found: figures with their bounds, as a table for people and as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One number. `bound` says what it must be, `held` whether it is; both None where nothing is promised."""

    name: str
    value: float
    unit: str = ""
    bound: str | None = None
    held: bool | None = None


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

    def judge(self, name: str, value: float, unit: str = "", *, bound: str, held: bool) -> None:
        """A figure with a verdict."""
        self.figures.append(Figure(name, value, unit, bound, held))

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
    for row in rows:
        verdict = "HELD" if row.held else "MISSED"
        lines += ["", f"{row.title}: {verdict}" if row.judged else row.title]
        width = max((len(figure.name) for figure in row.figures), default=0)
        for figure in row.figures:
            bound = "" if figure.held is None else f"   {'ok  ' if figure.held else 'MISS'} {figure.bound}"
            lines.append(f"  {figure.name:<{width}}  {_number(figure.value):>11} {figure.unit:<8}{bound}".rstrip())
        lines += [f"  note: {note}" for note in row.notes]
        lines += [f"  PROBLEM: {problem}" for problem in row.problems]
    return "\n".join(lines)


def write_json(path: Path, machine: dict[str, str], rows: list[Row]) -> None:
    """The same for programs."""
    found = {"machine": machine, "rows": [asdict(row) | {"held": row.held} for row in rows]}
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
