"""Which students' states are newer than their stored snapshots, and from which seq on: the floor of replay."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Generic, TypeVar

from engine.event import UserKey

Actor = TypeVar("Actor")


class DirtyUsers(Generic[Actor]):
    """Users by the first seq that their stored snapshot lacks. One slot a user, so it is as bounded as the users are.

    A flush borrows users with `take`; `stored` or `failed` settles the loan. A user that changes meanwhile is dirty
    again, from that seq on.
    """

    def __init__(self) -> None:
        # Ascending, but for users that were marked late, and then only until somebody looks: whoever flushes looks at
        # the first ones, of perhaps many thousands.
        self._firsts: dict[UserKey, int] = {}
        self._newest = 0  # the highest of them ever
        self._late = False
        self._actors: dict[UserKey, Actor] = {}  # of the same keys
        self._taken: dict[UserKey, tuple[int, Actor]] = {}

    def __len__(self) -> int:
        return len(self._firsts) + len(self._taken)

    def __contains__(self, key: UserKey) -> bool:
        return key in self._firsts or key in self._taken

    def mark(self, key: UserKey, first_seq: int, actor: Actor) -> None:
        """The state changed by an event of ``first_seq``; only the first since the last snapshot counts."""
        known = self._firsts.get(key)
        if known is None or first_seq < known:
            self._firsts[key] = first_seq
            self._actors[key] = actor
            if first_seq < self._newest:
                self._late = True
            else:
                self._newest = first_seq

    def first(self, key: UserKey, *, default: int) -> int:
        """The first seq that made the user dirty since it was last taken; ``default`` when none did."""
        return self._firsts.get(key, default)

    def waiting(self, due: int) -> Iterator[tuple[UserKey, Actor]]:
        """Users that are dirty since ``due`` (a seq) or before, the longest dirty first."""
        dirty = takewhile(lambda item: item[1] <= due, self._ascending().items())
        return ((key, self._actors[key]) for key, _ in dirty)

    def take(self, keys: Iterable[UserKey]) -> None:
        """Lend these users to a flush."""
        for key in keys:
            self._taken[key] = (self._firsts.pop(key), self._actors.pop(key))

    def stored(self) -> None:
        """The flush is committed."""
        self._taken.clear()

    def failed(self) -> list[Actor]:
        """The flush did not go through, or nobody knows: its users, who are returned, are as dirty as before."""
        taken, self._taken = self._taken, {}
        for key, (first_seq, actor) in taken.items():
            self.mark(key, first_seq, actor)
        return [actor for _, actor in taken.values()]

    def floor(self, watermark: int) -> int:
        """Every event up to it is in its user's stored snapshot, once the loan is stored."""
        first = next(iter(self._ascending().values()), watermark + 1)
        return min(watermark, first - 1)

    def _ascending(self) -> dict[UserKey, int]:
        if self._late:
            self._firsts = dict(sorted(self._firsts.items(), key=lambda item: item[1]))
            self._late = False
        return self._firsts
