"""What subscribers and queries see of a student: a function of (state, now), in the contract's words.

The strongest status holds: help, stuck, error, active, idle, offline. What fades uses the time of receipt, so a late
clock or a replay cannot raise or lose it.
"""

from collections.abc import Collection
from typing import Any, Final, NamedTuple, TypeAlias

from engine.clock import rfc3339
from engine.cohort import Cohort
from engine.help import HELP_LAPSE_MS
from engine.learning_session import Session, all_closed
from engine.session import UserState

STATUSES: Final = ("active", "idle", "error", "stuck", "help", "offline")
# A user's object in a class state: JSON values, absent ones left out.
UserView: TypeAlias = dict[str, Any]
# Progress is rounded so that it sums exactly as an integer of this unit.
PROGRESS_UNIT: Final = 10_000


class Thresholds(NamedTuple):
    """When a status changes. Times are in ms since the last receipt."""

    idle_after_ms: int
    offline_after_ms: int
    stuck_errors: int


def user_view(state: UserState, now: int, thresholds: Thresholds, cohort: Cohort) -> tuple[UserView, int | None]:
    """The user's object at ``now`` (ms), and when time alone will next change it (ms; None: never)."""
    sessions = state.visible_sessions().values()
    status, presence_until = _presence(state, sessions, now, thresholds)
    consecutive, stuck_since = trouble(state, thresholds)
    help_since, help_until = help_wanted(state, now)
    if help_since is not None:
        status = "help"
    elif stuck_since is not None:
        status = "stuck"
    elif consecutive:
        status = "error"
    session = current_session(state, sessions)
    view: UserView = {
        "user_id": state.user_id,
        "user_name": None if state.name is None else state.name.value,
        "team": None if state.team is None else state.team.value,
        "status": status,
        **_place(state, cohort),
        "cell_executions": state.executions,
        "error_count": state.errors,
        "consecutive_errors": consecutive,
        "last_activity": rfc3339(state.last_event),
        "session_started_at": None if session is None else rfc3339(session.start),
        "help_since": None if help_since is None else rfc3339(help_since),
        "stuck_since": None if stuck_since is None else rfc3339(stuck_since),
    }
    changes = [moment for moment in (presence_until, help_until) if moment is not None]
    return {key: value for key, value in view.items() if value is not None}, min(changes, default=None)


def _presence(
    state: UserState, sessions: Collection[Session], now: int, thresholds: Thresholds
) -> tuple[str, int | None]:
    """Active, idle or offline, and until when (ms)."""
    idle_at = state.last_receipt + thresholds.idle_after_ms
    offline_at = state.last_receipt + thresholds.offline_after_ms
    if now >= offline_at or (sessions and all(map(state.closed, sessions)) and all(map(all_closed, state.packed))):
        return "offline", None
    return ("idle", offline_at) if now >= idle_at else ("active", idle_at)


def trouble(state: UserState, thresholds: Thresholds) -> tuple[int, int | None]:
    """Consecutive errors of the most recently run cell, and since when (event time, ms) they make the student stuck."""
    if state.run is None or not state.run.failed:
        return 0, None
    cell = state.failing_cell()
    consecutive = 1 if cell is None else cell.consecutive_errors or 1
    if consecutive < thresholds.stuck_errors:
        return consecutive, None
    failures = (state.run.order,) if cell is None or not cell.failures else cell.failures
    return consecutive, failures[min(thresholds.stuck_errors, len(failures)) - 1].time


def help_wanted(state: UserState, now: int) -> tuple[int | None, int | None]:
    """Since when (event time, ms) help is wanted, and when silence will end it (ms)."""
    since = state.help.since
    if since is None or not state.help.repeats:
        return since, None
    lapse_at = state.help.received_at + HELP_LAPSE_MS
    return (None, None) if now > lapse_at else (since, lapse_at + 1)


def _place(state: UserState, cohort: Cohort) -> UserView:
    """Notebook, cell, and progress there."""
    if state.current is None:
        return {}
    path = state.current.value
    notebook = state.notebooks.get(path)
    if notebook is None:
        return {"notebook_path": path}
    return {
        "notebook_path": path,
        "cell_index": None if notebook.cell is None else notebook.cell.value,
        "progress": progress_of(notebook.done, cohort.total_cells(path) or len(notebook.results)),
    }


def progress_of(done: int, total: int) -> float:
    """Cells done over cells there are, at most 1, to four places."""
    return round(min(1.0, done / total), 4) if total > 0 else 0.0


def current_session(state: UserState, sessions: Collection[Session]) -> Session | None:
    """The session that the latest activity belongs to, the current notebook's first."""
    path = None if state.current is None else state.current.value
    return max(sessions, key=lambda session: (session.notebook == path, session.end, session.start), default=None)
