"""The broadcaster: the latest state of every class, and conflated deltas for those who watch.

Mailboxes: `changed`, `notebooks` and `retired` hold one slot a student or notebook, so they cannot be full. It never
waits for a subscriber: a slow one's outbox conflates.
"""

from typing import Any, Final
from uuid import uuid4

import trio

from engine.clock import WallClock
from engine.decode import is_class_id
from engine.errors import UnknownTopicError
from engine.event import UserKey
from engine.ports import SessionRow
from engine.rows import session_rows
from engine.view import Thresholds

from .mailbox import ConflatingMailbox
from .router import Router
from .session import SessionActor
from .subscriber import Subscriber
from .topic import ClassTopic

_PREFIX: Final = "class:"


class Broadcaster:
    """`engine.ports.LiveFeed`."""

    def __init__(
        self,
        router: Router,
        *,
        changed: ConflatingMailbox[UserKey, SessionActor],
        resized: ConflatingMailbox[tuple[str, str], None],
        retired: ConflatingMailbox[UserKey, None],
        thresholds: Thresholds,
        interval_s: float,
        outbox_frames: int,
        clock: WallClock,
    ) -> None:
        self._router = router
        self._changed = changed
        self._resized = resized
        self._retired = retired
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
        return {"class_id": class_id, **self._topic(class_id).overview()}

    def sessions(self, class_id: str, user_id: str) -> list[SessionRow]:
        """See `engine.ports.LiveFeed`."""
        actor = self._router.users.get((class_id, user_id))
        return [] if actor is None or not actor.settled else session_rows(actor.state)

    # --- inside

    def _collect(self) -> None:
        """Sort what the mailboxes hold by class. Cheap: students are looked at only when their class is."""
        for (class_id, user_id), actor in self._changed.take_all().items():
            self._topic(class_id).changed(user_id, actor)
        for class_id, path in self._resized.take_all():
            self._topic(class_id).resized(path)
        for class_id, user_id in self._retired.take_all():
            if (class_id, user_id) not in self._router.users:
                self._topic(class_id).retired(user_id)

    def _topic(self, class_id: str) -> ClassTopic:
        topic = self._topics.get(class_id)
        if topic is None:
            cohort = self._router.cohort(class_id)
            topic = self._topics[class_id] = ClassTopic(cohort, self._epoch, self._thresholds, self._clock)
        return topic

    def _named(self, name: str) -> ClassTopic:
        class_id = name.removeprefix(_PREFIX)
        if not name.startswith(_PREFIX) or not is_class_id(class_id):
            raise UnknownTopicError(f"there is no topic {name[:100]!r}: subscribe to class:<class id>")
        return self._topic(class_id)

    def _join(self, subscriber: Subscriber, name: str) -> None:
        topic = self._named(name)
        topic.subscribers.add(subscriber)
        self._watched[name] = topic

    def _leave(self, subscriber: Subscriber, name: str) -> None:
        topic = self._named(name)
        topic.subscribers.discard(subscriber)
        if not topic.subscribers:
            self._watched.pop(name, None)

    def _fresh(self, name: str) -> str:
        self._collect()
        return self._named(name).snapshot()
