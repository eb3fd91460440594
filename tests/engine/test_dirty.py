"""Replay starts at the first event that some stored snapshot lacks: the floor of the dirty users."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from engine.dirty import DirtyUsers
from engine.event import UserKey

ANA, BEN = ("c", "ana"), ("c", "ben")


def marked(*seqs: tuple[UserKey, int]) -> DirtyUsers[str]:
    dirty: DirtyUsers[str] = DirtyUsers()
    for key, seq in seqs:
        dirty.mark(key, seq, f"actor of {key[1]}")
    return dirty


def test_with_nobody_dirty_the_floor_is_the_watermark():
    assert marked().floor(40) == 40


def test_the_floor_is_just_before_the_first_event_that_is_not_stored():
    dirty = marked((BEN, 12), (ANA, 7), (ANA, 20))
    assert dirty.floor(40) == 6


def test_the_floor_is_never_above_the_watermark():
    assert marked((ANA, 50)).floor(40) == 40


def test_a_loan_is_dirty_until_it_is_stored_and_does_not_count_for_the_floor():
    dirty = marked((ANA, 7), (BEN, 12))
    dirty.take([ANA])
    assert dirty.floor(40) == 11
    assert ANA in dirty
    assert len(dirty) == 2
    dirty.stored()
    assert dirty.floor(40) == 11
    assert ANA not in dirty


def test_a_user_that_changes_while_lent_is_dirty_from_there():
    dirty = marked((ANA, 7))
    dirty.take([ANA])
    dirty.mark(ANA, 30, "actor of ana")
    assert dirty.floor(40) == 29
    dirty.stored()
    assert dirty.floor(40) == 29


def test_a_failed_loan_is_as_dirty_as_before():
    dirty = marked((ANA, 7), (BEN, 12))
    dirty.take([ANA])
    dirty.mark(ANA, 30, "actor of ana")
    assert dirty.failed() == ["actor of ana"]
    assert dirty.floor(40) == 6
    assert dict(dirty.waiting(99)) == {ANA: "actor of ana", BEN: "actor of ben"}
    assert dirty.failed() == []


def test_the_longest_dirty_wait_first():
    dirty = marked((BEN, 3), (ANA, 7), (BEN, 9))
    assert [key for key, _ in dirty.waiting(99)] == [BEN, ANA]
    assert [key for key, _ in dirty.waiting(6)] == [BEN]


def test_a_user_that_is_marked_late_waits_where_it_belongs():
    dirty = marked((BEN, 3), (ANA, 7))
    dirty.take([BEN])
    dirty.failed()
    assert [key for key, _ in dirty.waiting(99)] == [BEN, ANA]
    dirty.mark(ANA, 2, "actor of ana")
    assert [key for key, _ in dirty.waiting(99)] == [ANA, BEN]
    assert [key for key, _ in dirty.waiting(2)] == [ANA]


def floor_of(unstored: Iterable[int], watermark: int) -> int:
    return min([watermark, *(seq - 1 for seq in unstored)])


@given(st.lists(st.sampled_from(("mark", "mark", "take", "stored", "failed")), max_size=30), st.data())
def test_the_floor_is_that_of_every_event_whose_snapshot_is_not_stored(steps, data):
    dirty: DirtyUsers[str] = DirtyUsers()
    waiting: set[tuple[UserKey, int]] = set()
    lent: set[tuple[UserKey, int]] = set()
    for seq, step in enumerate(steps, 1):
        if step == "mark":
            key = data.draw(st.sampled_from((ANA, BEN)))
            dirty.mark(key, seq, "actor")
            waiting.add((key, seq))
        elif step == "take" and not lent:
            chosen = [key for key, _ in dirty.waiting(99)][: data.draw(st.integers(1, 2))]
            dirty.take(chosen)
            lent = {pair for pair in waiting if pair[0] in chosen}
            waiting -= lent
        elif step == "stored":
            dirty.stored()
            lent = set()
        elif step == "failed":
            dirty.failed()
            waiting |= lent
            lent = set()
        assert dirty.floor(seq) == floor_of((first for _, first in waiting), seq)
        firsts = {key: min(first for each, first in waiting if each == key) for key, _ in waiting}
        assert [key for key, _ in dirty.waiting(seq)] == sorted(firsts, key=lambda key: firsts[key])
