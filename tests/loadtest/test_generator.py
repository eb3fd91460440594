"""What the generator sends and how it counts, against scripted servers."""

import json
import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest
import trio

from loadtest.generator import Generator
from loadtest.histograms import Histogram
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN
from loadtest.plan import Plan, clock
from loadtest.pulse import PULSE_S, pulse, working
from loadtest.result import histograms_of, limits
from loadtest.users import Post
from tests.loadtest.peer import answer, serving

STALL_S = 1.0
BRIEF = ((0.0, 1.0), (1.0, 1.0))


def plan(url, **changes):
    base = Plan(
        scenario_name="classroom-200",
        run="abcd1234",
        seed="1",
        url=url,
        key=None,
        students=10,
        classes=1,
        instructors=0,
        events_per_s=40.0,
        corners=((0.0, 1.0), (2.0, 1.0)),
        grace_s=3.0,
    )
    return msgspec.structs.replace(base, **changes)


async def play(given):
    generator = Generator(given)
    await generator.run(clock(0.05))
    return generator


async def accepting(number, head, body):
    return answer() if head.startswith(b"POST") else answer(200, b"{}")


class Stalling:
    """Answers at once, but nothing between the first second and the second."""

    def __init__(self):
        self.began = trio.current_time()

    async def __call__(self, number, head, body):
        now = trio.current_time() - self.began
        if 1 <= now < 1 + STALL_S:
            await trio.sleep(1 + STALL_S - now)
        return answer()


async def p(percent, *, closed):
    async with serving(Stalling()) as peer:
        generator = await play(plan(peer.url, closed=closed, corners=((0.0, 1.0), (3.0, 1.0))))
    return histograms_of(generator.tally, None)["post"].percentile(percent)


async def test_a_stall_is_seen_by_everybody_who_was_due_meanwhile():
    """A third of the run stalls: of what was due, a third waited, half of them over half a second."""
    assert await p(85, closed=False) > STALL_S / 2


async def test_a_closed_loop_hides_the_stall():
    """It asks only ten times meanwhile: most of what it measured is fast (and this is why it is not the default)."""
    assert await p(85, closed=True) < STALL_S / 2


async def test_every_event_is_sent_once_with_an_id_and_a_time_of_its_own():
    async with serving(accepting) as peer:
        generator = await play(plan(peer.url))
        sent = [event for _, body in peer.requests for event in json.loads(body)]
    assert sorted(event["eventId"] for event in sent) == sorted(entry.event_id for entry in generator.entries)
    assert len({event["eventId"] for event in sent}) == len(sent) > 60
    assert {entry.state for entry in generator.entries} == {ACKNOWLEDGED}
    for times in by_user(sent).values():
        assert all(before < after for before, after in pairwise(times))
    assert (generator.tally.requests, generator.tally.errors) == (len(sent), 0)


def by_user(events):
    found = {}
    for event in events:
        found.setdefault(event["emailAddress"], []).append(event["eventTime"])
    return found


async def test_the_same_seed_sends_the_same_from_however_many_processes():
    async def sent(of):
        async with serving(accepting) as peer:
            async with trio.open_nursery() as nursery:
                for share in range(of):
                    nursery.start_soon(Generator(plan(peer.url, corners=BRIEF), share, of).run, clock(0.05))
            events = [event for _, body in peer.requests for event in json.loads(body)]
        return Counter((event["emailAddress"], event["eventType"], event.get("code")) for event in events)

    assert await sent(1) == await sent(3)


async def test_503_is_repeated_with_the_same_id_as_the_real_client_does():
    async def script(number, head, body):
        return answer(503, b"{}") if number <= 2 else answer()

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=0.6))
        first = [json.loads(body)[0]["eventId"] for _, body in peer.requests[:3]]
    assert len(set(first)) == 1
    assert generator.entries[0].state == ACKNOWLEDGED
    assert (generator.tally.errors, generator.tally.retries, generator.tally.given_up) == (1, 2, 0)
    assert generator.tally.kinds == {"HTTP 503": 1}
    assert histograms_of(generator.tally, None)["post"].max > 1.5


@pytest.mark.parametrize(("status", "state"), [(422, REFUSED), (429, REFUSED)])
async def test_what_is_refused_is_not_repeated(status, state):
    async def script(number, head, body):
        return answer(status, b"{}")

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=4.0, corners=BRIEF))
        assert len(peer.requests) == len(generator.entries)
    assert {entry.state for entry in generator.entries} == {state}
    assert generator.tally.errors == generator.tally.given_up == len(generator.entries)


async def test_a_receipt_that_rejects_is_no_acknowledgement():
    async def script(number, head, body):
        return answer(202, b'{"status":"received","accepted":0,"duplicates":0,"rejected":[{"index":0}]}')

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=4.0, corners=BRIEF))
    assert {entry.state for entry in generator.entries} == {REFUSED}


async def test_a_duplicate_of_what_was_never_sent_is_an_error_and_acknowledges_all_the_same():
    """Only after an attempt that may have been taken is a duplicate what was to be expected."""
    attempts = Counter()

    async def script(number, head, body):
        (event,) = json.loads(body)
        attempts[event["eventId"]] += 1
        if number % 2 and attempts[event["eventId"]] == 1:
            return None
        return answer(202, b'{"status":"received","accepted":0,"duplicates":1,"rejected":[]}')

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=4, events_per_s=20.0, corners=BRIEF))
    tally = generator.tally
    assert {entry.state for entry in generator.entries} == {ACKNOWLEDGED}
    assert set(tally.kinds) == {"cut off", "a duplicate of nothing"}
    assert tally.kinds["a duplicate of nothing"] == sum(times == 1 for times in attempts.values()) > 0
    assert tally.errors == tally.requests == len(attempts)
    assert sorted(tally.not_new) == sorted(name for name, times in attempts.items() if times == 1)


async def test_after_a_503_a_duplicate_is_one_of_nothing_too():
    """Nothing of it was kept, the 503 said."""

    async def script(number, head, body):
        if number % 2:
            return answer(503, b"{}")
        return answer(202, b'{"status":"received","accepted":0,"duplicates":1,"rejected":[]}')

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=4.0, corners=BRIEF))
    entries = generator.entries
    assert {entry.state for entry in entries} == {ACKNOWLEDGED}
    assert generator.tally.not_new == [entry.event_id for entry in entries]
    assert generator.tally.kinds == {"HTTP 503": len(entries)}


async def test_a_daemon_that_hangs_is_not_flattered_at_the_end():
    """What was due and never sent counts, with the time that it waited."""

    async def script(number, head, body):
        if number > 5:
            await trio.sleep_forever()
        return answer()

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=5, events_per_s=60.0, grace_s=0.5))
    tally = generator.tally
    under_way = sum(entry.state == UNKNOWN for entry in generator.entries)
    assert tally.overdue > 100
    assert tally.errors == tally.overdue + under_way == tally.requests - 5
    assert {entry.state for entry in generator.entries} == {ACKNOWLEDGED, UNKNOWN}
    assert histograms_of(tally, None)["post"].percentile(50) > 1


async def test_queries_that_hang_are_no_slow_posts():
    async def script(number, head, body):
        if head.startswith(b"GET"):
            await trio.sleep_forever()
        return answer()

    async with serving(script) as peer:
        generator = await play(plan(peer.url, instructors=2, grace_s=0.5))
    timed = histograms_of(generator.tally, None)
    assert timed["post"].total == len(generator.entries)
    assert timed["query"].total >= 2
    assert timed["post"].max < timed["query"].max


@pytest.mark.parametrize("hangs", [False, True])
async def test_who_never_waits_is_done_when_the_load_ends(tmp_path, hangs):
    file = tmp_path / "hasty.py"
    file.write_text(
        "from loadtest import shapes\nfrom loadtest.scenarios import Scenario\nfrom loadtest.students import Learner\n"
        "from loadtest.users import task\n"
        "class Hasty(Learner):\n"
        "    @task\n"
        "    def go(self):\n"
        "        yield 0.0, self.run(0, failed=False)\n"
        "SCENARIO = Scenario('hasty', '', 2, 4.0, shapes.parse('hold:1s'), mix=((Hasty, 1.0),))\n"
    )

    async def script(number, head, body):
        if hangs and number > 20:
            await trio.sleep_forever()
        return answer()

    async with serving(script) as peer:
        with trio.fail_after(20):
            generator = await play(plan(peer.url, scenario_name=str(file), students=2, corners=BRIEF, grace_s=0.5))
    assert len(generator.entries) > 20
    assert (generator.tally.overdue > 0) == hangs


async def test_looks_that_a_stall_kept_it_from_count_as_late():
    """One stall of 0.3 s in 3 s is a tenth of the time, though only one of a hundred and fifty looks ends it."""
    async with serving(accepting) as peer:
        generator = Generator(plan(peer.url, corners=((0.0, 1.0), (3.0, 1.0))))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generator.run, clock(0.05))
            while len(generator.entries) < 20:
                await trio.sleep(0.01)
            time.sleep(0.3)  # noqa: ASYNC251 - the stall
    assert limits(generator.tally, processes=1).saturated


async def test_a_202_that_says_nothing_leaves_it_open_whether_the_event_was_taken():
    async def script(number, head, body):
        return answer(202, b"ok")

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=4.0, corners=BRIEF))
    assert {entry.state for entry in generator.entries} == {UNKNOWN}


@pytest.mark.parametrize("key", ["sessionId", "session_id"])
def test_a_session_is_known_by_either_name(key):
    user = SimpleNamespace(person=SimpleNamespace(index=0))
    entry = Generator(plan("http://127.0.0.1:1")).entry(user, Post({key: "s1"}), 0.0, 0, 1)
    assert entry.session == "s1"


async def test_it_says_when_it_is_itself_too_slow():
    async with serving(accepting) as peer:
        generator = Generator(plan(peer.url, corners=BRIEF))

        async def busy():
            until = trio.current_time() + 1
            while trio.current_time() < until:
                began = trio.current_time()
                while trio.current_time() - began < 0.15:
                    pass
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            await generator.run(clock(0.05))
    told = limits(generator.tally, processes=1)
    assert told.saturated
    assert "the generator saturates" in told.says


def test_work_is_measured_by_what_the_processor_did():
    with working() as work:
        began = time.process_time()
        while time.process_time() - began < 0.05:
            pass
    assert work.cores > 0


async def test_it_is_bounded_by_a_count_too():
    async with serving(accepting) as peer:
        generator = await play(plan(peer.url, most_events=7, corners=BRIEF))
    assert len(generator.entries) == 7
    assert generator.tally.capped > 0


async def test_stopped_early_it_keeps_what_there_is():
    async with serving(accepting) as peer:
        generator = Generator(plan(peer.url, corners=((0.0, 1.0), (3600.0, 1.0))))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generator.run, clock(0.05))
            while len(generator.entries) < 20:
                await trio.sleep(0.01)
            generator.stop()
    assert len(generator.entries) >= 20
    assert generator.tally.overdue == 0


async def test_stopped_early_it_says_how_much_it_cut_off_and_how_long_that_had_waited():
    async def script(number, head, body):
        await trio.sleep_forever()

    async with serving(script) as peer:
        generator = Generator(plan(peer.url, students=5, corners=((0.0, 1.0), (3600.0, 1.0))))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generator.run, timer := clock(0.05))
            while len(generator.entries) < 5:
                await trio.sleep(0.01)
            stopped_s = timer.offset_s
            generator.stop()
    tally = generator.tally
    assert (tally.cut_off, tally.requests, tally.errors) == (5, 0, 0)
    due_ms = min(entry.at_ms for entry in generator.entries)
    assert tally.cut_off_s >= stopped_s - (due_ms - timer.wall_ms(0)) / 1000 - 0.002


async def nowhere(host, port):
    """As `trio.open_tcp_stream` waits: with helpers, so that a cancellation comes out of it in a group."""
    async with trio.open_nursery() as helpers:
        helpers.start_soon(trio.sleep_forever)
    raise AssertionError


async def test_who_waits_for_a_connection_is_counted_too(monkeypatch):
    monkeypatch.setattr(trio, "open_tcp_stream", nowhere)
    generator = await play(plan("http://127.0.0.1:1", students=5, events_per_s=60.0, grace_s=0.2))
    assert generator.tally.given_up > 5
    assert generator.tally.errors == generator.tally.requests == generator.tally.given_up
    stopped = Generator(plan("http://127.0.0.1:1", students=5, corners=((0.0, 1.0), (3600.0, 1.0))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stopped.run, clock(0.05))
        while len(stopped.entries) < 5:
            await trio.sleep(0.01)
        stopped.stop()
    assert (stopped.tally.cut_off, stopped.tally.requests) == (5, 0)


class Scripted:
    """A clock on which so much time passes with each look, and sleeps take no less than ``least_s``."""

    def __init__(self, monkeypatch, *, look_s=0.0, least_s=0.0):
        self.now = 0.0
        self._look_s, self._least_s = look_s, least_s
        monkeypatch.setattr(trio, "sleep", self._sleep)

    @property
    def offset_s(self):
        self.now += self._look_s
        return self.now

    async def _sleep(self, seconds):
        assert seconds >= 0
        self.now += max(seconds, self._least_s)


async def test_a_pulse_that_is_over_before_it_is_waited_for_counts_as_late(monkeypatch):
    """Nearly a pulse passes between any two looks."""
    behind = Histogram()
    await pulse(Scripted(monkeypatch, look_s=0.95 * PULSE_S), 10 * PULSE_S, behind)
    assert behind.max >= 0.8 * PULSE_S


async def test_lateness_does_not_add_up(monkeypatch):
    """Each wake comes half as late again as a pulse is long: looks were due meanwhile, and none later than that."""
    behind = Histogram()
    await pulse(Scripted(monkeypatch, least_s=1.5 * PULSE_S), 200 * PULSE_S, behind)
    assert 195 <= behind.total <= 202
    assert behind.max <= 1.6 * PULSE_S


async def test_an_event_that_was_being_sent_again_may_be_there():
    """It was refused; then it went out again, and the run was over before the answer."""

    async def script(number, head, body):
        if number > 1:
            await trio.sleep_forever()
        return answer(503, b"{}")

    async with serving(script) as peer:
        generator = await play(plan(peer.url, students=1, events_per_s=0.6, grace_s=1.0))
        assert len(peer.requests) > 1
    assert {entry.state for entry in generator.entries} == {UNKNOWN}


async def test_a_batch_of_a_recording_goes_out_whole_though_time_is_up(tmp_path):
    """Five events at once at its only moment, and answers that take longer than the load."""
    events = [{"eventType": "seen", "userId": "ann", "eventId": str(number)} for number in range(5)]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"t_ms": 0, "method": "POST", "body": json.dumps(events)}) + "\n")

    async def script(number, head, body):
        await trio.sleep(0.6)
        return answer()

    async with serving(script) as peer:
        generator = await play(plan(peer.url, scenario_name=f"replay:{file}", students=1, corners=BRIEF, grace_s=10.0))
    assert [entry.state for entry in generator.entries] == [ACKNOWLEDGED] * 5


async def test_what_is_not_due_yet_is_not_overdue():
    """Something else ends the run in its first second, of an hour."""

    async def script(number, head, body):
        await trio.sleep_forever()

    async with serving(script) as peer:
        generator = Generator(plan(peer.url, corners=((0.0, 1.0), (3600.0, 1.0))))
        with trio.move_on_after(1):
            await generator.run(clock(0.0))
    assert generator.entries
    assert generator.tally.overdue < 200  # of 144,000
