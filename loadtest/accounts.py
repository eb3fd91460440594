"""After a run: what everybody took down, brought together and held against what was acknowledged."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest import notifications, rows, verification
from loadtest.check import Check
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry, Tally
from loadtest.notifications import News
from loadtest.plan import Clock, Plan
from loadtest.subscribers import Subscriber
from loadtest.users import Person
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


def gathered(plan: Plan, workers: Iterable[Worker], subscribers: Sequence[Subscriber], clock: Clock) -> Accounts:
    """What workers and subscribers took down."""
    tally, entries = merged(workers)
    scenario = plan.scenario
    people = {user: scenario.person(user, plan.run, plan.class_id) for user in {entry.user for entry in entries}}
    if not subscribers:
        return Accounts(people, tally, entries, None, [])
    classes = {user: person.class_id for user, person in people.items()}
    news = notifications.reckon(subscribers, notifications.by_user(entries), classes, clock)
    return Accounts(people, tally, entries, news, _delivery(news, len(subscribers)))


async def compare(books: Accounts, plan: Plan, *, dsn: str | None, settled: bool) -> None:
    """Ask the daemon what it has of it, and its database where `dsn` leads there. Cut off, what was found stays.

    Not `settled`: nobody waited until all was stored.
    """
    fresh, person = plan.class_id is None, books.people.__getitem__
    asked: list[Check] = []
    try:
        if dsn:
            classes = {person.class_id for person in books.people.values()}
            asked += await rows.by_sql(dsn, books.entries, person, classes, fresh=fresh, settled=settled)
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


def _delivery(news: News, subscribers: int) -> list[Check]:
    """What subscribers saw, as checks."""
    alerts = Check("alerts at every subscriber's socket", news.expected, news.alerts.total)
    alerts.blame(news.missing_alerts)
    alerts.blame(news.doubled_alerts)
    deltas = Check("shown in every subscriber's view", news.deltas.total + news.unseen, news.deltas.total)
    deltas.blame(news.missing_deltas)
    alerts.note = deltas.note = f"{subscribers} subscribers"
    return [alerts, deltas]
