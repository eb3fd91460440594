"""After a run: what everybody took down, brought together and held against what was acknowledged."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest import notifications, rows, verification
from loadtest.check import MOST_CANDIDATES, Check
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry, Tally
from loadtest.notifications import News
from loadtest.plan import Clock, Plan
from loadtest.subscribers import Subscriber
from loadtest.users import Person
from loadtest.verification import AS_OVERVIEW, Shown
from loadtest.workers import Worker, merged


@dataclass(frozen=True)
class Accounts:
    """Of one run."""

    people: dict[int, Person]  # who sent something, by index
    tally: Tally
    entries: list[Entry]
    news: News | None  # None: nobody listened
    checks: list[Check]

    @property
    def events(self) -> dict[str, int]:
        """How many came to which end, and how many requests of all kinds that took."""
        ends = Counter(entry.state for entry in self.entries)
        return {
            "sent": len(self.entries),
            "acknowledged": ends[ACKNOWLEDGED],
            "refused": ends[REFUSED],
            "unknown": ends[UNKNOWN],
            "requests": self.tally.requests,
            "retries": self.tally.retries,
            "given up": self.tally.given_up,
            "never sent in time": self.tally.overdue,
        }


def gathered(
    plan: Plan,
    workers: Iterable[Worker],
    subscribers: Sequence[Subscriber],
    shown: Shown | None,
    clock: Clock,
    *,
    disturbed: bool,
) -> Accounts:
    """What workers and subscribers took down; `shown` is what they saw at the end, or nobody waited for it.

    `disturbed`: faults were made on purpose, so that a daemon which goes on may have had to let go of subscribers.
    """
    tally, entries = merged(workers)
    scenario = plan.scenario
    people = {user: scenario.person(user, plan.run, plan.class_id) for user in {entry.user for entry in entries}}
    taken = _taken(tally)
    if not subscribers:
        return Accounts(people, tally, entries, None, [taken])
    classes = {user: person.class_id for user, person in people.items()}
    news = notifications.reckon(subscribers, notifications.by_user(entries), classes, clock)
    checks = [
        taken,
        *_delivery(news, len(subscribers)),
        _nothing_else(subscribers, entries, fresh=plan.class_id is None),
        _kept(subscribers, disturbed=disturbed),
    ]
    if shown is None:
        checks.append(Check(AS_OVERVIEW, 0, 0, note="not waited for", skipped=True))
    else:
        _suspect(shown, {user: person.user_id for user, person in people.items()}, entries)
        checks.append(shown.check)
    return Accounts(people, tally, entries, news, checks)


async def compare(books: Accounts, plan: Plan, *, dsn: str | None, settled: bool, cells: bool) -> None:
    """Ask the daemon what it has of it, and its database where `dsn` leads there. Cut off, what was found stays.

    Not `settled`: nobody waited until all was stored. Not `cells`: that database has no cell events.
    """
    fresh, person = plan.class_id is None, books.people.__getitem__
    asked: list[Check] = []
    try:
        if dsn:
            classes = {person.class_id for person in books.people.values()}
            asked += await rows.by_sql(dsn, books.entries, person, classes, fresh=fresh, settled=settled, cells=cells)
        asked += await verification.by_api(plan.target, books.entries, person, fresh=fresh)
    finally:
        books.checks[:0] = asked


def not_compared() -> Check:
    """That nobody waited for the answers."""
    return Check("compared with what is stored", 0, 0, note="not waited for", skipped=True)


def undrained(*, given_up: bool) -> Check:
    """That the daemon did not come to say that all is stored: `given_up` after a time, or not waited for at all."""
    why = "the daemon did not say lag_events 0 in time" if given_up else "not waited for"
    return Check("all stored", 0, 0, note=why, faults=int(given_up), skipped=not given_up)


def _taken(tally: Tally) -> Check:
    """What the answers said, as a check."""
    check = Check("no duplicate of what was never taken, by the answers", 0, 0)
    check.blame(tally.not_new)
    return check


def _delivery(news: News, subscribers: int) -> list[Check]:
    """What subscribers saw, as checks."""
    alerts = Check("alerts at every subscriber's socket", news.expected, news.alerts.total)
    alerts.blame(news.missing_alerts)
    alerts.blame(news.doubled_alerts)
    deltas = Check("shown in every subscriber's view", news.deltas.total + news.unseen, news.deltas.total)
    deltas.blame(news.missing_deltas)
    alerts.note = deltas.note = f"{subscribers} subscribers"
    return [alerts, deltas]


def _nothing_else(subscribers: Sequence[Subscriber], entries: Iterable[Entry], *, fresh: bool) -> Check:
    """Alerts without a reason, users that are no students of the class (where that is the run's own), odd frames."""
    check = Check("nothing else at any subscriber's socket", 0, 0)
    check.blame(notifications.unfounded(subscribers, entries))
    notes = [f"{check.faults} alerts without a reason"] * bool(check.faults)
    strangers = {user_id for subscriber in subscribers for user_id in subscriber.strangers} if fresh else set()
    if strangers:
        check.faults += len(strangers)
        notes.append(f"{len(strangers)} users who are no students of the class")
    for why, times in sum((subscriber.misplaced for subscriber in subscribers), Counter()).items():
        check.faults += times
        notes.append(f"{times} times {why}")
    check.note = ", ".join(notes)
    return check


def _kept(subscribers: Sequence[Subscriber], *, disturbed: bool) -> Check:
    """That no subscription ended while the daemon went on: what was told meanwhile nobody can know."""
    check = Check("kept, every subscriber's connection", 0, 0)
    dropped = sum((subscriber.dropped for subscriber in subscribers), Counter())
    check.note = ", ".join(f"{times} times {why}" for why, times in dropped.items())
    if disturbed:
        check.skipped = bool(dropped)
    else:
        check.faults = dropped.total()
    return check


def _suspect(shown: Shown, user_ids: dict[int, str], entries: Iterable[Entry]) -> None:
    """Of each student who is shown otherwise the latest event: what it changed is not there, or something older is."""
    latest: dict[int, Entry] = {}
    for entry in entries:
        if entry.state == ACKNOWLEDGED and user_ids[entry.user] in shown.students:
            known = latest.get(entry.user)
            latest[entry.user] = entry if known is None or known.at_ms < entry.at_ms else known
    shown.check.suspects = len(latest)
    shown.check.candidates = [entry.event_id for entry in latest.values()][:MOST_CANDIDATES]
