"""What is measured while the daemon works: plain numbers, read when somebody asks for them.

The parts count for themselves; nobody here knows how a metric is called outside or in what format it is told.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

# Upper ends of a histogram's buckets, in seconds; what is longer than the last has a bucket of its own.
BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels: TypeAlias = tuple[str, ...]


class Histogram:
    """How often it took how long."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one. Cheap enough for every request."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class Histograms:
    """One histogram for each combination of labels that was met. Keep the labels few."""

    def __init__(self) -> None:
        self.by_labels: dict[Labels, Histogram] = {}

    def of(self, *labels: str) -> Histogram:
        """The histogram of these labels, made when it is first met."""
        found = self.by_labels.get(labels)
        if found is None:
            found = self.by_labels[labels] = Histogram()
        return found


# What one metric is now, for each combination of its labels' values.
Values: TypeAlias = Mapping[Labels, float | Histogram]


class Measure(NamedTuple):
    """One metric. A counter's name ends in ``_total``, a histogram's in ``_seconds``."""

    name: str
    text: str
    labels: Labels
    read: Callable[[], Values]


def single(name: str, text: str, read: Callable[[], float | Histogram]) -> Measure:
    """A metric without labels."""
    return Measure(name, text, (), lambda: {(): read()})
