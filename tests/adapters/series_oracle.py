"""What the time-series queries must answer, computed from events the slow and obvious way."""

from collections import defaultdict
from statistics import fmean, median

import attrs

from engine.clock import rfc3339


@attrs.frozen
class SeriesOracle:
    """``events``: `engine.event.Event`s with their seq, of any class and type."""

    events: list

    def cells(self, class_id):
        return [
            (seq, event)
            for seq, event in self.events
            if event.class_id == class_id and event.event_type in ("cell_executed", "execution_error")
        ]

    def buckets(self, class_id, start, end, every, by):
        """Cell events by group and bucket start; every bucket of every group that has an event."""
        grouped = defaultdict(lambda: {bucket: [] for bucket in range(start, end, every)})
        for _, event in self.cells(class_id):
            if start <= event.time < end:
                group = "" if by == "none" else getattr(event, by)
                grouped[group][event.time // every * every].append(event)
        if by == "none":
            grouped[""]
        return grouped

    def activity(self, class_id, start, end, every, by):
        answer = []
        for group, buckets in sorted(self.buckets(class_id, start, end, every, by).items()):
            found = []
            for bucket, events in buckets.items():
                runs = [event for event in events if executed(event)]
                found.append(
                    {
                        "start": rfc3339(bucket),
                        "executions": len(runs),
                        "mean_duration_ms": fmean(durations(runs)) if durations(runs) else None,
                    }
                )
            if by == "none" or any(bucket["executions"] for bucket in found):
                answer.append(named(by, group, found))
        return answer

    def errors(self, class_id, start, end, every, by):
        answer = []
        for group, buckets in sorted(self.buckets(class_id, start, end, every, by).items()):
            found = []
            for bucket, events in buckets.items():
                runs = sum(map(executed, events))
                errors = sum(map(failed, events))
                found.append(
                    {
                        "start": rfc3339(bucket),
                        "executions": runs,
                        "errors": errors,
                        "rate": errors / runs if runs else None,
                    }
                )
            answer.append(named(by, group, found))
        return answer

    def summary(self, class_id, path, total):
        events = [(seq, event) for seq, event in self.cells(class_id) if event.notebook_path == path]
        events.sort(key=lambda item: (item[1].time, item[0]))
        indices = sorted({event.cell_index for _, event in events} - {None})
        total = total or (max(indices) + 1 if indices else 0)
        progress = []
        for student in {event.user_id for _, event in events}:
            last = {event.cell_index: event for _, event in events if event.user_id == student}
            done = sum(not failed(event) for index, event in last.items() if index is not None)
            progress.append(min(1, done / total) if total else 0)
        cells = []
        for index in indices:
            here = [event for _, event in events if event.cell_index == index]
            runs = [event for event in here if executed(event)]
            cells.append(
                {
                    "cell_index": index,
                    "students": len({event.user_id for event in here}),
                    "executions": len(runs),
                    "errors": sum(map(failed, here)),
                    "median_duration_ms": median(durations(runs)) if durations(runs) else None,
                }
            )
        return {
            "total_students": len(progress),
            "avg_progress": fmean(progress) if progress else 0,
            "total_cells": total,
            "cells": cells,
        }


def named(by, group, buckets):
    return {"buckets": buckets} if by == "none" else {by: group, "buckets": buckets}


def executed(event):
    return event.event_type == "cell_executed"


def failed(event):
    return event.event_type == "execution_error" or event.has_error is True


def durations(runs):
    """Longer ones than 10^15 ms are slips."""
    return [
        event.execution_duration_ms
        for event in runs
        if event.execution_duration_ms is not None and event.execution_duration_ms < 1e15
    ]


def assert_like(found, expected, where=""):
    """Equal; numbers up to the order in which a mean was summed, and progress to its four places."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_like(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), (where, found, expected)
        for position, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_like(one, other, f"{where}[{position}]")
    elif isinstance(expected, float) or isinstance(found, float):
        assert found is not None, (where, expected)
        assert expected is not None, (where, found)
        slack = 1e-4 if where.endswith("avg_progress") else 1e-9 * abs(expected)
        assert abs(found - expected) <= slack, (where, found, expected)
    else:
        assert found == expected, where
