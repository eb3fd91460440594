"""The counters of one student or session against what was acknowledged."""

from loadtest.check import MOST_CANDIDATES, Check
from loadtest.ledger import ACKNOWLEDGED, REFUSED, Entry


def may_be(events: list[Entry], *, there: bool) -> bool:
    """Whether a student or session with these events may be there, or may be missing."""
    if there:
        return any(event.state != REFUSED for event in events)
    return not any(event.state == ACKNOWLEDGED for event in events)


def compare(events: list[Entry], executions: int, errors: int, check: Check, *, known: bool) -> None:
    """The counters of one student or session against what was acknowledged; what is doubtful may be in them."""
    sure = [event for event in events if event.state == ACKNOWLEDGED]
    refused = [event for event in events if event.state == REFUSED]  # first suspects, where there is too much
    doubtful = [event for event in events if event.state not in {ACKNOWLEDGED, REFUSED}]
    runs = [event for event in sure if event.execution]
    check.expected += len(runs)
    check.found += min(executions, len(runs))
    faults = 0
    suspects: list[Entry] = []
    if off := _outside(executions, len(runs), sum(event.execution for event in doubtful)):
        faults = abs(off)
        suspects = (off > 0 and [event for event in refused if event.execution]) or runs
    failed = [event for event in sure if event.failed]
    if off := _outside(errors, len(failed), sum(event.failed for event in doubtful)):
        faults = max(faults, abs(off))  # a failed run that is missing is missing in both
        # Fewer, so nearer to the one.
        suspects = (off > 0 and [event for event in refused if event.failed]) or failed
    if not known and not faults:
        faults, suspects = 1, sure or refused
    check.faults += faults
    check.astray += bool(faults)
    check.suspects += len(suspects)
    room = MOST_CANDIDATES - len(check.candidates)
    check.candidates += [event.event_id for event in suspects[:room]]


def _outside(counted: int, least: int, doubtful: int) -> int:
    """How far a counter is over (or, negative, under) what it may be."""
    return min(0, counted - least) or max(0, counted - least - doubtful)
