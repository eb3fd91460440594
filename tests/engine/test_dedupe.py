"""The window knows what came lately, and no more than it may hold."""

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
    assert 1 in known.known
    assert 3 not in known.known
    assert len(known) == 2


def test_commits_leave_when_they_are_older_than_the_window():
    known = window(window_ms=1000)
    known.add(0, array("Q", [1]))
    known.add(1, array("Q", [2]))
    known.add(1000, array("Q"))
    assert 1 in known.known
    known.add(1001, array("Q", [3]))
    assert 1 not in known.known
    assert 2 in known.known


def test_the_oldest_commits_leave_when_there_are_too_many():
    known = window(max_events=4)
    for commit in range(10):
        known.add(0, array("Q", [2 * commit, 2 * commit + 1]))
    assert [value for value in range(20) if value in known.known] == [16, 17, 18, 19]


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
        assert all(
            number in known.known for number in young[-16:]
        )  # a commit leaves whole, so up to 4 more may be gone
        assert not any(number in known.known for at, number in added if at < now - 500)


def test_a_digest_is_of_every_part_and_of_the_journals_key():
    triples = [*product(("a", "b"), ("a", "b"), ("a", "b")), ("a", "ab", ""), ("aa", "b", "")]
    digests = {Digester(KEY)(*triple) for triple in triples}
    assert len(digests) == len(triples)
    assert Digester(KEY)("c", "u", "e") == Digester(KEY)("c", "u", "e")
    assert Digester(KEY)("c", "u", "e") != Digester(b"other")("c", "u", "e")
    assert all(0 <= value < 2 ** (8 * DIGEST_BYTES) for value in digests)
