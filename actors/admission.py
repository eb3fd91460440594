"""Admission: how many students and notebooks a class may hold, checked at the edge, before the journal."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import compress
from typing import Final, NamedTuple

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

NotebookKey = tuple[str, str]  # class, path


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
        self._new_notebooks: set[NotebookKey] = set()
        self._told: dict[NotebookKey, float] = {}
        # Whether events of known students are to be looked at too, for their notebooks.
        self.strained = limits.notebooks <= _NEAR

    def admit(self, events: list[Event], settle: Settle) -> "Admitted | None":
        """Let the newcomers among these in; None: there are none.

        Raises OverLimitError when some are too many; then none was let in.
        """
        users: set[UserKey] = set()
        notebooks: set[NotebookKey] = set()
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
        self._coming |= users
        self._count.update(class_id for class_id, _ in users)
        self._new_notebooks |= notebooks
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

    def grown(self, cohort: Cohort) -> None:
        """A class has a new notebook."""
        self.strained = self.strained or len(cohort.notebooks) + _NEAR >= self._limits.notebooks

    def _user_fault(self, event: Event, newcomers: set[UserKey]) -> str | None:
        key = (event.class_id, event.user_id)
        if key in self._users or key in self._coming or key in newcomers:
            return None
        coming = sum(class_id == event.class_id for class_id, _ in newcomers)
        if self._count[event.class_id] + coming < self._limits.users:
            newcomers.add(key)
            return None
        return self._full(event.class_id, f"{self._limits.users} users", "limits.users_per_class")

    def _notebook_fault(self, event: Event, newcomers: set[NotebookKey]) -> str | None:
        if event.notebook_path is None:
            return None
        cohort = self._cohorts.get(event.class_id)
        known: Mapping[str, object] = {} if cohort is None else cohort.notebooks
        key = (event.class_id, event.notebook_path)
        if event.notebook_path in known or key in newcomers or key in self._new_notebooks:
            return None
        self._new_notebooks = {
            each for each in self._new_notebooks if each[0] != event.class_id or each[1] not in known
        }
        coming = sum(class_id == event.class_id for class_id, _ in (*newcomers, *self._new_notebooks))
        if len(known) + coming < self._limits.notebooks:
            newcomers.add(key)
            return None
        return self._full(event.class_id, f"{self._limits.notebooks} notebooks", "limits.notebooks_per_class")

    def _full(self, class_id: str, what: str, limit: str) -> str:
        message = f"class {class_id} already has {what}: {limit}"
        now = trio.current_time()
        if self._told.get((class_id, limit), now) <= now:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told[class_id, limit] = now + _TELL_S
            self._mailboxes.alert("class is full", class_id, limit, message)
        return message

    def release(self, users: Iterable[UserKey], notebooks: Iterable[NotebookKey]) -> None:
        """These did not come after all."""
        for key in self._coming.intersection(users):
            self._coming.discard(key)
            self._uncount(key[0])
        self._new_notebooks.difference_update(notebooks)

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
        users: set[UserKey],
        notebooks: set[NotebookKey],
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
        self._admission.release(
            self._users - {(event.class_id, event.user_id) for event in kept},
            self._notebooks - {(event.class_id, event.notebook_path or "") for event in kept},
        )
        self._settle(outcome)

    def withdraw(self) -> None:
        """The journal would not have the request."""
        self._admission.release(self._users, self._notebooks)
