"""Makes the load of one process: every user a task, each step at its due time, every event accounted for.

In the open loop a step is due whatever became of the one before, and its time counts from then: a daemon that stalls
is seen to stall by everybody who was due meanwhile (no coordinated omission). A line sends one request at a time, so
what is due behind a slow answer is sent late, and its waiting counts too. In the closed loop the next wait begins
with the answer.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import Final, NamedTuple

import msgspec
import trio

from loadtest import columns
from loadtest.errors import TransportError
from loadtest.histograms import Histogram
from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry, Tally
from loadtest.plan import Clock, Plan
from loadtest.pulse import pulse, working
from loadtest.shapes import Span
from loadtest.target import EVENTS
from loadtest.transports import TRANSPORTS, Line, Transport
from loadtest.users import Get, Post, Steps, VirtualUser

# As cell_monitor: after a 5xx, a refused connection or 8 s of silence the same event again, then given up.
RETRY_AFTER_S: Final = (0.5, 1.0, 2.0)
# Steps without a wait in a row that count as due when time is up: who never waits has no end of them.
_MOST_AT_ONCE: Final = 100

_encode: Final = msgspec.json.Encoder().encode


class _Receipt(msgspec.Struct):
    accepted: int = 0
    duplicates: int = 0


_receipt: Final = msgspec.json.Decoder(_Receipt).decode


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Keep the cyclic collector from passing over thousands of users while their requests are due."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(100_000, 100, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Tick(msgspec.Struct):
    """What happened since the last one, for the live table."""

    over_s: float  # seconds since the last one, or since the load began
    post: Histogram  # by the time of the answer
    requests: int
    acknowledged: int
    errors: int
    at_work: int


class Generator:
    """One process' share of a plan: the people with `index % of == share`."""

    def __init__(self, plan: Plan, share: int = 0, of: int = 1) -> None:
        self.tally = Tally()
        self.entries: list[Entry] = []
        self._plan = plan
        self._indices = range(share, plan.people, of)
        self._most_events = -(-plan.most_events // of)
        self._clock = Clock(0, 0)
        self._at_work = 0
        self._acknowledged = 0
        self._recent = Histogram()
        self._told = (0, 0, 0)
        self._told_s = 0.0
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """No more steps; what is under way is cut off and counts as unknown."""
        self._scope.cancel()

    def tick(self) -> Tick:
        """News since the last call."""
        recent, self._recent = self._recent, Histogram()
        now = (self.tally.requests, self._acknowledged, self.tally.errors)
        requests, acknowledged, errors = (new - old for new, old in zip(now, self._told, strict=True))
        self._told = now
        over_s, self._told_s = self._clock.offset_s - self._told_s, max(0.0, self._clock.offset_s)
        return Tick(max(0.0, over_s), recent, requests, acknowledged, errors, self._at_work)

    async def run(self, clock: Clock) -> None:
        """Play; returns when all is answered, or `grace_s` after the end."""
        self._clock = clock
        with collecting_rarely(), working() as work:
            await self._run(clock)
        self.tally.cpu_cores = work.cores

    async def _run(self, clock: Clock) -> None:
        scenario, plan = self._plan.scenario, self._plan
        deadline = trio.current_time() + scenario.duration_s + plan.grace_s - clock.offset_s
        with self._scope, trio.move_on_at(deadline):
            async with TRANSPORTS[plan.transport](plan.target) as transport, trio.open_nursery() as nursery:
                nursery.start_soon(pulse, clock, scenario.duration_s, self.tally.behind)
                for index in self._indices:
                    person = scenario.person(index, plan.run, plan.class_id)
                    whole = [Span(0.0, scenario.duration_s)]
                    spans = scenario.shape.spans(index, scenario.students) if index < scenario.students else whole
                    for number, span in enumerate(spans):
                        seed = f"{plan.seed}/{number}" if number else plan.seed
                        user = scenario.user(person, seed, plan.run)
                        nursery.start_soon(self._play, user, transport, span.begin_s, span.end_s)

    async def _play(self, user: VirtualUser, transport: Transport, begin_s: float, end_s: float) -> None:
        line = transport.line()
        hand = _Hand(self, user, line)
        due = begin_s
        steps = user.steps(begin_s)
        most = _MOST_AT_ONCE if user.endless else inf
        behind = 0  # steps in a row that are due with the one before, and time is up
        await self._sleep_until(begin_s)
        self._at_work += 1
        try:
            for wait_s, action in steps:
                due += wait_s
                behind = 0 if wait_s or self._clock.offset_s <= end_s else behind + 1
                if due > end_s or behind > most:
                    break
                await self._sleep_until(due)
                if len(self.entries) >= self._most_events:
                    self.tally.capped += 1
                    break
                if self._plan.closed:
                    due = self._clock.offset_s
                try:
                    await hand.perform(action, due)
                except BaseException:  # a cancellation comes in a group where a connection was being made
                    if not self._scope.cancel_called:
                        self._overdue(hand, (due, action), steps, end_s, most)
                    elif not hand.counted:  # an interrupted run tells what was, and how much it cut off
                        self.tally.cut_off += 1
                        self.tally.cut_off_s = max(self.tally.cut_off_s, self._clock.offset_s - due)
                    raise
                if self._plan.closed:
                    due = self._clock.offset_s
        finally:
            self._at_work -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await line.aclose()

    def _overdue(self, hand: "_Hand", step: tuple[float, Post | Get], steps: Steps, end_s: float, most: float) -> None:
        """Time is up for the step in hand and all that are due behind it: each waited at least until now."""
        due, action = step
        end_s = min(end_s, self._clock.offset_s)
        counted = hand.counted
        at_once = 0
        while True:
            self.tally.given_up += 1
            if not counted:
                self.failed(due, "never answered")
            second = self.tally.second(due)
            self.timed(due, second.query if isinstance(action, Get) else second.post)
            counted = False
            wait_s, action = (inf, action) if self._plan.closed else next(steps, (inf, action))
            at_once = 0 if wait_s else at_once + 1
            due += wait_s
            if due > end_s or at_once > most:
                return
            self.tally.overdue += 1

    async def _sleep_until(self, offset_s: float) -> None:
        left = offset_s - self._clock.offset_s
        if left > 0:
            await trio.sleep(left)

    def timed(self, due: float, histogram: Histogram) -> None:
        """A request is over; its time counts from when it was due."""
        histogram.record(self._clock.offset_s - due)

    def failed(self, due: float, kind: str) -> None:
        """A first attempt was not answered 2xx."""
        self.tally.requests += 1
        self.tally.errors += 1
        second = self.tally.second(due)
        second.requests += 1
        second.errors += 1
        self.tally.fault(kind)

    def succeeded(self, due: float) -> None:
        """A first attempt was answered 2xx."""
        self.tally.requests += 1
        self.tally.second(due).requests += 1

    def acknowledged(self, entry: Entry, due: float) -> None:
        """An event is durable, says the daemon."""
        now = self._clock.offset_s
        entry.state = ACKNOWLEDGED
        entry.answered_ms = self._clock.wall_ms(now)
        self._acknowledged += 1
        self._recent.record(now - due)
        self.tally.second(due).acknowledged += 1

    def entry(self, user: VirtualUser, post: Post, due: float, after_ms: int, number: int) -> Entry:
        """Open the account of an event; no two of a student have the same millisecond."""
        return Entry(
            f"{self._plan.run}-{user.person.index:05}-{number:06}",
            user.person.index,
            max(self._clock.wall_ms(due), after_ms + 1),
            post.execution,
            post.failed,
            post.alert,
            columns.value_of(post.fields, "session_id", str) or "",
            columns=columns.of_fields(post.fields),
        )


class _End(NamedTuple):
    """What became of an attempt: what was wrong with it, and whether the client would send `again`."""

    fault: str | None
    taken: bool = False
    again: bool = False
    unknown: bool = False  # it may have been taken


class _Hand:
    """What one user does to its line, with the client's manner of sending again."""

    def __init__(self, generator: Generator, user: VirtualUser, line: Line) -> None:
        self._of = generator
        self._user = user
        self._line = line
        self._last_ms = 0
        self._number = 0
        self.counted = False  # the step in hand is in the tally

    async def perform(self, action: Post | Get, due: float) -> None:
        self.counted = False
        if isinstance(action, Get):
            await self._get(action, due)
        else:
            await self._post(action, due)

    async def _get(self, get: Get, due: float) -> None:
        of = self._of
        fault = None
        try:
            answer = await self._line.get(get.path)
            if answer.status != 200:
                fault = f"query: HTTP {answer.status}"
        except TransportError as error:
            fault = f"query: {error}"
        if fault is None:
            of.succeeded(due)
        else:
            of.failed(due, fault)
        of.timed(due, of.tally.second(due).query)

    async def _post(self, post: Post, due: float) -> None:
        of = self._of
        # Seconds of a span that began later have numbers of their own: ids never meet.
        number = self._number = max(self._number + 1, int(self._user.offset_s * 1000))
        entry = of.entry(self._user, post, due, self._last_ms, number)
        self._last_ms = entry.at_ms
        of.entries.append(entry)
        when = datetime.fromtimestamp(entry.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        body = _encode([{"eventId": entry.event_id, "eventTime": f"{when[:-6]}Z", **post.fields}])
        doubtful = False  # an attempt of which nobody knows what became of it
        for pause_s in (*RETRY_AFTER_S, None):
            entry.state = UNKNOWN  # the run may end before an answer comes
            end = await self._attempt(body, repeated=doubtful)
            if end.fault is not None and not self.counted:
                of.failed(due, end.fault)
                self.counted = True
            if end.taken:
                if end.fault is not None:
                    of.tally.not_new.append(entry.event_id)
                if not self.counted:
                    of.succeeded(due)
                of.acknowledged(entry, due)
                break
            doubtful = doubtful or end.unknown
            entry.state = UNKNOWN if doubtful else REFUSED
            if not end.again or pause_s is None:
                of.tally.given_up += 1
                break
            of.tally.retries += 1
            await trio.sleep(pause_s)
        of.timed(due, of.tally.second(due).post)

    async def _attempt(self, body: bytes, *, repeated: bool) -> _End:
        """`repeated`: an attempt before this one may have been taken, so that this one may be a duplicate."""
        try:
            answer = await self._line.post(EVENTS, body)
        except TransportError as error:
            return _End(str(error), again=True, unknown=True)
        if answer.status != 202:
            failed = answer.status >= 500
            return _End(f"HTTP {answer.status}", again=failed, unknown=failed and answer.status != 503)
        try:
            receipt = _receipt(answer.body)
        except msgspec.DecodeError:
            return _End("202 without a receipt", unknown=True)
        if receipt.accepted + receipt.duplicates != 1:
            return _End("rejected")
        # It says that it has the event, and is held to that.
        odd = receipt.duplicates and not repeated
        return _End("a duplicate of nothing" if odd else None, taken=True)
