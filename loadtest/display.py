"""How a run is shown while it goes, and its result as text: a live table on a terminal, plain lines elsewhere."""

import io
import math
import sys
from collections import deque
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtest import outputs
from loadtest.check import TOLD
from loadtest.durations import written
from loadtest.progress import Progress
from loadtest.promises import shown
from loadtest.result import ENDS, SHOWN, Result

# Seconds between two lines where nobody watches a table.
LINE_EVERY_S: Final = 5
ROWS: Final = 12


class PlainDisplay:
    """One line a step, and one every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last_s = -math.inf  # of the run whose line was the last

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def say(self, text: str) -> None:
        """See `progress.Display`."""
        outputs.say(text, self._out)

    def tick(self, news: Progress) -> None:
        """See `progress.Display`."""
        # The first at once: who waits sees that it works. Below 0, another run has begun: a search shows several.
        if not 0 <= news.offset_s - self._last_s < LINE_EVERY_S - 0.5:  # the news come once a second or so
            self._last_s = news.offset_s
            cells = zip(COLUMNS, _cells(news), strict=True)
            self.say("  " + "  ".join(f"{name} {cell}" for name, cell in cells))


class LiveDisplay:
    """A table that moves, with the last seconds in it."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out)
        self._rows: deque[list[str]] = deque(maxlen=ROWS)
        self._title = ""
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the table; the result follows."""
        self._live.stop()

    def say(self, text: str) -> None:
        """See `progress.Display`."""
        self._title = text
        self._console.print(text, highlight=False, markup=False)

    def tick(self, news: Progress) -> None:
        """See `progress.Display`."""
        self._rows.append(_cells(news))
        table = Table(title=Text(self._title), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for name in COLUMNS:
            # The last word of two is said by the unit, and 80 columns are few.
            table.add_column(name.split()[0] if name in LONG else name, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        self._live.update(table)


COLUMNS: Final = ("time", "at work", "events/s", "errors", "p50", "p99", "alerts p99", "lag", "daemon CPU", "memory")


LONG: Final = ("alerts p99", "daemon CPU")


def _cells(news: Progress) -> list[str]:
    tick = news.tick
    sample = news.monitor.samples[-1] if news.monitor.samples else None
    lag = "-" if sample is None or sample.lag_events is None else f"{sample.lag_events:,.0f}"
    cpu = "-" if sample is None or sample.cpu_cores is None else f"{sample.cpu_cores:.0%}"
    memory = "-" if sample is None or sample.rss_bytes is None else f"{sample.rss_bytes / 1e6:.0f} MB"
    return [
        f"{news.offset_s:.0f}/{news.duration_s:.0f} s",
        str(tick.at_work),
        f"{tick.acknowledged / max(0.1, tick.over_s):,.0f}",
        str(tick.errors),
        written(tick.post.percentile(50)) if tick.post.total else "-",
        written(tick.post.percentile(99)) if tick.post.total else "-",
        written(news.alerts.percentile(99)) if news.alerts.total else "-",
        lag,
        cpu,
        memory,
    ]


def display() -> PlainDisplay | LiveDisplay:
    """What fits stderr: the result alone is on stdout."""
    stderr = sys.stderr or io.StringIO()  # None: it was closed before we began
    return LiveDisplay(stderr) if stderr.isatty() else PlainDisplay(stderr)


def text(result: Result) -> str:
    """A result as lines."""
    events = result.events
    lines = [f"{result.scenario}: {result.verdict}"]
    lines += ["  " + ", ".join(f"{events[each]:,} {each}" for each in ENDS), "", "  promises"]
    lines += [
        f"    {'ok  ' if each.held else 'MISS'} {each.promise:<20} {each.measured}" for each in result.judgements
    ] or ["    none"]
    lines += ["", "  accounts"]
    for check in result.checks:
        state = "skip" if check.skipped else "ok  " if check.held else "FAIL"
        lines.append(f"    {state} {check.name}: {check.counted}{f' ({check.note})' if check.note else ''}")
        lines += [f"           {event_id}" for event_id in check.event_ids]
        if check.candidates:
            lines.append("           one or more of these:")
            lines += [f"           {event_id}" for event_id in check.candidates[:TOLD]]
            if check.more_suspects:
                lines.append(f"           or of {check.more_suspects:,} more: see --json")
    lines += ["", "  figures"]
    lines += [
        f"    {name:<14} {shown(name, result.figures[name])}" for name in SHOWN if result.figures.get(name) is not None
    ]
    if result.errors_by_kind:
        lines += ["", "  errors"]
        lines += [f"    {times:>8,}  {kind}" for kind, times in sorted(result.errors_by_kind.items())]
    lines += [""] + [f"  note: {note}" for note in result.notes]
    return "\n".join(lines)
