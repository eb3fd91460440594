"""What a daemon must know after a set of events, computed the slow and obvious way.

Takes events as clients send them (canonical names or the recorded client's), in any order, each any number of times.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import attrs

ALIASES = {
    "eventId": "event_id",
    "eventType": "event_type",
    "eventTime": "timestamp",
    "emailAddress": "user_id",
    "sessionId": "session_id",
    "notebookPath": "notebook_path",
    "cellIndex": "cell_index",
    "hasError": "has_error",
}
TYPES = {"help": "help_requested", "help_stop": "help_resolved", "cell_execution": "cell_executed"}

Event = dict[str, Any]


@attrs.frozen
class Counters:
    cell_executions: int
    error_count: int


class Oracle:
    def __init__(self, events: Iterable[Event]) -> None:
        distinct = {event["event_id"]: event for event in map(canonical, events)}
        self.events = sorted(distinct.values(), key=when)

    def of_type(self, *types: str) -> list[Event]:
        return [event for event in self.events if event["event_type"] in types]

    def users(self) -> dict[str, Counters]:
        """Each user's counters over all sessions."""
        grouped: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            grouped[event["user_id"]].append(event)
        return {user: counters(events) for user, events in grouped.items()}

    def sessions(self) -> Counter[tuple[str, str, Counters]]:
        """How many sessions there are of each (user, notebook, counters); their ids are the daemon's own affair."""
        grouped: dict[tuple[str, str, str | None], list[Event]] = defaultdict(list)
        for event in self.events:
            grouped[event["user_id"], event["notebook_path"], event.get("session_id")].append(event)
        return Counter((user, path, counters(events)) for (user, path, _), events in grouped.items())

    def help_episodes(self) -> int:
        """Requests that no open request stands before (of one user)."""
        types = [event["event_type"] for event in self.of_type("help_requested", "help_resolved")]
        return sum(pair == ("help_resolved", "help_requested") for pair in pairwise(["help_resolved", *types]))

    def last_runs(self) -> dict[tuple[str, int], Event]:
        """The last run of each cell, by (notebook, cell index) (of one user)."""
        return {(run["notebook_path"], run["cell_index"]): run for run in self.of_type("cell_executed")}

    def done(self, path: str) -> set[int]:
        """The cells of a notebook whose last run succeeded."""
        return {index for (notebook, index), run in self.last_runs().items() if notebook == path and succeeded(run)}

    def cells(self, path: str) -> int:
        """A notebook's length as far as anybody can know: the highest cell that was run, plus one."""
        return 1 + max(index for notebook, index in self.last_runs() if notebook == path)

    def consecutive_errors(self) -> int:
        """Failed runs in a row at the end, of the cell that was run last (of one user)."""
        runs = self.of_type("cell_executed")
        cell = [run for run in runs if cell_of(run) == cell_of(runs[-1])]
        return next((n for n, run in enumerate(reversed(cell)) if succeeded(run)), len(cell))


def canonical(event: Event) -> Event:
    renamed = {ALIASES.get(key, key): value for key, value in event.items()}
    renamed["event_type"] = TYPES.get(renamed["event_type"], renamed["event_type"])
    return renamed


def when(event: Event) -> tuple[str, str]:
    """Times are all written alike, so they sort as text."""
    return event["timestamp"], event["event_id"]


def counters(events: Iterable[Event]) -> Counters:
    executions = errors = 0
    for event in events:
        if event["event_type"] == "cell_executed":
            executions += 1
            errors += not succeeded(event)
        elif event["event_type"] == "execution_error":
            errors += 1
    return Counters(executions, errors)


def succeeded(run: Event) -> bool:
    return not run.get("has_error")


def cell_of(run: Event) -> tuple[str, int]:
    return run["notebook_path"], run["cell_index"]
