"""It is a deque that lies elsewhere."""

from array import array
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import mapped_queue
from engine.mapped_queue import MappedQueue

LARGEST = 2**64 - 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(mapped_queue, "_BLOCK", 8)


def take(queue, count):
    taken = []
    while len(taken) < count and (some := queue.take(count - len(taken))):
        taken += some
    return taken


@given(st.lists(st.tuples(st.lists(st.integers(0, LARGEST), max_size=30), st.integers(0, 30)), max_size=20))
def test_what_goes_in_comes_out_in_order(steps):
    queue, model = MappedQueue(), deque()
    for numbers, count in steps:
        queue.extend(array("Q", numbers))
        model.extend(numbers)
        assert len(queue) == len(model)
        assert take(queue, count) == [model.popleft() for _ in range(min(count, len(model)))]
    assert take(queue, LARGEST) == list(model)
    assert not len(queue)
    assert queue.take(1) == []


def test_blocks_that_are_empty_are_let_go():
    queue = MappedQueue()
    for _ in range(100):
        queue.extend(array("Q", range(5)))
        take(queue, 5)
    assert len(queue._blocks) <= 1
