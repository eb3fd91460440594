"""What subscribers hold of a topic, and the merge patch (RFC 7396) from one frame, or any earlier one, to the next.

A view notes for each of its parts in which frame it last changed. So the patch since an old frame needs no history: it
is every part that changed later, as it is now, with ``null`` for what is gone.
"""

from typing import Any, Final, Protocol, TypeAlias

from engine.view import PROGRESS_UNIT, STATUSES, UserView

Patch: TypeAlias = dict[str, Any]

# Retired students of a class whose retirement is still told to those who resume. Past them, a snapshot is.
MAX_GONE: Final = 10_000


class View(Protocol):
    """What a topic shows."""

    @property
    def floor(self) -> int:
        """The patch since an earlier frame than this cannot be told any more."""

    @property
    def dirty(self) -> bool:
        """Whether a frame is due."""

    def snapshot(self) -> dict[str, Any]:
        """The whole. It may be ahead of the last frame."""

    def take_changes(self, seq: int) -> Patch:
        """The patch since the last call; it goes into frame ``seq``."""

    def since(self, seq: int) -> Patch:
        """The patch from frame ``seq`` to the last; it may be ahead of that."""


def diff(old: dict[str, Any] | None, new: dict[str, Any]) -> Patch:
    """The merge patch that turns ``old`` into ``new``; empty when they are equal. Values are absolute."""
    if old is None:
        return dict(new)
    patch = {key: value for key, value in new.items() if old.get(key) != value}
    for key in old:
        if key not in new:
            patch[key] = None
    return patch


class Document:
    """One flat object. Arrays in it are replaced whole, as in every merge patch."""

    floor = 0

    def __init__(self) -> None:
        self._object: dict[str, Any] = {}
        self._changed: Patch = {}
        self._frames: dict[str, int] = {}  # by key, gone ones too: there are few

    def put(self, new: dict[str, Any]) -> bool:
        """Replace the object; tells whether anything changed."""
        patch = diff(self._object, new)
        self._object = new
        self._changed.update(patch)
        return bool(patch)

    @property
    def dirty(self) -> bool:
        """See `View`."""
        return bool(self._changed)

    def snapshot(self) -> dict[str, Any]:
        """See `View`."""
        return self._object

    def take_changes(self, seq: int) -> Patch:
        """See `View`."""
        changes, self._changed = self._changed, {}
        self._frames.update(dict.fromkeys(changes, seq))
        return changes

    def since(self, seq: int) -> Patch:
        """See `View`."""
        return {key: self._object.get(key) for key, frame in self._frames.items() if frame > seq}


class ClassView:
    """The users of one class as last looked at, their summary, and the patch since the last frame."""

    def __init__(self) -> None:
        self.users: dict[str, UserView] = {}
        self.floor = 0
        self._statuses = dict.fromkeys(STATUSES, 0)
        self._executions = 0
        self._errors = 0
        self._progress = 0  # sum, in PROGRESS_UNITs
        self._progressing = 0  # users that have a progress
        self._changed: dict[str, Patch | None] = {}
        self._told: dict[str, Any] = {}  # the summary in the last frame
        self._frames: dict[str, int] = {}  # by user, retired ones too
        self._gone = 0  # how many of them are retired

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
            self._changed[user_id] = _whole(view)
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
        """See `View`. The next frame tells the whole summary, because this one may be ahead."""
        self._told = {}
        return {"users": self.users, "summary": self.summary}

    @property
    def dirty(self) -> bool:
        """See `View`."""
        return bool(self._changed)

    def take_changes(self, seq: int) -> Patch:
        """See `View`."""
        changed, self._changed = self._changed, {}
        for user_id, patch in changed.items():
            self._gone += (patch is None) - (self._frames.get(user_id, 0) < 0)
            self._frames[user_id] = -seq if patch is None else seq
        if self._gone > MAX_GONE:
            self._frames = {user_id: frame for user_id, frame in self._frames.items() if frame > 0}
            self._gone = 0
            self.floor = seq
        changes: Patch = {"users": changed}
        summary = self.summary
        if patch := diff(self._told, summary):
            changes["summary"] = patch
        self._told = summary
        return changes

    def since(self, seq: int) -> Patch:
        """See `View`. The whole objects of the users who changed."""
        self._told = {}
        users = {
            user_id: _whole(self.users[user_id]) if user_id in self.users else None
            for user_id, frame in self._frames.items()
            if abs(frame) > seq
        }
        return {"users": users, "summary": self.summary}

    def _count(self, view: UserView, sign: int) -> None:
        self._statuses[view["status"]] += sign
        self._executions += sign * view["cell_executions"]
        self._errors += sign * view["error_count"]
        if "progress" in view:
            self._progress += sign * round(view["progress"] * PROGRESS_UNIT)
            self._progressing += sign


def _whole(view: UserView) -> Patch:
    """The patch that makes any object of this user into ``view``."""
    return dict.fromkeys(_KEYS) | view


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
