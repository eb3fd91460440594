"""Lanes: what the actors leave in one place comes to the writer of the right shard."""

from actors.lanes import make_lanes
from actors.mailboxes import Mailboxes
from engine.cohort import NotebookTotals
from engine.ports import DeadLetter
from engine.sharding import shard_of
from tests.adapters.events import run

USERS = [("default", f"user{number}") for number in range(20)]


def test_one_lane_is_the_place_itself():
    mailboxes = Mailboxes()
    notebooks, letters = mailboxes.notebooks, mailboxes.dead_letters
    dirty, (lane,) = make_lanes(1, mailboxes)
    assert lane.dirty is dirty
    assert lane.notebooks is notebooks is mailboxes.notebooks
    assert lane.dead_letters is letters is mailboxes.dead_letters


def test_students_and_letters_go_to_their_shard_and_notebooks_to_all():
    mailboxes = Mailboxes()
    dirty, lanes = make_lanes(3, mailboxes)
    for seq, key in enumerate(USERS, 1):
        dirty.mark(key, seq, object())
        mailboxes.dead_letters.put(seq, DeadLetter(seq, run(key[1]), "KeyError", "x:1"))
    mailboxes.notebooks.put(("default", "a"), NotebookTotals(3))
    assert len(dirty) == len(mailboxes.dead_letters) == 20
    assert len(mailboxes.notebooks) == 1
    assert USERS[4] in dirty
    assert ("default", "nobody") not in dirty
    assert dirty.first(USERS[4], default=0) == 5
    for place, lane in enumerate(lanes):
        mine = {key for key in USERS if shard_of(key[1], 3) == place}
        assert {key for key, _ in lane.dirty.waiting(100)} == mine
        # Its floor is held back by its own students only.
        assert lane.dirty.floor(100) == min(USERS.index(key) for key in mine)
        assert {letter.event.user_id for letter in lane.dead_letters.take_all().values()} == {key[1] for key in mine}
        assert lane.notebooks.take_all() == {("default", "a"): NotebookTotals(3)}
    assert len(mailboxes.dead_letters) == len(mailboxes.notebooks) == 0
