"""A topic of the live stream: one class, its latest view, its sequence, and who subscribes to it."""

import heapq
from typing import Any, Final, TypeAlias

import msgspec

from engine.clock import WallClock
from engine.cohort import Cohort
from engine.delta import ClassView
from engine.ports import LiveUser
from engine.view import Thresholds, user_view

from .subscriber import Subscriber

_encode: Final = msgspec.json.Encoder().encode
Users: TypeAlias = dict[str, LiveUser]


class ClassTopic:
    """``class:<id>``. Looks at a student only when something happened to it and somebody asks."""

    def __init__(self, cohort: Cohort, epoch: str, thresholds: Thresholds, clock: WallClock) -> None:
        self.name = f"class:{cohort.class_id}"
        self.seq = 0
        self.subscribers: set[Subscriber] = set()
        self._cohort = cohort
        self._epoch = epoch
        self._thresholds = thresholds
        self._clock = clock
        self._view = ClassView()
        self._users: Users = {}
        self._changed: Users = {}
        self._resized: set[str] = set()  # notebooks whose number of cells changed
        self._due: list[tuple[int, str]] = []  # heap: when time alone changes a student's status
        self._due_at: dict[str, int] = {}  # the entry of the heap that counts
        self._snapshot: str | None = None

    def changed(self, user_id: str, user: LiveUser) -> None:
        """Something happened to a student."""
        self._changed[user_id] = user

    def resized(self, path: str) -> None:
        """The number of cells of a notebook changed: so did everybody's progress on it."""
        self._resized.add(path)

    def retired(self, user_id: str) -> None:
        """A student left memory."""
        self._users.pop(user_id, None)
        self._changed.pop(user_id, None)
        self._due_at.pop(user_id, None)
        self._view.remove(user_id)
        self._snapshot = None

    @property
    def empty(self) -> bool:
        """Whether nothing is known of the class."""
        return not (self._users or self._changed or self._cohort.notebooks)

    def refresh(self) -> None:
        """Look at every student that changed, in fact or by the passing of time."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            due, user_id = heapq.heappop(self._due)
            if self._due_at.get(user_id) == due:
                del self._due_at[user_id]
                self._changed.setdefault(user_id, self._users[user_id])
        if self._resized:
            for user_id, view in self._view.users.items():
                if view.get("notebook_path") in self._resized:
                    self._changed.setdefault(user_id, self._users[user_id])
            self._resized.clear()
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        self._users.update(changed)
        for user_id, user in changed.items():
            view, due_at = user_view(user.state, now, self._thresholds, self._cohort)
            self._view.put(user_id, view)
            self._schedule(user_id, due_at)
        self._snapshot = None
        if not self.subscribers:
            self._view.take_changes()

    def _schedule(self, user_id: str, due_at: int | None) -> None:
        """One entry a student in the heap: a later due time waits for the earlier one to come up and look again."""
        known = self._due_at.get(user_id)
        if due_at is not None and (known is None or due_at < known):
            self._due_at[user_id] = due_at
            heapq.heappush(self._due, (due_at, user_id))

    def publish(self) -> None:
        """Make one frame of what changed since the last, encoded once, and offer it to every subscriber."""
        self.refresh()
        if not self._view.dirty:
            return
        self.seq += 1
        self._snapshot = None  # one made before has the seq before
        frame = self._frame("delta", "changes", self._view.take_changes())
        for subscriber in self.subscribers:
            subscriber.offer(self.name, frame)

    def snapshot(self) -> str:
        """A snapshot frame, as fresh as can be; encoded once however many ask."""
        self.refresh()
        if self._snapshot is None:
            self._snapshot = self._frame("snapshot", "state", self._view.snapshot())
        return self._snapshot

    def overview(self) -> dict[str, Any]:
        """The snapshot, for the API."""
        self.refresh()
        return {"epoch": self._epoch, "seq": self.seq, "state": self._view.snapshot()}

    def _frame(self, kind: str, field: str, content: dict[str, Any]) -> str:
        body = {"type": kind, "topic": self.name, "epoch": self._epoch, "seq": self.seq, field: content}
        return _encode(body).decode()
