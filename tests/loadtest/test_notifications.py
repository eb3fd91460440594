"""When news came, and what did not come."""

from array import array
from datetime import UTC, datetime
from math import inf

import msgspec
import pytest
import trio

from loadtest import notifications
from loadtest.ledger import ACKNOWLEDGED, UNKNOWN, Entry
from loadtest.plan import Clock
from loadtest.subscribers import Rows, Subscriber, _read
from loadtest.target import Target

CLOCK = Clock(began=0.0, epoch_s=1_700_000_000.0)
CLASSES = {0: "a", 1: "b"}


def entry(name, at_s, *, user=0, alert="", state=ACKNOWLEDGED):
    at_ms = CLOCK.wall_ms(at_s)
    return Entry(name, user, at_ms, True, bool(alert), alert, "s", state, at_ms + 5)


def subscriber(sightings=(), alerts=(), spans=((0.0, 100.0),), class_id="a"):
    found = Subscriber(Target("http://127.0.0.1:1"), class_id, {}, CLOCK)
    for user, at_s, came_s in sightings:
        found.seen.append(Rows(array("i", [user]), array("q", [CLOCK.wall_ms(at_s)]), [], frozenset()))
        found.seen_offset_s.append(came_s)
    found.alerts = {(user, kind, CLOCK.wall_ms(at_s)): came_s for user, kind, at_s, came_s in alerts}
    found.spans = [list(span) for span in spans]
    return found


def test_a_subscription_that_was_cut_before_the_run_is_none_of_the_run():
    later = Clock(CLOCK.began + 10, CLOCK.epoch_s + 10)
    for spans, kept in (([(1.0, 2.0), (3.0, inf)], 1), ([(1.0, 2.0)], 0)):
        found = subscriber(spans=spans)
        found.restart(later)
        assert len(found.spans) == kept
        assert all(since <= 0 and until == inf for since, until in found.spans)


def reckon(subscribers, entries):
    return notifications.reckon(subscribers, notifications.by_user(entries), CLASSES, CLOCK)


def test_a_late_delta_counts_for_every_event_that_it_tells():
    """One frame after a stall of 5 s: its latest event is young, the others waited."""
    entries = [entry(f"e{second}", second) for second in range(1, 6)]
    news = reckon([subscriber([(0, 5, 5.1)])], entries)
    assert news.deltas.total == 5
    assert news.deltas.max == pytest.approx(4.1, rel=0.001)
    assert news.missing_deltas == []
    assert set(news.by_second) == {1, 2, 3, 4, 5}


def test_what_no_frame_told_is_missing():
    news = reckon([subscriber([(0, 1, 1.1)])], [entry("told", 1), entry("not told", 2)])
    assert news.missing_deltas == ["not told"]


def test_every_subscriber_must_have_every_alert():
    entries = [entry("e1", 1, alert="error"), entry("e2", 2, alert="error")]
    both = [(0, "error", 1, 1.01), (0, "error", 2, 2.02)]
    sightings = [(0, 2, 2.1)]
    news = reckon([subscriber(sightings, both), subscriber(sightings, both[:1])], entries)
    assert news.missing_alerts == ["e2"]
    assert (news.expected, news.alerts.total) == (4, 3)
    assert news.alerts.max == pytest.approx(0.02, rel=0.01)


def test_what_is_missing_at_several_counts_for_each():
    entries = [entry("told", 1), entry("not told", 2)]
    news = reckon([subscriber([(0, 1, 1.1)]), subscriber([(0, 1, 1.1)])], entries)
    assert news.missing_deltas == ["not told"]
    assert (news.deltas.total, news.unseen) == (2, 2)


def test_an_alert_that_comes_under_two_ids_came_twice():
    listening = subscriber([(0, 2, 2.1)])
    listening.users = {"ann": 0}
    for alert_id, at_s in (("x", 1), ("x", 1), ("y", 2), ("z", 2)):
        at = datetime.fromtimestamp(CLOCK.wall_ms(at_s) / 1000, UTC).isoformat()
        alert = {"id": alert_id, "alert": "error", "user_id": "ann", "at": at}
        listening._take(_read(msgspec.json.encode({"type": "alerts", "topic": "class:a", "alerts": [alert]})), 3.0)
    news = reckon([listening], [entry("e1", 1, alert="error"), entry("e2", 2, alert="error")])
    assert (listening.repeated, news.doubled_alerts) == (1, ["e2"])
    assert (news.expected, news.missing_alerts) == (2, [])


def test_another_kind_or_another_time_is_another_alert():
    entries = [entry("e1", 1, alert="help_requested")]
    news = reckon([subscriber([(0, 1, 1.1)], [(0, "error", 1, 1.1), (0, "help_requested", 1.5, 1.6)])], entries)
    assert news.missing_alerts == ["e1"]


def test_news_around_a_cut_are_not_asked_for():
    entries = [entry("before", 1, alert="error"), entry("at the cut", 9.5, alert="error"), entry("after", 13)]
    spans = [(0, 10), (12, 100)]
    news = reckon([subscriber([(0, 1, 1.1), (0, 13, 13.1)], [(0, "error", 1, 1.1)], spans)], entries)
    assert (news.missing_alerts, news.missing_deltas, news.excused) == ([], [], 1)
    assert news.deltas.total == 3
    assert news.deltas.max == pytest.approx(13.1 - 9.5, rel=0.01)


def test_other_classes_and_doubtful_events_are_not_asked_for():
    entries = [entry("other", 1, user=1, alert="error"), entry("doubtful", 1, alert="error", state=UNKNOWN)]
    news = reckon([subscriber()], entries)
    assert (news.expected, news.missing_alerts, news.missing_deltas) == (0, [], [])


async def test_the_clock_of_a_test_is_not_trio_s():
    assert CLOCK.offset_of(CLOCK.wall_ms(3)) == 3
    await trio.lowlevel.checkpoint()
