"""A class as its subscribers see it: users and a summary, and the merge patch (RFC 7396) from one view to the next."""

from typing import Any, TypeAlias

from engine.view import PROGRESS_UNIT, STATUSES, UserView

Patch: TypeAlias = dict[str, Any]


def diff(old: UserView | None, new: UserView) -> Patch:
    """The merge patch that turns ``old`` into ``new``; empty when they are equal. Values are absolute."""
    if old is None:
        return dict(new)
    patch = {key: value for key, value in new.items() if old.get(key) != value}
    for key in old:
        if key not in new:
            patch[key] = None
    return patch


class ClassView:
    """The users of one class as last looked at, their summary, and the patch since the last frame."""

    def __init__(self) -> None:
        self.users: dict[str, UserView] = {}
        self._statuses = dict.fromkeys(STATUSES, 0)
        self._executions = 0
        self._errors = 0
        self._progress = 0  # sum, in PROGRESS_UNITs
        self._progressing = 0  # users that have a progress
        self._changed: dict[str, Patch | None] = {}
        self._told: dict[str, Any] = {}  # the summary in the last frame

    def put(self, user_id: str, view: UserView) -> None:
        """Replace a user's object."""
        old = self.users.get(user_id)
        patch = diff(old, view)
        if not patch:
            return
        if old is not None:
            self._count(old, -1)
        self._count(view, 1)
        self.users[user_id] = view
        pending = self._changed.get(user_id)
        if pending is None and user_id in self._changed:
            # Gone and back within one frame: clients that still hold the old object need every absent key cleared.
            self._changed[user_id] = dict.fromkeys(_KEYS) | patch
        elif pending is None:
            self._changed[user_id] = patch
        else:
            pending.update(patch)

    def remove(self, user_id: str) -> None:
        """A user retired: ``null`` in the next frame."""
        old = self.users.pop(user_id, None)
        if old is not None:
            self._count(old, -1)
            self._changed[user_id] = None

    @property
    def summary(self) -> dict[str, Any]:
        """The contract's class summary."""
        mean = self._progress / self._progressing / PROGRESS_UNIT if self._progressing else 0.0
        return {
            "total_students": len(self.users),
            **self._statuses,
            "cell_executions": self._executions,
            "error_count": self._errors,
            "avg_progress": round(mean, 4),
        }

    def snapshot(self) -> dict[str, Any]:
        """A snapshot's ``state``. It may be ahead of the last frame, so the next one tells the whole summary."""
        self._told = {}
        return {"users": self.users, "summary": self.summary}

    @property
    def dirty(self) -> bool:
        """Whether a frame is due."""
        return bool(self._changed)

    def take_changes(self) -> Patch:
        """The patch since the last call."""
        changes: Patch = {"users": self._changed}
        self._changed = {}
        summary = self.summary
        if patch := diff(self._told, summary):
            changes["summary"] = patch
        self._told = summary
        return changes

    def _count(self, view: UserView, sign: int) -> None:
        self._statuses[view["status"]] += sign
        self._executions += sign * view["cell_executions"]
        self._errors += sign * view["error_count"]
        if "progress" in view:
            self._progress += sign * round(view["progress"] * PROGRESS_UNIT)
            self._progressing += sign


# Every key that a user's object may lack.
_KEYS = (
    "user_name",
    "team",
    "notebook_path",
    "cell_index",
    "progress",
    "session_started_at",
    "help_since",
    "stuck_since",
)
