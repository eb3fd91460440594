"""The watermark moves to the end of the oldest run of finished parts, in whatever order they finish."""

from hypothesis import given
from hypothesis import strategies as st

from engine.watermark import Watermark


@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.data())
def test_it_is_the_end_of_the_finished_parts_that_nothing_unfinished_stands_before(shares, data):
    watermark = Watermark()
    ends = [10 * (number + 1) for number in range(len(shares))]
    parts = [watermark.open(end, remaining) for end, remaining in zip(ends, shares, strict=True)]
    for number in data.draw(st.permutations([number for number, share in enumerate(shares) for _ in range(share)])):
        parts[number].done()
        finished = 0
        for part in parts:
            if part.remaining:
                break
            finished = part.last_seq
        assert watermark.value == finished
    assert watermark.value == ends[-1]


def test_it_never_moves_without_a_finished_part():
    watermark = Watermark()
    first, second = watermark.open(5, 2), watermark.open(9, 1)
    second.done()
    first.done()
    assert watermark.value == 0
    first.done()
    assert watermark.value == 9
    watermark.open(12, 1)
    assert watermark.value == 9
