"""A log-linear histogram of times, after HdrHistogram: exact counts in buckets less than 0.8 % wide.

Values are whole microseconds. Those below 256 have a bucket each; above, every power of two is cut into 128.
Only buckets in use take memory, so one for each second of a run costs little, and merging adds counts.
"""

from typing import Final, Self

import msgspec

# 2**7 buckets to each power of two: a bucket is at most 1/128 of its value wide.
_PRECISION_BITS: Final = 7
_HALF: Final = 1 << _PRECISION_BITS


class Histogram(msgspec.Struct):
    """Times in microseconds; `counts` is by bucket. Travels as JSON."""

    counts: dict[int, int] = {}
    total: int = 0
    highest: int = 0  # µs, exact

    def record(self, seconds: float, times: int = 1) -> None:
        """Add one time; below 0 counts as 0."""
        value = max(0, round(seconds * 1e6))
        bucket = bucket_of(value)
        self.counts[bucket] = self.counts.get(bucket, 0) + times
        self.total += times
        self.highest = max(self.highest, value)

    def merge(self, other: Self) -> None:
        """Add what another one counted."""
        counts = self.counts
        for bucket, times in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + times
        self.total += other.total
        self.highest = max(self.highest, other.highest)

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the times do not exceed: the upper end of the bucket; 0 when there are none."""
        wanted = max(1, -(-self.total * percent // 100))  # nearest rank: the ceiling
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(upper_end(bucket), self.highest) / 1e6
        return 0.0

    @property
    def max(self) -> float:
        """The longest time in seconds, exact."""
        return self.highest / 1e6


def bucket_of(value: int) -> int:
    """The bucket of so many microseconds."""
    shift = max(0, value.bit_length() - _PRECISION_BITS - 1)
    return (shift << _PRECISION_BITS) + (value >> shift)


def upper_end(bucket: int) -> int:
    """The highest value in a bucket, in microseconds."""
    if bucket < 2 * _HALF:
        return bucket
    shift = (bucket >> _PRECISION_BITS) - 1
    return ((bucket & (_HALF - 1)) + _HALF + 1 << shift) - 1
