"""Cuts and resumes: a client that applies what it gets always holds what a fresh snapshot would say."""

import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from actors.broadcaster import Broadcaster
from actors.mailboxes import Mailboxes
from actors.router import Router
from actors.session import SessionActor, SessionContext
from engine.dirty import DirtyUsers
from engine.watermark import Watermark
from loadtest.views import merged
from tests.actors.world import IDLE_MS, LIMITS, RETIRE_MS, THRESHOLDS, Clock
from tests.adapters.events import run
from tests.engine.strategies import many

USERS = ("ana", "__proto__", "constructor", "~1", "null", "a/b%", "users", "演習", " ")
NOTEBOOK = "n/1.ipynb"
TOPICS = (
    "class:default",
    *(f"user:default/{quote(user, safe='')}" for user in USERS[:3]),
    f"notebook:default/{quote(NOTEBOOK, safe='')}",
)
OUTBOX = 3


class Class:
    """One class under a broadcaster, driven by hand: no task runs, so hypothesis may run it a thousand times."""

    def __init__(self) -> None:
        self.clock = Clock()
        mailboxes = Mailboxes()
        journal = SimpleNamespace(last_seq=0)
        self.context = SessionContext("j", IDLE_MS, DirtyUsers(), mailboxes, set(), journal, THRESHOLDS)
        self.router = Router(
            journal, self.context, Watermark(), limits=LIMITS, retire_after_ms=RETIRE_MS, clock=self.clock
        )
        self.broadcaster = Broadcaster(
            self.router,
            mailboxes,
            thresholds=THRESHOLDS,
            interval_s=1,
            outbox_frames=OUTBOX,
            clock=self.clock,
            facts=dict,
        )
        self._part = Watermark().open(10**6, 10**6)
        self._seq = 0

    def event(self, user: str, **fields: Any) -> None:
        self._seq += 1
        key = ("default", user)
        actor = self.router.users.get(key)
        if actor is None:
            actor = self.router.users[key] = SessionActor(key, self.context, 4)
        event = run(user, time=self.clock.now, notebook_path=NOTEBOOK, **fields)
        self.router.observe(event)
        actor._apply((self._part, self.clock.now, [(self._seq, event)]))

    def retire(self, user: str) -> None:
        if self.router.users.pop(("default", user), None) is not None:
            self.context.mailboxes.retired.put(("default", user), None)


def taken(outbox) -> dict[str, Any] | None:
    """The next frame; None when there is none."""
    if not outbox._frames and not outbox._due:
        return None
    try:
        outbox.next_frame().send(None)
    except StopIteration as done:
        return json.loads(done.value)
    raise AssertionError("it waits")


class Client:
    """Holds one topic. ``whole``: it never got a snapshot but the first, so no alert may be missing."""

    def __init__(self, classroom: Class, topic: str) -> None:
        self._broadcaster = classroom.broadcaster
        self.topic = topic
        self.state: Any = None
        self.position: tuple[str, int] | None = None
        self.alerts: dict[str, Any] = {}
        self.outbox = None
        self.connect()

    def connect(self) -> None:
        if self.outbox is None:
            self.outbox = self._broadcaster.connect()
            self.outbox.subscribe(self.topic, self.position)

    def cut(self) -> None:
        if self.outbox is not None:
            self.outbox.close()
            self.outbox = None

    def read(self) -> bool:
        frame = None if self.outbox is None else taken(self.outbox)
        if frame is None:
            return False
        assert frame["topic"] == self.topic
        if self.position is not None:
            assert frame["seq"] >= self.position[1]
        self.position = (frame["epoch"], frame["seq"])
        match frame["type"]:
            case "snapshot":
                self.state = frame["state"]
            case "delta":
                self.state = merged(self.state, frame["changes"])
            case "alerts":
                self.alerts |= {alert["id"]: alert for alert in frame["alerts"]}
        return True


_users = st.sampled_from(USERS)
steps = many(
    st.one_of(
        st.tuples(st.just("event"), _users, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("event"), _users, st.just(0), st.just(True)),
        st.tuples(st.just("help"), _users, st.sampled_from(("help_requested", "help_resolved"))),
        st.tuples(st.just("retire"), _users),
        st.tuples(st.just("wait"), st.sampled_from((1000, 100_000, 500_000))),
        st.tuples(st.sampled_from(("publish", "publish", "alarm"))),
        st.tuples(st.sampled_from(("join", "cut", "resume", "read", "read", "read")), st.integers(0, 5)),
    ),
    60,
)


@given(st.sampled_from(TOPICS), steps)
def test_whoever_was_cut_and_resumed_holds_what_a_fresh_snapshot_says(topic, taken_steps):
    classroom = Class()
    broadcaster = classroom.broadcaster
    clients = [Client(classroom, topic)]
    for step in taken_steps:
        match step:
            case ("event", user, index, failed):
                classroom.event(user, cell_index=index, has_error=failed, execution_duration_ms=float(index))
            case ("help", user, kind):
                classroom.event(user, event_type=kind)
            case ("retire", user):
                classroom.retire(user)
            case ("wait", duration):
                classroom.clock.now += duration
            case ("publish",):
                broadcaster.publish()
            case ("alarm",):
                broadcaster.publish_alerts()
            case ("join", _):
                clients.append(Client(classroom, topic))
            case (what, number):
                getattr(clients[number % len(clients)], "connect" if what == "resume" else what)()
    broadcaster.publish_alerts()
    for client in clients:
        client.connect()
    broadcaster.publish()
    for client in clients:
        while client.read():
            pass
    fresh = Client(classroom, topic)
    fresh.read()
    for client in clients:
        assert client.state == fresh.state


@given(steps)
def test_no_alert_is_missed_by_whoever_resumes(taken_steps):
    classroom = Class()
    broadcaster = classroom.broadcaster
    cut, witness = (Client(classroom, "class:default") for _ in range(2))
    for client in (cut, witness):
        client.read()
    for step in taken_steps:
        match step:
            case ("event", user, index, failed):
                classroom.event(user, cell_index=index, has_error=failed)
            case ("help", user, kind):
                classroom.event(user, event_type=kind)
            case ("publish",):
                broadcaster.publish()
            case ("alarm",):
                broadcaster.publish_alerts()
            case ("cut" | "resume" | "read" as what, _):
                getattr(cut, "connect" if what == "resume" else what)()
        while witness.read():
            pass
    broadcaster.publish_alerts()
    cut.connect()
    for client in (cut, witness):
        while client.read():
            pass
    assert cut.alerts == witness.alerts
    errors = [step for step in taken_steps if step[0] == "event" and step[3]]
    assert sum(alert["alert"] == "error" for alert in witness.alerts.values()) == len(errors)
