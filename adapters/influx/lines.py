r"""Line protocol: events and samples as points, in InfluxDB's text format.

The format: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/. What is escaped, and how, is what
`influxdb_client.Point` does (a test compares them); tags and fields are in alphabetical order, as there. Written out by
hand because it is several times as fast, and every cell event passes here.

What a tag cannot hold is written another way: line breaks and tabs as ``\n``, ``\r``, ``\t`` in two characters, and
a backslash at its end is followed by a space. `stored_tag` tells how a text will read.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from engine.event import CELL_TYPES, Event, PackedCommit
from engine.ports import Sample
from engine.samples import CELL_TYPE

# Names of students, notebooks and cells that are kept escaped: a class's worth of each; more are escaped again.
_KEPT: Final = 16_384
_NS_PER_MS: Final = 1_000_000

_SPECIAL: Final = re.compile(r"[,= \n\r\t]|\\\Z")
_IN_TAG: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\t": r"\t", "\r": r"\r"})


def cell_lines(commits: Iterable[PackedCommit], *, index_is_tag: bool) -> list[str]:
    """A line for each cell event of the commits; other events have none."""
    return [
        cell_line(event, seq, index_is_tag=index_is_tag)
        for commit in commits
        for seq, event in enumerate(commit.unpack().events, commit.first_seq)
        if event.event_type in CELL_TYPES
    ]


def cell_line(event: Event, seq: int, *, index_is_tag: bool) -> str:
    """A point of ``cell_executions``.

    Its time is the event's millisecond, and ``seq`` modulo 10^6 as nanoseconds: written again it is the same point,
    and two events of one millisecond are two points. ``has_error`` is always there (a point needs a field, and queries
    count it); it is true of every `execution_error`.
    """
    index = event.cell_index
    fields, cell = "", ""
    if index is not None:
        if index_is_tag:
            cell = f",cell_index={index}"
        else:
            fields = f"cell_index={index}i,"
    if event.error_message is not None:
        message = event.error_message.replace("\\", r"\\").replace('"', r"\"")  # `translate` takes ten times as long
        fields += f'error_message="{message}",'
    if event.execution_count is not None:
        fields += f"execution_count={event.execution_count}i,"
    if event.execution_duration_ms is not None:
        fields += f"execution_duration_ms={_number(event.execution_duration_ms)},"
    tags = _cell_tags(event.class_id, event.event_type, event.notebook_path or "", event.user_id)
    failed = "true" if event.failed else "false"
    return f"cell_executions{cell}{tags} {fields}has_error={failed} {event.time * _NS_PER_MS + seq % _NS_PER_MS}"


@lru_cache(_KEPT)
def _cell_tags(class_id: str, event_type: str, notebook_path: str, user_id: str) -> str:
    """All but the cell's, of which there are many more: a student's next event has the same as a rule."""
    return (
        f"{_tag('class_id', class_id)}{_tag('event_type', event_type)}"
        f"{_tag('notebook_path', notebook_path)}{_tag('user_id', user_id)}"
    )


def sample_lines(samples: Iterable[Sample]) -> list[str]:
    """Points of ``learning_progress`` and, where a cell has run, of ``performance_metrics``."""
    lines = []
    for sample in samples:
        place = f"{_tag('notebook_path', sample.notebook_path)}{_tag('user_id', sample.user_id)}"
        class_id = _tag("class_id", sample.class_id)
        at = sample.time * _NS_PER_MS
        lines.append(
            f"learning_progress{class_id}{place} completed_cells={sample.completed_cells}i,"
            f"progress_percentage={_number(sample.progress_percentage)},"
            f"session_duration_ms={sample.session_duration_ms}i,total_cells={sample.total_cells}i {at}"
        )
        if sample.error_rate is None:
            continue
        fields = f"error_rate={_number(sample.error_rate)}"
        if sample.avg_execution_time is not None and sample.max_execution_time is not None:
            fields = (
                f"avg_execution_time={_number(sample.avg_execution_time)},{fields},"
                f"max_execution_time={_number(sample.max_execution_time)}"
            )
        lines.append(f"performance_metrics{_tag('cell_type', CELL_TYPE)}{class_id}{place} {fields} {at}")
    return lines


@lru_cache(_KEPT)
def _tag(key: str, value: str) -> str:
    """``,key=value``; nothing where the value is empty, which a tag cannot be."""
    return f",{key}={_escaped(value)}" if value else ""


def _escaped(value: str) -> str:
    if _SPECIAL.search(value) is None:
        return value
    escaped = value.translate(_IN_TAG)
    return f"{escaped} " if escaped.endswith("\\") else escaped


def stored_tag(value: str) -> str:
    """How InfluxDB reads back a tag that was written with this value: what to compare with in a query."""
    text = value.replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")
    return f"{text[:-1]} " if text.endswith("\\") else text


def _number(value: float) -> str:
    """A float as InfluxDB takes it; without a point it still is one, because integers end in ``i``."""
    text = repr(value)
    return text.removesuffix(".0")
