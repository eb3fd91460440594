"""Points that a test may make an actor fail at. Production installs nothing, and a point is then one look."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_hook: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """An actor is here. Never on the way of a single event: only where work is done in batches."""
    if _hook is not None:
        _hook(point)


@contextmanager
def installed(hook: Callable[[str], None]) -> Iterator[None]:
    """For tests: ``hook`` gets the name of each point that is reached in the block, and may raise."""
    global _hook  # noqa: PLW0603
    _hook = hook
    try:
        yield
    finally:
        _hook = None
