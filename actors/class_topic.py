"""``class:<id>``: every student of a class, and the topics about one student or one notebook of it."""

import heapq
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final, TypeAlias

from engine.alerts import Alert, ErrorClusters
from engine.clock import WallClock
from engine.cohort import Cohort
from engine.delta import ClassView, Document
from engine.notebook import NotebookView
from engine.ports import LiveUser
from engine.rows import newest_rows, session_view
from engine.view import Thresholds, UserView, user_view

from .topic import Topic

Users: TypeAlias = dict[str, LiveUser]

SESSIONS_SHOWN: Final = 10  # of one student, the newest


class ClassTopic(Topic):
    """Looks at a student only when something happened to it and somebody asks."""

    def __init__(
        self, name: str, epoch: str, first: int, cohort: Cohort, *, thresholds: Thresholds, clock: WallClock
    ) -> None:
        self.cohort = cohort
        self.user_topics: defaultdict[str, set[UserTopic]] = defaultdict(set)  # by user id
        self.notebook_topics: defaultdict[str, set[NotebookTopic]] = defaultdict(set)  # by path
        self._view = ClassView()
        super().__init__(name, epoch, first, self._view)
        self._thresholds = thresholds
        self._clock = clock
        self._clusters = ErrorClusters()
        self._users: Users = {}
        self._changed: Users = {}
        self._resized: set[str] = set()  # notebooks whose number of cells changed
        self._due: list[tuple[int, str]] = []  # heap: when time alone changes a student's status
        self._due_at: dict[str, int] = {}  # the entry of the heap that counts
        self._oldest_news = 0  # receipt in ms, of what no delta tells yet

    def changed(self, user_id: str, user: LiveUser) -> None:
        """Something happened to a student."""
        self._changed[user_id] = user
        received_at = user.state.last_receipt
        if not 0 < self._oldest_news <= received_at:
            self._oldest_news = received_at

    def _news_of(self) -> int:
        received_at, self._oldest_news = self._oldest_news, 0
        return received_at

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
        self._concern(user_id, None)

    def alarm(self, alerts: Collection[Alert]) -> None:
        """Alerts of this class: told here, with the clusters that they complete, and to whom each concerns."""
        told: list[Alert] = []
        for alert in alerts:
            told.append(alert)
            cluster = self._clusters.observe(alert)
            if cluster is not None:
                told.append(cluster)
        self.tell(told)
        concerned: defaultdict[Topic, list[Alert]] = defaultdict(list)
        for alert in told:
            for user_topic in self.user_topics.get(alert.user_id, ()):
                concerned[user_topic].append(alert)
            for notebook_topic in self.notebook_topics.get(alert.notebook_path or "", ()):
                concerned[notebook_topic].append(alert)
        for topic, share in concerned.items():
            topic.tell(share)

    @property
    def empty(self) -> bool:
        """Whether nothing is known of the class, and nobody wants to know."""
        known = self._users or self._changed or self.cohort.notebooks
        return not (known or self.subscribers or self.user_topics or self.notebook_topics)

    def user(self, user_id: str) -> tuple[LiveUser, UserView] | None:
        """A student as last looked at; None when none is in memory."""
        user, view = self._users.get(user_id), self._view.users.get(user_id)
        return None if user is None or view is None else (user, view)

    @property
    def users(self) -> Users:
        """Everybody as last looked at."""
        return self._users

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
            for path in self._resized:
                for topic in self.notebook_topics.get(path, ()):
                    topic.stale = True
            self._resized.clear()
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        self._users.update(changed)
        for user_id, user in changed.items():
            view, due_at = user_view(user.state, now, self._thresholds, self.cohort)
            self._view.put(user_id, view)
            self._schedule(user_id, due_at)
            self._concern(user_id, user)
        self._snapshot = None

    def overview(self) -> dict[str, Any]:
        """The snapshot, for the API."""
        if self.subscribers:
            self.refresh()
        else:
            self.publish()
            self._oldest_news = 0
        return {"epoch": self._epoch, "seq": self.seq, "state": self._view.snapshot()}

    def _schedule(self, user_id: str, due_at: int | None) -> None:
        """One entry a student in the heap: a later due time waits for the earlier one to come up and look again."""
        known = self._due_at.get(user_id)
        if due_at is not None and (known is None or due_at < known):
            self._due_at[user_id] = due_at
            heapq.heappush(self._due, (due_at, user_id))

    def _concern(self, user_id: str, user: LiveUser | None) -> None:
        """Let the topics about this student, and about the notebooks, know."""
        for user_topic in self.user_topics.get(user_id, ()):
            user_topic.stale = True
        for topics in self.notebook_topics.values():
            for topic in topics:
                topic.changed(user_id, user)


class PartTopic(Topic):
    """About a part of a class. Looked at only while somebody subscribes, and always after its class."""

    def __init__(self, name: str, whole: ClassTopic, epoch: str, first: int) -> None:
        self.whole = whole
        self.stale = True  # something changed since it was last looked at
        self._document = Document()
        super().__init__(name, epoch, first, self._document)

    def wake(self) -> None:
        """Somebody subscribes."""
        self.stale = True

    def rest(self) -> None:
        """Nobody does any more; what it showed last and its alerts stay, for those who resume."""

    def forget(self) -> None:
        """It is kept no longer."""


class UserTopic(PartTopic):
    """``user:<class>/<id>``: the user's object and the last sessions; empty when the student is not in memory."""

    def __init__(self, name: str, whole: ClassTopic, epoch: str, first: int, user_id: str) -> None:
        super().__init__(name, whole, epoch, first)
        self._user_id = user_id
        whole.user_topics[user_id].add(self)

    def refresh(self) -> None:
        """See `Topic`."""
        self.whole.refresh()
        if self.stale:
            self.stale = False
            if self._document.put(self._look()):
                self._snapshot = None

    def forget(self) -> None:
        """See `PartTopic`."""
        _discard(self.whole.user_topics, self._user_id, self)

    def _look(self) -> dict[str, Any]:
        known = self.whole.user(self._user_id)
        if known is None:
            return {}
        user, view = known
        rows = newest_rows(user.state, SESSIONS_SHOWN)
        class_id = self.whole.cohort.class_id
        return {**view, "sessions": [session_view(self._user_id, class_id, row) for row in rows]}


class NotebookTopic(PartTopic):
    """``notebook:<class>/<path>``: the summary of a notebook over the students in memory."""

    def __init__(self, name: str, whole: ClassTopic, epoch: str, first: int, path: str) -> None:
        super().__init__(name, whole, epoch, first)
        self._path = path
        self._notebook: NotebookView | None = None  # None: nobody subscribes
        self._changed: dict[str, LiveUser | None] = {}
        whole.notebook_topics[path].add(self)

    def changed(self, user_id: str, user: LiveUser | None) -> None:
        """Something happened to a student; None: it retired."""
        if self._notebook is not None:
            self._changed[user_id] = user

    def wake(self) -> None:
        """See `PartTopic`."""
        super().wake()
        self._notebook = NotebookView()
        self._changed = dict(self.whole.users)

    def rest(self) -> None:
        """See `PartTopic`."""
        self._notebook = None
        self._changed = {}

    def forget(self) -> None:
        """See `PartTopic`."""
        _discard(self.whole.notebook_topics, self._path, self)

    def refresh(self) -> None:
        """See `Topic`."""
        self.whole.refresh()
        if self._notebook is None or not (self.stale or self._changed):
            return
        self.stale = False
        changed, self._changed = self._changed, {}
        for user_id, user in changed.items():
            self._notebook.put(user_id, None if user is None else user.state.notebooks.get(self._path))
        if self._document.put(self._notebook.summary(self.whole.cohort.total_cells(self._path))):
            self._snapshot = None


def _discard(topics: dict[str, set[Any]], key: str, topic: PartTopic) -> None:
    """Take a topic out of an index, and an empty entry with it."""
    topics[key].discard(topic)
    if not topics[key]:
        del topics[key]
