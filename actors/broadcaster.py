"""The broadcaster: the latest state of every class, and conflated deltas for those who watch.

Mailboxes: `changed`, `notebooks` and `retired` hold one slot a student or notebook, so they cannot be full. It never
waits for a subscriber: a slow one's outbox conflates.
"""

from typing import Any, Final
from uuid import UUID, uuid4

import trio

from engine.clock import WallClock
from engine.cohort import Cohort
from engine.decode import is_class_id
from engine.errors import UnknownTopicError
from engine.faults import reach
from engine.ports import SessionRow
from engine.view import Thresholds

from .mailboxes import Mailboxes
from .router import Router
from .subscriber import Subscriber
from .topic import ClassTopic

_PREFIX: Final = "class:"


class Broadcaster:
    """`engine.ports.LiveFeed`."""

    def __init__(
        self,
        router: Router,
        mailboxes: Mailboxes,
        *,
        thresholds: Thresholds,
        interval_s: float,
        outbox_frames: int,
        clock: WallClock,
    ) -> None:
        self._router = router
        self._mailboxes = mailboxes
        self._thresholds = thresholds
        self._interval_s = interval_s
        self._outbox_frames = outbox_frames
        self._clock = clock
        # A new one with each start: a client that resumes with an older one gets a snapshot.
        self._epoch = uuid4().hex
        self._topics: dict[str, ClassTopic] = {}
        self._watched: dict[str, ClassTopic] = {}

    async def run(self) -> None:
        """Publish to the classes that are watched, every interval."""
        while True:
            await trio.sleep(self._interval_s)
            reach("broadcaster.publish")
            if self._watched:  # else the mailboxes conflate until somebody asks
                self._collect()
                for topic in list(self._watched.values()):
                    topic.publish()

    # --- engine.ports.LiveFeed

    def connect(self) -> Subscriber:
        """See `engine.ports.LiveFeed`."""
        return Subscriber(self._outbox_frames, self._join, self._leave, self._fresh)

    def overview(self, class_id: str) -> dict[str, Any]:
        """See `engine.ports.LiveFeed`."""
        self._collect()
        topic = self._topic(class_id) if class_id in self._router.cohorts else self._new_topic(Cohort(class_id))
        return {"class_id": class_id, **topic.overview()}

    def sessions(self, class_id: str, user_id: str) -> tuple[list[SessionRow], set[UUID]]:
        """See `engine.ports.LiveFeed`."""
        actor = self._router.users.get((class_id, user_id))
        return ([], set()) if actor is None or not actor.settled else actor.sessions()

    # --- inside

    def _collect(self) -> None:
        """Sort what the mailboxes hold by class. Cheap: students are looked at only when their class is."""
        for (class_id, user_id), actor in self._mailboxes.changed.take_all().items():
            actor.announced = False
            self._topic(class_id).changed(user_id, actor)
        for class_id, path in self._mailboxes.resized.take_all():
            self._topic(class_id).resized(path)
        for class_id, user_id in self._mailboxes.retired.take_all():
            if (class_id, user_id) not in self._router.users:
                self._topic(class_id).retired(user_id)

    def _topic(self, class_id: str) -> ClassTopic:
        topic = self._topics.get(class_id)
        if topic is None:
            topic = self._topics[class_id] = self._new_topic(self._router.cohort(class_id))
        return topic

    def _new_topic(self, cohort: Cohort) -> ClassTopic:
        return ClassTopic(cohort, self._epoch, self._thresholds, self._clock)

    def _named(self, name: str) -> ClassTopic:
        class_id = name.removeprefix(_PREFIX)
        if not name.startswith(_PREFIX) or not is_class_id(class_id):
            raise UnknownTopicError(f"there is no topic {name[:100]!r}: subscribe to class:<class id>")
        return self._topic(class_id)

    def _join(self, subscriber: Subscriber, name: str) -> None:
        topic = self._named(name)
        if not topic.subscribers:
            self._collect()
            topic.refresh()  # what nobody watched is in the snapshot, not in the first delta
        topic.subscribers.add(subscriber)
        self._watched[name] = topic

    def _leave(self, subscriber: Subscriber, name: str) -> None:
        topic = self._named(name)
        topic.subscribers.discard(subscriber)
        if not topic.subscribers:
            self._watched.pop(name, None)
            if topic.empty:  # a class that only its watchers had heard of
                class_id = name.removeprefix(_PREFIX)
                self._topics.pop(class_id, None)
                self._router.cohorts.pop(class_id, None)

    def _fresh(self, name: str) -> str:
        self._collect()
        return self._named(name).snapshot()
