"""Row ids are the same wherever and whenever they are made; new events' ids sort by time."""

import time
import uuid

from engine import ids
from engine.ids import notebook_uuid, session_uuid, user_uuid, uuid7


def test_row_ids_are_what_they_have_always_been():
    """Changing one would rename rows in every database."""
    assert str(user_uuid("ana")) == "0d9950bf-7cc1-5ee2-9d38-231483b7fd51"
    assert str(notebook_uuid("c", "n")) == "652acdae-a6c1-57b4-801e-edaaafe98902"
    assert str(session_uuid("c", "ana", "n", "=s1")) == "5ef12137-3fc4-562e-aaf3-ec04c1c97d45"


def test_row_ids_are_uuid5_and_told_apart_by_kind_and_part():
    made = [
        user_uuid("a"),
        user_uuid("ab"),
        notebook_uuid("a", "b"),
        notebook_uuid("ab", ""),
        notebook_uuid("", "ab"),
        session_uuid("a", "b", "c", "d"),
        session_uuid("a", "bc", "", "d"),
    ]
    assert len(set(made)) == len(made)
    assert {each.version for each in made} == {5}


def test_a_new_id_is_a_uuid7_of_now():
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(uuid7()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert {(each.version, each.variant) for each in made} == {(7, uuid.RFC_4122)}
    assert len(set(made)) == 1000
    assert all(before <= each.int >> 80 <= after for each in made)
    assert made == sorted(made)


def test_new_ids_rise_though_the_clock_stands_or_is_set_back(monkeypatch):
    """Events of one batch that say neither id nor time are in the order of their ids."""
    make = ids._Uuid7()  # everybody's would be ahead of the clock from then on
    now = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now)
    made = [make() for _ in range(1000)]
    monkeypatch.setattr("time.time_ns", lambda: now - 10**10)
    made += [make() for _ in range(1000)]
    monkeypatch.setattr("secrets.randbits", lambda bits: (1 << bits) - 1)
    monkeypatch.setattr("time.time_ns", lambda: now + 10**9)
    made += [make() for _ in range(10)]  # the bits beside the time run over
    assert made == sorted(set(made))
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in made} == {(7, uuid.RFC_4122)}
