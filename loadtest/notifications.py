"""When news of each event reached each subscriber: from the moment it was due until it was at the socket.

An alert names its event by student and time. A delta names a student's latest event, and tells of every earlier one
of that student too: each counts with its own wait.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from loadtest.histograms import Histogram
from loadtest.ledger import ACKNOWLEDGED, REFUSED, Entry
from loadtest.plan import Clock
from loadtest.subscribers import Subscriber

# News of an event that was acknowledged so shortly before a cut, or after the subscription, may have gone with it.
MARGIN_S = 1.0


class News(msgspec.Struct):
    """What all subscribers of a run saw."""

    alerts: Histogram = msgspec.field(default_factory=Histogram)
    deltas: Histogram = msgspec.field(default_factory=Histogram)
    by_second: dict[int, Histogram] = {}  # both, by when the event was due
    expected: int = 0  # alerts, over all subscribers
    excused: int = 0  # events whose news may have come while a subscriber was cut off
    unseen: int = 0  # events that no frame told of, over all subscribers
    missing_alerts: list[str] = []  # event ids, each once
    missing_deltas: list[str] = []
    doubled_alerts: list[str] = []  # of events whose alert came under two ids

    @property
    def all(self) -> Histogram:
        """Alerts and deltas."""
        whole = Histogram()
        whole.merge(self.alerts)
        whole.merge(self.deltas)
        return whole


def by_user(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """Each student's acknowledged events, by time."""
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.state == ACKNOWLEDGED:
            found[entry.user].append(entry)
    for events in found.values():
        events.sort(key=lambda entry: entry.at_ms)
    return dict(found)


def reckon(
    subscribers: Sequence[Subscriber], events: dict[int, list[Entry]], classes: dict[int, str], clock: Clock
) -> News:
    """Compare what came with what was acknowledged; `classes` gives each student's class."""
    news = News()
    missing_alerts: dict[str, None] = {}
    missing_deltas: dict[str, None] = {}
    doubled: dict[str, None] = {}
    for subscriber in subscribers:
        own = {user: found for user, found in events.items() if classes[user] == subscriber.class_id}
        _alerts(news, subscriber, own, clock, missing_alerts)
        _deltas(news, subscriber, own, clock, missing_deltas)
        doubled |= {
            entry.event_id: None
            for user, entries in own.items()
            for entry in entries
            if (user, entry.alert, entry.at_ms) in subscriber.doubled
        }
    news.missing_alerts = list(missing_alerts)
    news.missing_deltas = list(missing_deltas)
    news.doubled_alerts = list(doubled)
    return news


def _alerts(
    news: News, subscriber: Subscriber, events: dict[int, list[Entry]], clock: Clock, missing: dict[str, None]
) -> None:
    for user, entries in events.items():
        for entry in entries:
            if not entry.alert:
                continue
            came = subscriber.alerts.get((user, entry.alert, entry.at_ms))
            if came is None:
                if _listened(subscriber, entry, clock):
                    news.expected += 1
                    missing[entry.event_id] = None
                else:
                    news.excused += 1
                continue
            news.expected += 1
            _note(news, news.alerts, came, entry, clock)


def _deltas(
    news: News, subscriber: Subscriber, events: dict[int, list[Entry]], clock: Clock, missing: dict[str, None]
) -> None:
    told = dict.fromkeys(events, 0)  # how many of each student's events are told
    rows = (
        (user, at_ms, came)
        for seen, came in zip(subscriber.seen, subscriber.seen_offset_s, strict=True)
        for user, at_ms in zip(seen.users, seen.at_ms, strict=True)
    )
    for user, at_ms, came in rows:
        entries = events.get(user)
        if entries is None:
            continue
        number = told[user]
        while number < len(entries) and entries[number].at_ms <= at_ms:
            # Also what a snapshot told after a cut: the instructor learnt it then and not before.
            _note(news, news.deltas, came, entries[number], clock)
            number += 1
        told[user] = number
    for user, number in told.items():
        for entry in events[user][number:]:
            if _listened(subscriber, entry, clock):
                news.unseen += 1
                missing[entry.event_id] = None


def unfounded(subscribers: Iterable[Subscriber], entries: Iterable[Entry]) -> list[str]:
    """Alerts that nothing was the reason for: the ids of events that they name, or kind and time where they name none.

    Events that were refused are no reason, those of which nobody knows are.
    """
    told = {alert for subscriber in subscribers for alert in subscriber.alerts}
    moments = {(user, at_ms) for user, _, at_ms in told}
    events: dict[tuple[int, int], Entry] = {}
    failing: set[int] = set()
    for entry in entries:
        if entry.state != REFUSED:
            if entry.failed:
                failing.add(entry.user)
            if (entry.user, entry.at_ms) in moments:
                events[entry.user, entry.at_ms] = entry
    found = []
    for user, kind, at_ms in sorted(told):
        reason = events.get((user, at_ms))
        if reason is None:
            found.append(f"{kind} of student {user} at {at_ms / 1000:.3f}")
        elif not _founded(kind, reason, fails=user in failing):
            found.append(reason.event_id)
    return found


def _founded(kind: str, entry: Entry, *, fails: bool) -> bool:
    """Whether it is an alert of the contract, and the event may raise it; `fails`: its student did, once at least."""
    if kind in {"error", "stuck", "error_cluster"}:
        return entry.failed
    if kind in {"help_requested", "help_resolved"}:  # of a call that is repeated only the first is said to raise one
        return not entry.execution and entry.alert in {"", kind}
    return kind == "unstuck" and fails


def _listened(subscriber: Subscriber, entry: Entry, clock: Clock) -> bool:
    """Whether it was subscribed from before the event until a margin after its acknowledgement."""
    begin_s, end_s = clock.offset_of(entry.at_ms), clock.offset_of(entry.answered_ms) + MARGIN_S
    return any(since <= begin_s and end_s <= until for since, until in subscriber.spans)


def _note(news: News, histogram: Histogram, came: float, entry: Entry, clock: Clock) -> None:
    due_s = clock.offset_of(entry.at_ms)
    histogram.record(came - due_s)
    second = max(0, int(due_s))
    news.by_second.setdefault(second, Histogram()).record(came - due_s)
