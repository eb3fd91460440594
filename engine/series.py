"""Time series as queries ask for them: buckets of the clock, groups, and how a summary is made of a store's figures.

Stores answer with what they have (`Activity`, `Errors`, `CellWork`); what they do not have is filled in here, so that
two stores with the same rows give the same answer.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args

from engine.clock import rfc3339
from engine.errors import TooLargeError
from engine.view import progress_of

# What a series may be grouped by; "none": one series of all.
By: TypeAlias = Literal["user_id", "notebook_path", "none"]
GROUPS: Final[tuple[str, ...]] = get_args(By)
# A chart has some hundred points across. A week in hours is 169, a day in minutes 1,441.
MAX_BUCKETS: Final = 1500
# Buckets of all groups of an answer, about 80 bytes of JSON each.
MAX_POINTS: Final = 50_000
# Stores keep events for `retention.events_days`, 400 by default; more than ten years are a slip of the pen.
MAX_DURATION_MS: Final = 3660 * 86_400_000

# Durations of a run that are longer (in ms, 30,000 years) count as not told: two of 1e308 have no mean.
MAX_RUN_MS: Final = 1e15

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
DURATION: Final = re.compile(r"[1-9][0-9]{0,8}[smhdw]")


def parse_duration(text: str) -> int:
    """Milliseconds of ``10m``: a whole number from 1 on and one of s, m, h, d, w. Raises ValueError."""
    if DURATION.fullmatch(text) is None:
        raise ValueError(text)
    duration = int(text[:-1]) * _UNITS_MS[text[-1]]
    if duration > MAX_DURATION_MS:
        raise ValueError(text)
    return duration


class Window(NamedTuple):
    """The buckets of a series: [start, start + every), … up to ``end``. All in ms, at multiples of ``every``."""

    start: int
    end: int
    every: int

    @classmethod
    def until(cls, now: int, since: int, every: int) -> "Window":
        """From the bucket that holds ``now - since`` to the one that holds ``now``, both whole.

        Raises TooLargeError when these are too many buckets.
        """
        start = (now - since) // every * every
        end = (now // every + 1) * every
        if (buckets := (end - start) // every) > MAX_BUCKETS:
            raise TooLargeError(f"{buckets} buckets are more than {MAX_BUCKETS}: ask for a longer every or less since")
        return cls(start, end, every)

    @property
    def starts(self) -> range:
        """Where the buckets start."""
        return range(self.start, self.end, self.every)

    @property
    def max_groups(self) -> int:
        """With more groups the answer would have more than `MAX_POINTS`."""
        return MAX_POINTS // len(self.starts)


class Activity(NamedTuple):
    """Executions of a group in a bucket, at least one. ``group`` is "" where all are one."""

    group: str
    start: int  # ms
    executions: int
    timed: int  # of which told how long they took
    total_ms: float  # those together


class Errors(NamedTuple):
    """Errors and executions of a group in a bucket, at least one of either."""

    group: str
    start: int  # ms
    executions: int
    errors: int


class CellWork(NamedTuple):
    """What a class did with one cell of a notebook."""

    cell_index: int
    students: int
    executions: int
    errors: int
    median_ms: float | None  # of executions that told how long they took; halfway between two in the middle


class _Row(Protocol):
    @property
    def group(self) -> str: ...

    @property
    def start(self) -> int: ...


Row = TypeVar("Row", bound=_Row)


def activity_series(rows: Iterable[Activity], window: Window, by: By) -> list[dict[str, Any]]:
    """Every group with every bucket, as the API answers."""

    def bucket(row: Activity | None) -> dict[str, Any]:
        if row is None:
            return {"executions": 0, "mean_duration_ms": None}
        return {"executions": row.executions, "mean_duration_ms": row.total_ms / row.timed if row.timed else None}

    return [
        _named(by, group, [{"start": start, **bucket(row)} for start, row in buckets])
        for group, buckets in _filled(rows, window, by)
    ]


def errors_series(rows: Iterable[Errors], window: Window, by: By) -> list[dict[str, Any]]:
    """The same for errors. ``rate`` is errors over executions; above 1 where clients report errors beside runs."""

    def bucket(row: Errors | None) -> dict[str, Any]:
        if row is None:
            return {"executions": 0, "errors": 0, "rate": None}
        rate = row.errors / row.executions if row.executions else None
        return {"executions": row.executions, "errors": row.errors, "rate": rate}

    return [
        _named(by, group, [{"start": start, **bucket(row)} for start, row in buckets])
        for group, buckets in _filled(rows, window, by)
    ]


def _filled(rows: Iterable[Row], window: Window, by: By) -> list[tuple[str, list[tuple[str, Row | None]]]]:
    """Per group, in their order, each bucket's start (RFC 3339) and its row. One group is always there for "none"."""
    starts = [(start, rfc3339(start)) for start in window.starts]
    grouped = {group: {row.start: row for row in found} for group, found in groupby(_ordered(rows), lambda r: r.group)}
    if by == "none":
        grouped.setdefault("", {})
    if len(grouped) > window.max_groups:
        raise too_many_groups(window)
    return [(group, [(text, found.get(start)) for start, text in starts]) for group, found in grouped.items()]


def _ordered(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.group, row.start))


def _named(by: By, group: str, buckets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"buckets": buckets} if by == "none" else {by: group, "buckets": buckets}


def too_many_groups(window: Window) -> TooLargeError:
    """What a store raises that finds more than ``window.max_groups``."""
    return TooLargeError(
        f"more than {window.max_groups} groups of {len(window.starts)} buckets each: "
        "ask for a longer every, less since, or by=none"
    )


def notebook_summary(done: Mapping[int, int], cells: Iterable[CellWork], total: int) -> dict[str, Any]:
    """The contract's notebook summary of rows.

    ``done``: how many students are through with how many cells (by index, the last run succeeded), 0 among them;
    ``total``: the notebook's cells as stored, 0 when that is not known.
    `engine.notebook` makes the same of live states, with each student's last duration in place of all.
    """
    found = sorted(cells)
    total = total or max((cell.cell_index + 1 for cell in found), default=0)
    students = sum(done.values())
    progress = sum(progress_of(count, total) * times for count, times in done.items())
    return {
        "total_students": students,
        "avg_progress": round(progress / students, 4) if students else 0.0,
        "total_cells": total,
        "cells": [
            {
                "cell_index": cell.cell_index,
                "students": cell.students,
                "executions": cell.executions,
                "errors": cell.errors,
                "median_duration_ms": cell.median_ms,
            }
            for cell in found
        ],
    }
