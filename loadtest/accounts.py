"""After a run: what everybody took down, brought together and held against what was acknowledged."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest import notifications, verification
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry, Tally
from loadtest.notifications import News
from loadtest.plan import Clock, Plan
from loadtest.subscribers import Subscriber
from loadtest.verification import Check
from loadtest.workers import Worker, merged


@dataclass(frozen=True)
class Accounts:
    """Of one run."""

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


async def settle(
    plan: Plan, workers: Iterable[Worker], subscribers: Sequence[Subscriber], clock: Clock, *, dsn: str | None
) -> Accounts:
    """Ask each place; rows are counted too where `dsn` leads to them."""
    tally, entries = merged(workers)
    scenario = plan.scenario
    people = {user: scenario.person(user, plan.run, plan.class_id) for user in {entry.user for entry in entries}}
    classes = {user: person.class_id for user, person in people.items()}
    news = notifications.reckon(subscribers, notifications.by_user(entries), classes, clock) if subscribers else None
    checks = await verification.by_api(plan.target, entries, people.__getitem__, fresh=plan.class_id is None)
    if dsn:
        checks = await verification.by_sql(dsn, entries, set(classes.values())) + checks
    if news is not None:
        checks += _delivery(news, len(subscribers))
    return Accounts(tally, entries, news, checks)


def undrained(*, given_up: bool) -> Check:
    """That the daemon did not come to say that all is stored: `given_up` after a time, or not waited for at all."""
    why = "the daemon did not say lag_events 0 in time" if given_up else "not waited for"
    return Check("all stored", 0, 0, note=why, faults=int(given_up), skipped=not given_up)


def _delivery(news: News, subscribers: int) -> list[Check]:
    """What subscribers saw, as checks."""
    alerts = Check("alerts at every subscriber's socket", news.expected, news.alerts.total)
    alerts.blame(news.missing_alerts)
    deltas = Check("shown in every subscriber's view", news.deltas.total, news.deltas.total)
    deltas.blame(news.missing_deltas)
    deltas.expected += len(news.missing_deltas)
    alerts.note = deltas.note = f"{subscribers} subscribers"
    return [alerts, deltas]
