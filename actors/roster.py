"""The roster: the session actors of a daemon, class by class."""

from collections.abc import Iterator, MutableMapping
from itertools import chain

from engine.event import UserKey

from .session import SessionActor


class Roster(MutableMapping[UserKey, SessionActor]):
    """Actors by (class, user).

    In a dict a class, so that a look at one class is not one at all of them, and that a student of tens of thousands is
    found in half the time: the key of one large dict is a tuple with two strings of its own, all of it memory that no
    cache holds, and a class's name is one that was just used (docs/performance.md).
    """

    def __init__(self) -> None:
        # To look into, where a call would cost too much; only the roster changes it, and no class in it is empty.
        self.classes: dict[str, dict[str, SessionActor]] = {}

    def __getitem__(self, key: UserKey) -> SessionActor:
        return self.classes[key[0]][key[1]]

    def __setitem__(self, key: UserKey, actor: SessionActor) -> None:
        self.classes.setdefault(key[0], {})[key[1]] = actor

    def __delitem__(self, key: UserKey) -> None:
        mates = self.classes[key[0]]
        del mates[key[1]]
        if not mates:
            del self.classes[key[0]]

    def __iter__(self) -> Iterator[UserKey]:
        return ((class_id, user_id) for class_id, mates in self.classes.items() for user_id in mates)

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    def actors(self) -> Iterator[SessionActor]:
        """All of them, in less time than `values` takes."""
        return chain.from_iterable(mates.values() for mates in self.classes.values())

    def mates(self, class_id: str) -> Iterator[SessionActor]:
        """Those of one class."""
        return iter(self.classes.get(class_id, {}).values())
