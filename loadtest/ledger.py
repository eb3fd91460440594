"""What was sent and what became of it: one entry for each event, and times as histograms."""

from typing import Final

import msgspec

from loadtest.histograms import Histogram

# What is known of an event.
UNKNOWN: Final = 0  # sent, and no answer says that it was taken or refused: it may be there or not
ACKNOWLEDGED: Final = 1
REFUSED: Final = 2  # answered, and not taken: it must not be there


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One event."""

    event_id: str
    user: int  # the person's index
    at_ms: int  # its time, which is when it was due: milliseconds since the epoch
    execution: bool
    failed: bool
    alert: str  # the kind of alert that it must raise, or none
    session: str
    state: int = UNKNOWN
    answered_ms: int = 0  # when its acknowledgement came
    columns: int = 0  # what its row has to hold, see `columns.py`

    @property
    def of_cell(self) -> bool:
        """Whether it is an event of a cell: one that ran, or an error."""
        return self.execution or self.failed


class Second(msgspec.Struct):
    """What was due in one second of a run."""

    requests: int = 0
    acknowledged: int = 0  # events
    errors: int = 0
    post: Histogram = msgspec.field(default_factory=Histogram)
    query: Histogram = msgspec.field(default_factory=Histogram)


class Tally(msgspec.Struct):
    """Counts and times of one process, by the second in which each request was due."""

    seconds: dict[int, Second] = {}
    requests: int = 0
    errors: int = 0  # requests that were not answered 2xx at the first attempt
    retries: int = 0
    given_up: int = 0  # requests that were never answered 2xx
    overdue: int = 0  # of those: due, and not sent when time was up
    cut_off: int = 0  # of an interrupted run: requests that had no answer yet, and are in no other figure
    cut_off_s: float = 0.0  # how long the first of them had waited
    not_new: list[str] = []  # events that were answered as duplicates though no attempt before had been taken
    capped: int = 0  # users who stopped because so many events as a run may have were sent
    kinds: dict[str, int] = {}  # what went wrong, how often
    behind: Histogram = msgspec.field(default_factory=Histogram)  # how late this process wakes: its own limit
    cpu_cores: float = 0.0  # of the busiest process, while the load and its last answers went on

    def second(self, offset_s: float) -> Second:
        """The second in which something was due."""
        number = max(0, int(offset_s))
        found = self.seconds.get(number)
        if found is None:
            found = self.seconds[number] = Second()
        return found

    def fault(self, kind: str) -> None:
        """Count what went wrong."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def merge(self, other: "Tally") -> None:
        """Add what another process counted; of CPU time the most counts, because each has a core of its own."""
        for number, theirs in other.seconds.items():
            mine = self.second(number)
            mine.requests += theirs.requests
            mine.acknowledged += theirs.acknowledged
            mine.errors += theirs.errors
            mine.post.merge(theirs.post)
            mine.query.merge(theirs.query)
        for kind, times in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + times
        for field in ("requests", "errors", "retries", "given_up", "overdue", "cut_off", "capped", "not_new"):
            setattr(self, field, getattr(self, field) + getattr(other, field))
        self.cut_off_s = max(self.cut_off_s, other.cut_off_s)
        self.cpu_cores = max(self.cpu_cores, other.cpu_cores)
        self.behind.merge(other.behind)
