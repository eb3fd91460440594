"""The broadcaster: the latest state of every class, and conflated deltas for those who watch.

Mailboxes: `changed`, `notebooks` and `retired` hold one slot a student or notebook, `alerts` and `ops` the newest, so
they cannot be full. It never waits for a subscriber: a slow one's outbox conflates.
"""

from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Any, Final
from uuid import UUID, uuid4

import trio

from engine.alerts import ops_alert
from engine.clock import WallClock
from engine.cohort import Cohort
from engine.faults import reach
from engine.ports import ClassSession, SessionRow
from engine.rows import all_sessions, session_row
from engine.topics import CLASS, OPS, USER, TopicName, parse_topic
from engine.view import Thresholds

from .class_topic import ClassTopic, NotebookTopic, PartTopic, UserTopic
from .mailboxes import Mailboxes
from .ops_topic import Facts, OpsTopic
from .router import Router
from .subscriber import Frame, Subscriber
from .topic import Topic

# Alerts are gathered this long, in seconds: the contract's 20 ms, less what the frame then takes.
ALERTS_S: Final = 0.012
# Topics about a student or a notebook that nobody watches and that are kept for those who resume.
_MAX_RESTING: Final = 1000


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
        facts: Facts,
    ) -> None:
        self._router = router
        self._mailboxes = mailboxes
        self._thresholds = thresholds
        self._interval_s = interval_s
        self._outbox_frames = outbox_frames
        self._clock = clock
        # A new one with each start: a client that resumes with an older one gets a snapshot.
        self._epoch = uuid4().hex
        self._classes: dict[str, ClassTopic] = {}
        self._parts: dict[str, PartTopic] = {}  # by name as subscribers spell it
        self._resting: dict[str, None] = {}  # of these, the ones that nobody watches, the longest first
        self._ops = OpsTopic(self._epoch, lambda: {**facts(), **self._facts()})
        self._watched: dict[str, Topic] = {}
        self._highest = 0  # seq that any topic reached that is kept no longer: a new one begins behind it

    async def run(self) -> None:
        """Publish to the topics that are watched: alerts at once, the rest every interval."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_alerts, self._mailboxes.alerts.wait_filled)
            nursery.start_soon(self._publish_alerts, self._mailboxes.ops.wait_filled)
            while True:
                await trio.sleep(self._interval_s)
                reach("broadcaster.publish")
                if self._watched:  # else the mailboxes conflate until somebody asks
                    self.publish()

    def publish(self) -> None:
        """One delta to each topic that is watched, where something changed."""
        self._collect()
        for topic in list(self._watched.values()):
            if isinstance(topic, PartTopic):
                topic.whole.publish()
            topic.publish()

    def publish_alerts(self) -> None:
        """What waits, to the topics it concerns."""
        for class_id, alerts in self._mailboxes.alerts.take_all().items():
            self._class(class_id).alarm(alerts)
        now = self._clock()
        for (what, class_id, subject), message in self._mailboxes.ops.take_all().items():
            self._ops.tell([ops_alert(what, class_id, subject, message, now)])

    async def _publish_alerts(self, wait_filled: Callable[[], Awaitable[None]]) -> None:
        while True:
            await wait_filled()
            await trio.sleep(ALERTS_S)
            reach("broadcaster.alerts")
            self.publish_alerts()

    # --- engine.ports.LiveFeed

    def connect(self) -> Subscriber:
        """See `engine.ports.LiveFeed`."""
        return Subscriber(self._outbox_frames, self)

    def overview(self, class_id: str) -> dict[str, Any]:
        """See `engine.ports.LiveFeed`."""
        self._collect()
        known = class_id in self._router.cohorts
        topic = self._class(class_id) if known else self._new_class(class_id, Cohort(class_id))
        return {"class_id": class_id, **topic.overview()}

    def sessions(self, class_id: str, user_id: str) -> tuple[list[SessionRow], set[UUID]]:
        """See `engine.ports.LiveFeed`."""
        actor = self._router.users.get((class_id, user_id))
        return ([], set()) if actor is None or not actor.settled else actor.sessions()

    def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """See `engine.ports.LiveFeed`. Looks at every student of the class; rows are made only of those told."""
        found = [
            (session.start, actor.state, session)
            for actor in self._router.users.mates(class_id)
            if actor.settled and actor.state.last_event >= since
            for session in all_sessions(actor.state)
            if session.start >= since and (before is None or session.start <= before[0])
        ]
        newest = sorted(found, key=itemgetter(0), reverse=True)
        rows: list[ClassSession] = []
        for start, state, session in newest:
            if len(rows) >= limit and start != rows[-1].row.started_at:
                break  # sessions that start together are told together: their ids decide the order
            row = session_row(state, session)
            if before is None or (row.started_at, row.id) < before:
                rows.append(ClassSession(state.user_id, None if state.name is None else state.name.value, row))
        return rows

    # --- actors.subscriber.Feed

    def join(self, subscriber: Subscriber, topic: str) -> None:
        """See `actors.subscriber.Feed`."""
        found = self._find(topic) or self._make(topic, parse_topic(topic))
        if not found.subscribers:
            self._collect()
            self.publish_alerts()
            if isinstance(found, PartTopic):
                found.whole.publish()
                found.wake()
                self._resting.pop(topic, None)
            found.publish()  # what nobody watched is in what it begins with, not in the first delta
        found.subscribers.add(subscriber)
        self._watched[topic] = found

    def leave(self, subscriber: Subscriber, topic: str) -> None:
        """See `actors.subscriber.Feed`."""
        found = self._watched[topic]
        found.subscribers.discard(subscriber)
        if found.subscribers:
            return
        del self._watched[topic]
        if isinstance(found, ClassTopic):
            self._drop_empty(found)
        elif isinstance(found, PartTopic):
            found.rest()
            self._resting[topic] = None
            if len(self._resting) > _MAX_RESTING:
                self._forget(next(iter(self._resting)))

    def begin(self, topic: str, resume: tuple[str, int] | None) -> list[Frame]:
        """See `actors.subscriber.Feed`."""
        self._collect()
        found = self._watched[topic]
        return [found.snapshot()] if resume is None else found.resume(*resume)

    def catch_up(self, topic: str, seq: int) -> list[Frame]:
        """See `actors.subscriber.Feed`."""
        self._collect()
        return self._watched[topic].catch_up(seq)

    # --- inside

    def _collect(self) -> None:
        """Sort what the mailboxes hold by class. Cheap: students are looked at only when their class is."""
        for (class_id, user_id), actor in self._mailboxes.changed.take_all().items():
            actor.announced = False
            self._class(class_id).changed(user_id, actor)
        for class_id, path in self._mailboxes.resized.take_all():
            self._class(class_id).resized(path)
        for class_id, user_id in self._mailboxes.retired.take_all():
            if (class_id, user_id) not in self._router.users:
                self._class(class_id).retired(user_id)

    def _facts(self) -> dict[str, Any]:
        return {
            "classes": len(self._router.cohorts),
            "students": len(self._router.users),
            "topics_watched": len(self._watched),
        }

    def _find(self, name: str) -> Topic | None:
        return self._watched.get(name) or self._parts.get(name)

    def _make(self, name: str, parsed: TopicName) -> Topic:
        if parsed.kind == OPS:
            return self._ops
        whole = self._class(parsed.class_id)
        if parsed.kind == CLASS:
            return whole
        kind = UserTopic if parsed.kind == USER else NotebookTopic
        topic = self._parts[name] = kind(name, whole, self._epoch, self._highest + 1, parsed.part)
        return topic

    def _class(self, class_id: str) -> ClassTopic:
        topic = self._classes.get(class_id)
        if topic is None:
            topic = self._classes[class_id] = self._new_class(class_id, self._router.cohort(class_id))
        return topic

    def _new_class(self, class_id: str, cohort: Cohort) -> ClassTopic:
        first = self._highest + 1 if self._highest else 0
        return ClassTopic(
            f"{CLASS}:{class_id}", self._epoch, first, cohort, thresholds=self._thresholds, clock=self._clock
        )

    def _forget(self, name: str) -> None:
        """A topic about a part that nobody watches is kept no longer."""
        del self._resting[name]
        topic = self._parts.pop(name)
        topic.forget()
        self._highest = max(self._highest, topic.seq)
        self._drop_empty(topic.whole)

    def _drop_empty(self, topic: ClassTopic) -> None:
        """A class that only its watchers had heard of."""
        if topic.empty:
            class_id = topic.cohort.class_id
            self._classes.pop(class_id, None)
            self._router.cohorts.pop(class_id, None)
            self._highest = max(self._highest, topic.seq)
