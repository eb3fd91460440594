"""Canonical events to vary, and somebody who waits for what became of them."""

import itertools

import trio

from engine.errors import UnavailableError
from engine.event import Event

NOW = 1_795_000_000_000  # ms: 2026-11-18
DAY = 86_400_000
_ids = itertools.count(1)


def event(user_id="ann", /, **fields):
    """A lesson liked: the least that an event can be."""
    least = {"event_id": f"e{next(_ids)}", "event_type": "lesson_liked", "time": NOW, "class_id": "default"}
    return Event(user_id=user_id, **{**least, **fields})


def run(user_id="ann", /, **fields):
    """A cell that ran."""
    cell = {"event_type": "cell_executed", "notebook_path": "a.ipynb", "session_id": "s1", "cell_index": 0}
    return event(user_id, **{**cell, "has_error": False, **fields})


class Receipt:
    """What `settle` was told, once."""

    def __init__(self):
        self.outcomes = []
        self._told = trio.Event()

    def settle(self, outcome):
        self.outcomes.append(outcome)
        self._told.set()

    @property
    def settled(self):
        return self._told.is_set()

    async def outcome(self):
        with trio.fail_after(10):
            await self._told.wait()
        (outcome,) = self.outcomes
        return outcome


def append(journal, *events):
    receipt = Receipt()
    journal.append(list(events), receipt.settle)
    return receipt


async def kept(journal, *events):
    """Append and wait for the commit."""
    outcome = await append(journal, *events).outcome()
    assert not isinstance(outcome, UnavailableError), outcome
    return outcome


class Sink:
    """Where commits go; `hold` makes the commit loop wait here."""

    def __init__(self):
        self.commits = []
        self._gate = trio.Event()
        self._gate.set()

    async def __call__(self, commit):
        self.commits.append(commit)
        await self._gate.wait()

    def hold(self):
        self._gate = trio.Event()

    def release(self):
        self._gate.set()

    @property
    def seqs(self):
        return [seq for commit in self.commits for seq in range(commit.first_seq, commit.last_seq + 1)]

    @property
    def events(self):
        return [event for commit in self.commits for event in commit.events]
