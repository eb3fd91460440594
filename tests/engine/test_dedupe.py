"""The window knows what came lately, and no more than it may hold."""

import random
import tracemalloc
from array import array
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from engine.dedupe import DIGEST_BYTES, DedupeWindow, Digester

KEY = b"k" * 16


def window(*, max_events: int = 100, window_ms: int = 1000) -> DedupeWindow:
    return DedupeWindow(max_events=max_events, window_ms=window_ms)


def test_what_was_added_is_known_and_nothing_else():
    known = window()
    known.add(0, array("Q", [1, 2]))
    assert 1 in known
    assert 3 not in known
    assert len(known) == 2


def test_commits_leave_when_they_are_older_than_the_window():
    known = window(window_ms=1000)
    known.add(0, array("Q", [1]))
    known.add(1, array("Q", [2]))
    known.add(1000, array("Q"))
    assert 1 in known
    known.add(1001, array("Q", [3]))
    assert 1 not in known
    assert 2 in known


def test_the_oldest_commits_leave_when_there_are_too_many():
    known = window(max_events=4)
    for commit in range(10):
        known.add(0, array("Q", [2 * commit, 2 * commit + 1]))
    assert [value for value in range(20) if value in known] == [16, 17, 18, 19]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5)), max_size=30))
def test_both_bounds_hold_after_every_commit(commits):
    known = window(max_events=20, window_ms=500)
    now = value = 0
    added: list[tuple[int, int]] = []
    for pause, count in commits:
        now += pause
        added += [(now, value + number) for number in range(count)]
        known.add(now, array("Q", range(value, value + count)))
        value += count
        young = [number for at, number in added if at >= now - 500]
        assert len(known) <= 20
        assert all(number in known for number in young[-20:])
        assert not any(number in known for at, number in added if at < now - 500)


@given(st.lists(st.tuples(st.integers(-2_000, 9_000), st.integers(0, 5)), max_size=40))
def test_nothing_leaves_early_and_all_of_it_in_time_whatever_the_clock_does(commits):
    known = window(max_events=60, window_ms=50_000)
    now = value = 0
    added: list[tuple[int, int]] = []
    for step, count in commits:
        now += step
        added += [(now, value + number) for number in range(count)]
        known.add(now, array("Q", range(value, value + count)))
        value += count
        assert all(number in known for at, number in added[-60:] if at >= now - 50_000)
    latest = max((at for at, _ in added), default=0)
    known.add(latest + 50_051, array("Q"))
    assert len(known) == 0


def test_a_whole_window_that_is_too_old_leaves_in_turns():
    known = window(max_events=50_000)
    known.add(0, array("Q", range(50_000)))
    sizes = []
    while len(known):
        known.add(10**6, array("Q"))
        sizes.append(len(known))
    assert sizes == [40_000, 30_000, 20_000, 10_000, 0]
    assert not any(number in known for number in range(50_000))


def test_commits_of_one_moment_leave_with_the_youngest_of_them():
    known = window(window_ms=10_000)
    for received_at in (0, 5, 9):
        known.add(received_at, array("Q", [received_at]))
    known.add(10_009, array("Q"))
    assert [number in known for number in (0, 5, 9)] == [True, True, True]
    known.add(10_010, array("Q"))
    assert [number in known for number in (0, 5, 9)] == [False, False, False]


def test_a_clock_that_is_set_back_forgets_nothing_early():
    known = window(window_ms=10_000)
    known.add(10_000, array("Q", [1]))
    known.add(0, array("Q", [2]))
    known.add(20_000, array("Q"))
    assert 1 in known


def test_a_full_window_takes_no_more_memory_while_events_come_and_go():
    numbers = random.Random(7)
    known = window(max_events=100_000)
    tracemalloc.start()
    try:

        def commits(count):
            for _ in range(count):
                known.add(0, array("Q", [numbers.getrandbits(64) for _ in range(10)]))

        commits(10_000)
        full, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        commits(40_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * full


def test_a_digest_is_of_every_part_and_of_the_journals_key():
    triples = [*product(("a", "b"), ("a", "b"), ("a", "b")), ("a", "ab", ""), ("aa", "b", "")]
    digests = {Digester(KEY)(*triple) for triple in triples}
    assert len(digests) == len(triples)
    assert Digester(KEY)("c", "u", "e") == Digester(KEY)("c", "u", "e")
    assert Digester(KEY)("c", "u", "e") != Digester(b"other")("c", "u", "e")
    assert all(0 <= value < 2 ** (8 * DIGEST_BYTES) for value in digests)
