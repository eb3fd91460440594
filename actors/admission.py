"""Admission: how many students and notebooks a class may hold, checked at the edge, before the journal."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import compress
from typing import Final, NamedTuple, TypeAlias

import trio

from engine.cohort import Cohort
from engine.errors import OverLimitError, UnavailableError
from engine.event import Event, UserKey
from engine.ports import Settle

from .mailboxes import Mailboxes

# A class this near to its limit of notebooks has each of its events looked at: as many new ones may be in one request.
_NEAR: Final = 1000
# Operators hear of a full class once in so many seconds, and of so many classes.
_TELL_S: Final = 60.0
_MAX_TOLD: Final = 1000

# Users or notebooks by class: a look at one class must not be one at all, for each newcomer of a request.
ByClass: TypeAlias = defaultdict[str, set[str]]


class Limits(NamedTuple):
    """What one class may hold: students in memory, and notebooks ever."""

    users: int
    notebooks: int


class Admission:
    """Counts who is in, and who was let in and has not arrived yet: between the edge and the router lies the disk."""

    def __init__(
        self, limits: Limits, users: Mapping[UserKey, object], cohorts: Mapping[str, Cohort], mailboxes: Mailboxes
    ) -> None:
        self._limits = limits
        self._users = users
        self._cohorts = cohorts
        self._mailboxes = mailboxes
        self._coming: set[UserKey] = set()
        self._count: Counter[str] = Counter()  # students by class, those that are coming too
        self._new_notebooks: ByClass = defaultdict(set)  # let in, and not seen by their class yet
        self._told: dict[tuple[str, str], float] = {}  # by class and limit: until when nothing more is said
        # Whether events of known students are to be looked at too, for their notebooks.
        self.strained = limits.notebooks <= _NEAR

    def admit(self, events: list[Event], settle: Settle) -> "Admitted | None":
        """Let the newcomers among these in; None: there are none.

        Raises OverLimitError when some are too many; then none was let in.
        """
        users: ByClass = defaultdict(set)
        notebooks: ByClass = defaultdict(set)
        refused: dict[int, str] = {}
        for position, event in enumerate(events):
            fault = self._user_fault(event, users)
            if fault is None and self.strained:
                fault = self._notebook_fault(event, notebooks)
            if fault is not None:
                refused[position] = fault
        if refused:
            raise OverLimitError(refused)
        if not (users or notebooks):
            return None
        for class_id, names in users.items():
            self._coming.update((class_id, name) for name in names)
            self._count[class_id] += len(names)
        for class_id, paths in notebooks.items():
            self._new_notebooks[class_id] |= paths
        return Admitted(self, events, users, notebooks, settle)

    def arrived(self, key: UserKey) -> None:
        """A student has an actor now."""
        if key in self._coming:
            self._coming.discard(key)
        else:
            self._count[key[0]] += 1

    def left(self, key: UserKey) -> None:
        """A student's actor left memory."""
        self._uncount(key[0])

    def grown(self, cohort: Cohort, path: str) -> None:
        """A class has a new notebook, or knows more of one."""
        if cohort.class_id in self._new_notebooks:
            self._drop_notebooks(cohort.class_id, {path})
        self.strained = self.strained or len(cohort.notebooks) + _NEAR >= self._limits.notebooks

    def _user_fault(self, event: Event, newcomers: ByClass) -> str | None:
        class_id, user_id = key = (event.class_id, event.user_id)
        if key in self._users or key in self._coming:
            return None
        mates = newcomers[class_id]
        if user_id in mates:
            return None
        if self._count[class_id] + len(mates) < self._limits.users:
            mates.add(user_id)
            return None
        return self._full(class_id, f"{self._limits.users} users", "limits.users_per_class")

    def _notebook_fault(self, event: Event, newcomers: ByClass) -> str | None:
        class_id, path = event.class_id, event.notebook_path
        if path is None:
            return None
        cohort = self._cohorts.get(class_id)
        known: Mapping[str, object] = {} if cohort is None else cohort.notebooks
        under_way = self._new_notebooks.get(class_id, ())
        if path in known or path in under_way:
            return None
        others = newcomers[class_id]
        if path in others:
            return None
        if len(known) + len(under_way) + len(others) < self._limits.notebooks:
            others.add(path)
            return None
        return self._full(class_id, f"{self._limits.notebooks} notebooks", "limits.notebooks_per_class")

    def _full(self, class_id: str, what: str, limit: str) -> str:
        message = f"class {class_id} already has {what}: {limit}"
        now = trio.current_time()
        if self._told.get((class_id, limit), now) <= now:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told[class_id, limit] = now + _TELL_S
            self._mailboxes.alert("class is full", class_id, limit, message)
        return message

    def release(self, users: ByClass, notebooks: ByClass) -> None:
        """These did not come after all."""
        for class_id, names in users.items():
            for key in self._coming.intersection((class_id, name) for name in names):
                self._coming.discard(key)
                self._uncount(class_id)
        for class_id, paths in notebooks.items():
            self._drop_notebooks(class_id, paths)

    def _drop_notebooks(self, class_id: str, paths: set[str]) -> None:
        self._new_notebooks[class_id] -= paths
        if not self._new_notebooks[class_id]:
            del self._new_notebooks[class_id]

    def _uncount(self, class_id: str) -> None:
        self._count[class_id] -= 1
        if self._count[class_id] <= 0:
            del self._count[class_id]


class Admitted:
    """The newcomers of one request, until it is known what became of it. Call it in place of the request's settle."""

    def __init__(
        self,
        admission: Admission,
        events: list[Event],
        users: ByClass,
        notebooks: ByClass,
        settle: Settle,
    ) -> None:
        self._admission = admission
        self._events = events
        self._users = users
        self._notebooks = notebooks
        self._settle = settle

    def __call__(self, outcome: list[bool] | UnavailableError) -> None:
        """See `engine.ports.Settle`."""
        # A repeat brings nobody in.
        kept = [] if isinstance(outcome, UnavailableError) else [*compress(self._events, outcome)]
        for event in kept:
            self._users[event.class_id].discard(event.user_id)
            self._notebooks[event.class_id].discard(event.notebook_path or "")
        self._admission.release(self._users, self._notebooks)
        self._settle(outcome)

    def withdraw(self) -> None:
        """The journal would not have the request."""
        self._admission.release(self._users, self._notebooks)
