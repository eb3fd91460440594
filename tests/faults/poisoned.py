"""``classpulse`` with a fault put into it: events of the cell ``poison`` cannot be applied, and fail half way through."""

import sys

from engine.cli import main
from engine.event import Event
from engine.session import UserState

CELL = "poison"

_apply = UserState.apply


def _fail_half_way(self: UserState, event: Event, received_at: int, idle_ms: int) -> None:
    _apply(self, event, received_at, idle_ms)
    if event.cell_id == CELL:
        raise KeyError("a fault that the test put in")


if __name__ == "__main__":
    UserState.apply = _fail_half_way  # type: ignore[method-assign]
    sys.exit(main())
