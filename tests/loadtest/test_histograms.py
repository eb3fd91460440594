"""The histogram against exact percentiles."""

from math import ceil

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histograms import Histogram, bucket_of, upper_end

TIMES = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)  # µs


def of(values):
    histogram = Histogram()
    for value in values:
        histogram.record(value / 1e6)
    return histogram


@given(st.integers(0, 10**12))
def test_a_bucket_holds_its_values_and_is_narrow(value):
    end = upper_end(bucket_of(value))
    assert value <= end <= value + max(0, value // 128)
    assert bucket_of(end) == bucket_of(value)
    assert bucket_of(end + 1) == bucket_of(value) + 1


@given(TIMES, st.floats(0.1, 100))
def test_percentiles_are_exact_up_to_the_bucket(values, percent):
    exact = sorted(values)[max(1, ceil(len(values) * percent / 100 - 1e-9)) - 1]
    found = of(values).percentile(percent) * 1e6
    assert exact - 0.001 <= found <= exact * (1 + 1 / 128) + 0.001


@given(TIMES)
def test_the_longest_is_exact(values):
    assert round(of(values).max * 1e6) == max(values)
    assert of(values).percentile(100) == of(values).max


@given(st.lists(TIMES, max_size=5))
def test_merging_is_as_if_one_had_counted_all(parts):
    whole = Histogram()
    for part in parts:
        whole.merge(of(part))
    assert whole == of([value for part in parts for value in part])


@given(TIMES)
def test_it_travels_as_json(values):
    histogram = of(values)
    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram


def test_empty():
    assert Histogram().percentile(99) == 0
    assert Histogram().max == 0


def test_a_tail_that_an_average_hides():
    histogram = of([1000] * 990 + [1_000_000] * 10)
    assert histogram.percentile(50) < 0.00101
    assert histogram.percentile(99.5) == 1
