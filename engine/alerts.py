"""Alerts: what a teacher is told at once, one by one. Pure: an event, and the student before and after it.

Rules
-----
* Most events raise none. `rouses` looks at three attributes; only what it lets through is looked at twice.
* ``error``: a run failed. ``stuck``, ``unstuck``, ``help_requested``, ``help_resolved``: the student became so, or no
  longer is, by this event. A client that repeats its call, or resolves what nobody wanted, raises nothing; nor does a
  call that lapses in silence, because no event ends it.
* ``error_cluster``: `CLUSTER_STUDENTS` students failed on the same cell of a notebook within `CLUSTER_MS`, by event
  time. The next one of that cell comes only after nobody failed on it for as long.
* An alert's id is made of the event and the kind, so a replay raises the same one again, and clients know it.
"""

from typing import Any, Final

import msgspec

from engine.clock import rfc3339
from engine.event import EXECUTION_ERROR, HELP_REQUESTED, HELP_RESOLVED, Event, Order, error_class
from engine.ids import alert_uuid
from engine.session import UserState
from engine.view import Thresholds, help_wanted, trouble

ERROR: Final = "error"
STUCK: Final = "stuck"
UNSTUCK: Final = "unstuck"
ERROR_CLUSTER: Final = "error_cluster"

KEPT_ALERTS: Final = 1000  # a topic, for those who resume
FRAME_ALERTS: Final = 200  # a frame: many clients take no message over 1 MiB
# Recovery raises no alert for events that were received longer ago: the lesson went on. In ms.
STALE_MS: Final = 60_000
# Five failing at once are no accident in a class of twenty, and seldom in one of two hundred.
CLUSTER_STUDENTS: Final = 5
CLUSTER_MS: Final = 120_000
_MAX_CELLS: Final = 1000  # watched for clusters, a class
_MAX_MESSAGE: Final = 200  # characters of an error message; all of it is in the event's row

_ROUSING: Final = frozenset({EXECUTION_ERROR, HELP_REQUESTED, HELP_RESOLVED})


class Alert(msgspec.Struct, frozen=True, gc=False):
    """One alert, before anybody asks for it. It keeps no event: a thousand a topic are kept."""

    kind: str
    event_id: str
    time: int  # of the event, ms
    class_id: str
    user_id: str
    user_name: str | None = None
    notebook_path: str | None = None
    cell_id: str | None = None
    cell_index: int | None = None
    error_message: str | None = None
    students: tuple[str, ...] | None = None  # of a cluster
    received_at: int = 0  # ms

    @property
    def cell(self) -> tuple[str, str]:
        """Notebook and cell that it is about."""
        return (self.notebook_path or "", self.cell_id or f"#{self.cell_index}")

    def view(self) -> dict[str, Any]:
        """As subscribers see it: JSON values, absent ones left out."""
        message = self.error_message
        seen = {
            "id": str(alert_uuid(self.class_id, self.user_id, self.event_id, self.kind)),
            "alert": self.kind,
            "user_id": self.user_id,
            "at": rfc3339(self.time),
            "user_name": self.user_name,
            "notebook_path": self.notebook_path,
            "cell_id": self.cell_id,
            "cell_index": self.cell_index,
            "error_class": None if message is None else error_class(message),
            "error_message": message,
            "students": self.students,
        }
        return {key: value for key, value in seen.items() if value is not None}


class OpsAlert(Alert, frozen=True, gc=False, kw_only=True):
    """Something that an operator should look at; ``user_id`` is what of the class it is about."""

    message: str

    def view(self) -> dict[str, Any]:
        """See `Alert`."""
        return {
            "id": str(alert_uuid(self.class_id, self.user_id, self.event_id, self.kind)),
            "alert": self.kind,
            "class_id": self.class_id,
            "subject": self.user_id,
            "at": rfc3339(self.time),
            "message": self.message,
        }


def ops_alert(what: str, class_id: str, subject: str, message: str, at: int) -> OpsAlert:
    """``what`` happened to ``subject``, a student or a limit of the class, at a time in ms."""
    return OpsAlert(
        kind=what.replace(" ", "_"), event_id=str(at), time=at, class_id=class_id, user_id=subject, message=message
    )


def rouses(state: UserState, event: Event) -> bool:
    """Whether an event may raise an alert: it failed, is about help, or comes after a run that failed."""
    return bool(event.has_error) or event.event_type in _ROUSING or (state.run is not None and state.run.failed)


def apply_alerting(
    state: UserState, event: Event, received_at: int, idle_ms: int, thresholds: Thresholds
) -> list[Alert]:
    """`UserState.apply`, and the alerts that it raises."""
    was_stuck, had_help = _is_stuck(state, thresholds), _wants_help(state, received_at)
    state.apply(event, received_at, idle_ms)
    is_stuck, has_help = _is_stuck(state, thresholds), _wants_help(state, received_at)
    kinds = [ERROR] if event.failed else []
    if was_stuck != is_stuck:
        kinds.append(STUCK if is_stuck else UNSTUCK)
    if had_help != has_help:
        kinds.append(HELP_REQUESTED if has_help else HELP_RESOLVED)
    return [_alert(kind, state, event, received_at) for kind in kinds]


def _is_stuck(state: UserState, thresholds: Thresholds) -> bool:
    return trouble(state, thresholds)[1] is not None


def _wants_help(state: UserState, now: int) -> bool:
    return bool(state.help.requests) and help_wanted(state, now)[0] is not None


def _alert(kind: str, state: UserState, event: Event, received_at: int) -> Alert:
    message = event.error_message if kind in (ERROR, STUCK) else None
    name = None if state.name is None else state.name.value
    # By position, in the order of the fields: by name it costs six times as much.
    return Alert(
        kind, event.event_id, event.time, event.class_id, event.user_id, name, event.notebook_path, event.cell_id,
        event.cell_index, None if message is None else message[:_MAX_MESSAGE], None, received_at,
    )  # fmt: skip


class _Failing(msgspec.Struct):
    """One cell: who fails on it now."""

    latest: int  # the latest failure, event time in ms
    students: dict[str, tuple[Order, Alert]]  # each one's latest failure, until the cluster is told
    told: bool = False


class ErrorClusters:
    """The cells of a class that several students fail on at the same time."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], _Failing] = {}

    def observe(self, alert: Alert) -> Alert | None:
        """Take note of an ``error``; returns the cluster's alert when this one completes it."""
        if alert.kind != ERROR:
            return None
        failing = self._cells.pop(alert.cell, None)
        if failing is None or alert.time - failing.latest > CLUSTER_MS:
            failing = _Failing(alert.time, {})
        self._cells[alert.cell] = failing  # the latest touched last, so the first is the one to forget
        if len(self._cells) > _MAX_CELLS:
            del self._cells[next(iter(self._cells))]
        failing.latest = max(failing.latest, alert.time)
        if failing.told:
            return None
        order = Order(alert.time, alert.event_id)
        known = failing.students.get(alert.user_id)
        if known is None or order > known[0]:
            failing.students[alert.user_id] = (order, alert)
        failing.students = {
            user: failure
            for user, failure in failing.students.items()
            if failing.latest - failure[0].time <= CLUSTER_MS
        }
        if len(failing.students) < CLUSTER_STUDENTS:
            return None
        failing.told = True
        # Of the five the last by event time, not by arrival: the same five make the same id.
        last = max(failing.students.values(), key=lambda failure: failure[0])[1]
        students = tuple(sorted(failing.students))
        failing.students = {}
        return msgspec.structs.replace(last, kind=ERROR_CLUSTER, user_name=None, students=students)
