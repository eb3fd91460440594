"""What a subscriber's page shows of a class: the last snapshot, with every frame since then merged into it.

Subscribers who were sent the same are at the same view, so that a hundred of them cost little more than one.
"""

from typing import Any, NamedTuple, TypedDict


class ClassState(TypedDict, total=False):
    """Of a topic `class:<id>`."""

    users: dict[str, dict[str, Any]]
    summary: dict[str, Any]


class ClassChanges(TypedDict, total=False):
    """A merge patch of it: a user that is None is gone."""

    users: dict[str, dict[str, Any] | None]
    summary: dict[str, Any]


class View(NamedTuple):
    """After a frame."""

    epoch: str
    seq: int
    state: ClassState


def merged(target: Any, patch: Any) -> Any:
    """The target after a merge patch (RFC 7396, section 2). Neither is changed; what stays the same is shared."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


class Step:
    """From one view to the next, by one frame."""

    __slots__ = ("_after", "_before", "_changes", "epoch", "seq", "snapshot")

    def __init__(self, epoch: str, seq: int, changes: ClassChanges | ClassState | None, *, snapshot: bool) -> None:
        """`changes` are none where a frame tells of something else, and takes a `seq` all the same."""
        self.epoch = epoch
        self.seq = seq
        self.snapshot = snapshot
        self._changes = changes
        self._before: View | None = None
        self._after: View | None = None

    def fault(self, before: View | None) -> str | None:
        """Why this frame cannot come after that view, or None."""
        if self.snapshot:
            return "a snapshot older than its stream" if self._is_behind(before, 1) else None
        if before is None:
            return "a frame before the snapshot"
        if before.epoch != self.epoch:
            return "another epoch without a snapshot"
        return "a seq that does not rise" if self._is_behind(before, 0) else None

    def _is_behind(self, before: View | None, by: int) -> bool:
        return before is not None and before.epoch == self.epoch and self.seq + by <= before.seq

    def after(self, before: View | None) -> View:
        """What is shown then."""
        if self._after is None or before is not self._before:
            made = View(self.epoch, self.seq, self._merged(before))
            if made != self._after:  # who began with another snapshot comes to the same view here, and stays with it
                self._after = made
            self._before = before
        return self._after

    def _merged(self, before: View | None) -> ClassState:
        known: ClassState = {} if before is None or self.snapshot else before.state
        if self._changes is None:
            return known
        state: ClassState = merged(known, self._changes)
        return state
