"""Who is stored where: a lane leads from the actors to the writer of one shard."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.cohort import NotebookTotals
from engine.dirty import DirtyUsers
from engine.event import UserKey
from engine.ports import DeadLetter
from engine.sharding import shard_of

from .mailbox import ConflatingMailbox
from .mailboxes import Mailboxes
from .session import SessionActor

Notebooks = ConflatingMailbox[tuple[str, str], NotebookTotals]
Letters = ConflatingMailbox[int, DeadLetter]
Offsets = ConflatingMailbox[str, int | None]  # of stores that cannot keep their own


class Lane(NamedTuple):
    """What one store's writer takes beside rows."""

    dirty: DirtyUsers[SessionActor]
    notebooks: Notebooks
    dead_letters: Letters
    offsets: Offsets


def make_lanes(count: int, mailboxes: Mailboxes) -> tuple[DirtyUsers[SessionActor], list[Lane]]:
    """The dirty users as the actors have them, and the lanes, whose parts stand behind those and ``mailboxes``."""
    if count == 1:
        dirty: DirtyUsers[SessionActor] = DirtyUsers()
        return dirty, [Lane(dirty, mailboxes.notebooks, mailboxes.dead_letters, mailboxes.offsets)]
    lanes = [
        # The first keeps the offsets of others; nothing comes for the rest to keep.
        Lane(
            DirtyUsers(), ConflatingMailbox(), ConflatingMailbox(), ConflatingMailbox() if place else mailboxes.offsets
        )
        for place in range(count)
    ]
    mailboxes.notebooks = _EveryNotebook([lane.notebooks for lane in lanes])
    mailboxes.dead_letters = _LettersByUser([lane.dead_letters for lane in lanes])
    return _DirtyByUser([lane.dirty for lane in lanes]), lanes


class _DirtyByUser(DirtyUsers[SessionActor]):
    """For the actors, who only mark and ask; writers have the parts."""

    def __init__(self, parts: Sequence[DirtyUsers[SessionActor]]) -> None:
        super().__init__()
        self._parts = parts

    def _part(self, key: UserKey) -> DirtyUsers[SessionActor]:
        return self._parts[shard_of(key[1], len(self._parts))]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, key: UserKey) -> bool:
        return key in self._part(key)

    def mark(self, key: UserKey, first_seq: int, actor: SessionActor) -> None:
        self._part(key).mark(key, first_seq, actor)

    def first(self, key: UserKey, *, default: int) -> int:
        return self._part(key).first(key, default=default)


class _EveryNotebook(Notebooks):
    """Every shard knows all notebooks: sessions refer to them."""

    def __init__(self, boxes: Sequence[Notebooks]) -> None:
        super().__init__()
        self._boxes = boxes

    def __len__(self) -> int:
        return max(map(len, self._boxes))

    def put(self, key: tuple[str, str], message: NotebookTotals) -> None:
        for box in self._boxes:
            box.put(key, message)


class _LettersByUser(Letters):
    def __init__(self, boxes: Sequence[Letters]) -> None:
        super().__init__()
        self._boxes = boxes

    def __len__(self) -> int:
        return sum(map(len, self._boxes))

    def put(self, key: int, message: DeadLetter) -> None:
        self._boxes[shard_of(message.event.user_id, len(self._boxes))].put(key, message)
