"""Instructors' sockets: each follows its class on the live stream and notes when which news came.

What comes is noted, not judged: `notifications.py` compares it with what was sent when the run is over.
"""

from array import array
from collections import Counter
from datetime import datetime
from functools import lru_cache
from math import inf
from typing import Final, NamedTuple

import msgspec
import trio

from loadtest.errors import TransportError
from loadtest.histograms import Histogram
from loadtest.plan import Clock
from loadtest.stream import connect
from loadtest.target import Target
from loadtest.views import ClassChanges, ClassState, Step, View

AGAIN_AFTER_S: Final = 0.25
# How the contract has a subscriber told that it reads too slowly: that is its own fault.
TOO_SLOW: Final = "closed with 1013"


class _Alert(msgspec.Struct, gc=False):
    """What identifies an alert here: `at` is the event's time, and no two events of a student have the same."""

    id: str
    alert: str
    user_id: str
    at: datetime


class _Frame(msgspec.Struct, gc=False):
    type: str
    topic: str = ""
    epoch: str = ""
    seq: int = 0
    message: str = ""  # of an error
    alerts: list[_Alert] = []
    changes: ClassChanges | None = None
    state: ClassState | None = None


_decode: Final = msgspec.json.Decoder(_Frame).decode
_OF_TOPICS: Final = frozenset({"snapshot", "delta", "alerts"})


class Rows(NamedTuple):
    """What a frame tells of students: one row for each with who, and the time in ms of the latest event; and alerts."""

    users: "array[int]"
    at_ms: "array[int]"
    alerts: list[tuple[str, tuple[int, str, int]]]  # id, and whom it is about, kind, event's time in ms
    strangers: frozenset[str]  # those who are none of the students


class _Told:
    """What a frame tells: alerts by id, kind, student and time, and each student's latest event. Times in ms."""

    __slots__ = ("_alerts", "_among", "_rows", "_users", "fault", "step", "topic")

    def __init__(
        self,
        fault: str | None,
        topic: str,
        step: Step | None,
        alerts: list[tuple[str, str, str, int]],
        users: list[tuple[str, int | None]],
    ) -> None:
        """`step` is that of the topic's view, where it is a frame of a topic."""
        self.fault = fault
        self.topic = topic
        self.step = step
        self._alerts = alerts
        self._users = users
        self._among: dict[str, int] | None = None
        self._rows = Rows(array("i"), array("q"), [], frozenset())

    def rows(self, students: dict[str, int]) -> Rows:
        """By the students' indices: made once for all who follow their class."""
        if students is not self._among:
            known = [
                (students[user_id], at_ms)
                for user_id, at_ms in self._users
                if user_id in students and at_ms is not None
            ]
            told_of = {user_id for user_id, _ in self._users}.union(user_id for _, _, user_id, _ in self._alerts)
            self._rows = Rows(
                array("i", (index for index, _ in known)),
                array("q", (at_ms for _, at_ms in known)),
                [
                    (alert_id, (students[user_id], kind, at_ms))
                    for alert_id, kind, user_id, at_ms in self._alerts
                    if user_id in students
                ],
                frozenset(told_of - students.keys()),
            )
            self._among = students
        return self._rows


# All subscribers of a class get the same text within a moment: read once, a hundred of them cost little more than one.
# As many as come within a second: of a thousand some are behind.
@lru_cache(maxsize=64)
def _read(text: bytes) -> _Told:
    frame = _decode(text)
    body = frame.changes if frame.state is None else frame.state
    users = {} if body is None else body.get("users", {})
    return _Told(
        frame.message if frame.type == "error" else None,
        frame.topic,
        Step(frame.epoch, frame.seq, body, snapshot=frame.type == "snapshot") if frame.type in _OF_TOPICS else None,
        [(alert.id, alert.alert, alert.user_id, _milliseconds(alert.at)) for alert in frame.alerts],
        [
            (user_id, None if user.get("last_activity") is None else _milliseconds(_time(user["last_activity"])))
            for user_id, user in users.items()
            if user is not None
        ],
    )


def _time(text: object) -> datetime:
    """A time as JSON has it; msgspec.ValidationError when it is none."""
    return msgspec.convert(text, datetime)


def _milliseconds(when: datetime) -> int:
    """Since the epoch."""
    return round(when.timestamp() * 1000)


class Subscriber:
    """Follows one class; connects again when it is cut."""

    def __init__(self, target: Target, class_id: str, users: dict[str, int], clock: Clock) -> None:
        """`users` gives the index of each student; of others on the topic only that they were told of is noted."""
        self.class_id = class_id
        self._topic = f"class:{class_id}"
        # Frames that told news of students, and when each came. All who follow the class share the rows.
        self.seen: list[Rows] = []
        self.seen_offset_s: array[float] = array("d")
        self.alerts: dict[tuple[int, str, int], float] = {}  # by (user, kind, event's time in ms): when it came first
        self.repeated = 0  # alerts that came again
        self.doubled: set[tuple[int, str, int]] = set()  # those that came under another id too
        self.strangers: set[str] = set()  # users on the topic who are none of `users`
        self.view: View | None = None  # None: not subscribed
        self.misplaced: Counter[str] = Counter()  # frames that cannot come where they came, by why
        self.dropped: Counter[str] = Counter()  # subscriptions that ended, by why, although the daemon went on
        self.skipped = 0  # numbers of frames that did not come, as when several are made one
        self.frames = 0
        self.cuts: list[str] = []
        self.spans: list[list[float]] = []  # when it was subscribed: [since, until]
        self.recent = Histogram()  # of alerts, for the live table
        self._target = target
        self.users = users
        self._clock = clock
        self._ids: set[str] = set()
        self._lost: tuple[str, str] | None = None  # epoch of the subscription that ended last, and why it did
        self.last_news_s = 0.0
        self.ready = trio.Event()

    def restart(self, clock: Clock) -> None:
        """The run begins at another moment than was thought; the subscription that stands began before it."""
        self._clock = clock
        self.spans = [[min(0.0, clock.offset_s), inf]] if self._subscribed else []

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
            except TransportError as error:
                if self._subscribed or not self.cuts:  # a daemon that is away is asked again and again: told once
                    self.cuts.append(str(error))
                if self.view is not None:
                    self._lost = self.view.epoch, str(error)
            finally:
                self.view = None
                if self._subscribed:
                    self.spans[-1][1] = self._clock.offset_s
            await trio.sleep(AGAIN_AFTER_S)

    @property
    def _subscribed(self) -> bool:
        return bool(self.spans) and self.spans[-1][1] == inf

    async def _follow(self) -> None:
        stream = await connect(self._target)
        try:
            await stream.send(msgspec.json.encode({"type": "subscribe", "topics": [self._topic]}))
            while True:
                messages = await stream.receive()
                now = self._clock.offset_s
                for message in messages:
                    self._take(_read(message), now)
        except (OSError, trio.BrokenResourceError) as error:
            raise TransportError("closed with 1006") from error
        except msgspec.DecodeError as error:
            self.misplaced["what is no frame"] += 1
            raise TransportError("was sent what is no frame") from error
        finally:
            with trio.CancelScope(shield=True):  # at once: it says no good-bye
                await stream.aclose()

    def _take(self, told: _Told, now: float) -> None:
        if told.fault is not None:
            raise TransportError(told.fault)
        self.frames += 1
        if told.step is not None:
            if told.topic != self._topic:
                self.misplaced["a frame of another topic"] += 1
                return
            self._show(told.step, now)
        rows = told.rows(self.users)
        for alert_id, alert in rows.alerts:
            self._take_alert(alert_id, alert, now)
        if rows.strangers:
            self.strangers |= rows.strangers
        if rows.users:
            self.last_news_s = now
            self.seen.append(rows)
            self.seen_offset_s.append(now)

    def _show(self, step: Step, now: float) -> None:
        if fault := step.fault(self.view):
            self.misplaced[fault] += 1
        elif self.view is not None and not step.snapshot:
            self.skipped += step.seq - self.view.seq - 1
        self.view = step.after(self.view)
        if self._lost is not None:
            epoch, why = self._lost
            if epoch == step.epoch and why != TOO_SLOW:
                self.dropped[why] += 1
            self._lost = None
        if step.snapshot:
            if not self._subscribed:
                self.spans.append([now, inf])
            self.ready.set()

    def _take_alert(self, alert_id: str, alert: tuple[int, str, int], now: float) -> None:
        self.last_news_s = now
        if alert_id in self._ids:
            self.repeated += 1
            return
        self._ids.add(alert_id)
        if alert in self.alerts:
            self.doubled.add(alert)
        self.alerts.setdefault(alert, now)
        self.recent.record(now - self._clock.offset_of(alert[2]))
