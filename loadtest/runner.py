"""One run from begin to verdict: subscribers first, then the load, then the accounts."""

import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import trio

from loadtest import accounts, promises, rows, verification
from loadtest import faults as fault_plans
from loadtest import result as results
from loadtest.accounts import Accounts
from loadtest.errors import CannotTryError, LoadTestError, TransportError
from loadtest.faults import Fault
from loadtest.generator import Tick, collecting_rarely
from loadtest.histograms import Histogram
from loadtest.interrupts import Interrupts
from loadtest.ledger import Tally
from loadtest.local import Servers
from loadtest.monitor import Monitor, commits_say
from loadtest.notifications import News
from loadtest.plan import Clock, Plan, clock
from loadtest.progress import Display, Progress
from loadtest.promises import Promise
from loadtest.pulse import pulse, working
from loadtest.result import Result
from loadtest.subscribers import Subscriber
from loadtest.transports import LeanTransport
from loadtest.verification import Shown
from loadtest.workers import ChildWorker, OwnWorker, Worker, added

# From the clock's start to the first step: the workers hear of it in time.
BEGIN_S: Final = 0.3
SUBSCRIBED_WITHIN_S: Final = 20.0
# News that come later than this after the last are no news.
QUIET_S: Final = 1.5
NEWS_WITHIN_S: Final = 10.0
# How long the daemon knows the ids of events (`journal.dedupe_window_s`): until then that memory grows.
WINDOW_S: Final = 600.0
# Beside `Plan.grace_s`: for what a worker has to tell.
ACCOUNT_WITHIN_S: Final = 30.0
# Open files beside the connections of people and subscribers: pipes, databases, the answers' own lines.
SOME_FILES: Final = 64


@dataclass(frozen=True)
class Course:
    """How a run went, until everything was stored and told."""

    timer: Clock
    monitor: Monitor
    subscribers: list[Subscriber]
    shown: Shown | None  # what these see at the end; None: nobody does, or nobody waited
    loaded_s: float  # without the grace at the load's end
    drain_s: float | None  # None: it did not come to be drained, or nobody waited
    settled: bool = True  # what was acknowledged had its time to be stored; not where that was interrupted


@dataclass
class Run:
    """How to play a plan. `dsn` lets rows be counted; `servers` are ours when the harness started them."""

    plan: Plan
    display: Display
    promises: tuple[Promise, ...]
    workers: int = 1
    subscribers: int | None = None  # default: one an instructor
    dsn: str | None = field(default=None, repr=False)  # it may hold a password
    servers: Servers | None = None
    faults: list[Fault] = field(default_factory=list)
    drain_s: float = 60.0
    options: dict[str, Any] = field(default_factory=dict)
    interrupts: Interrupts = field(default_factory=Interrupts)
    own: Tally = field(default_factory=Tally)  # of this process, where others make the load: it reads all streams

    async def play(self) -> Result:
        """The whole run. LoadTestError when it cannot begin, KeyboardInterrupt when it was ended without a result."""
        result: Result | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self.interrupts.listen, nursery.cancel_scope)
            result = await self._played()
            nursery.cancel_scope.cancel()
        if result is None:
            raise KeyboardInterrupt
        return result

    async def _played(self) -> Result:
        plan = self.plan
        version = await reach(plan)
        cells = not await verification.cells_elsewhere(plan.target)  # now: it may be gone after the load
        if self.dsn:
            await rows.can_ask(self.dsn)
        started = results.now_text()
        workers: list[Worker] = (
            [OwnWorker(plan)]
            if self.workers == 1
            else [ChildWorker(plan, share, self.workers) for share in range(self.workers)]
        )
        try:
            with stretched_limits(self._files), collecting_rarely():
                course = await self._play(workers)
                self.display.say("comparing with what was acknowledged")
                books = accounts.gathered(
                    plan, workers, course.subscribers, course.shown, course.timer, disturbed=bool(self.faults)
                )
                books.tally.merge(self.own)
                with trio.CancelScope() as comparing, self.interrupts.stopping_by(comparing.cancel):
                    await accounts.compare(books, plan, dsn=self.dsn, settled=course.settled, cells=cells)
                if comparing.cancelled_caught:
                    books.checks.insert(0, accounts.not_compared())
            return self._concluded(course, books, version, started)
        finally:
            for worker in workers:
                if isinstance(worker, ChildWorker):
                    await worker.aclose()

    async def _play(self, workers: list[Worker]) -> Course:
        plan, scenario = self.plan, self.plan.scenario
        for worker in workers:
            await worker.prepare()
        timer = clock(BEGIN_S)
        pid = self.servers.daemon.pid if self.servers else None
        monitor = Monitor(plan.target, timer, pid)
        subscribers = self._subscribers(timer)
        drain_s: float | None = None
        shown: Shown | None = None
        settled = False
        async with trio.open_nursery() as background:
            background.start_soon(monitor.run)
            for subscriber in subscribers:
                background.start_soon(subscriber.run)
            with trio.move_on_after(SUBSCRIBED_WITHIN_S) as waiting:
                for subscriber in subscribers:
                    await subscriber.ready.wait()
            if waiting.cancelled_caught:
                background.cancel_scope.cancel()
                why = ", ".join(sorted({cut for subscriber in subscribers for cut in subscriber.cuts}))
                raise LoadTestError(
                    f"not all subscribers had their snapshot within {SUBSCRIBED_WITHIN_S:.0f} s"
                    + (f": {why}" * bool(why))
                )
            # The workers' clock begins only now, when everybody listens.
            timer = clock(BEGIN_S)
            monitor.restart(timer)
            for subscriber in subscribers:
                subscriber.restart(timer)
            self.display.say(f"{scenario.name}: {scenario.says}")
            loaded_s = await self._load(workers, timer, monitor, subscribers)
            self.display.say("waiting until everything is stored and told")
            with trio.CancelScope() as waiting, self.interrupts.stopping_by(waiting.cancel):
                drain_s = await verification.drained(plan.target, self.drain_s)
                settled = True
                await self._quiet(subscribers, timer)
                if subscribers:
                    shown = await verification.by_stream(plan.target, subscribers, fresh=plan.class_id is None)
            background.cancel_scope.cancel()
        return Course(timer, monitor, subscribers, shown, loaded_s, drain_s, settled)

    @property
    def _files(self) -> int:
        """How many this process must be able to have open: a connection for each person of its own, and some more."""
        streams = self.plan.scenario.instructors if self.subscribers is None else self.subscribers
        return SOME_FILES + streams + (self.plan.people if self.workers == 1 else 0)

    def _subscribers(self, timer: Clock) -> list[Subscriber]:
        """One an instructor unless said otherwise; classes take turns."""
        plan, scenario = self.plan, self.plan.scenario
        of_class: dict[str, dict[str, int]] = {}
        for index in range(scenario.students):
            person = scenario.person(index, plan.run, plan.class_id)
            of_class.setdefault(person.class_id, {})[person.user_id] = index
        classes = list(of_class)
        count = scenario.instructors if self.subscribers is None else self.subscribers
        chosen = [classes[number % len(classes)] for number in range(count)]
        return [Subscriber(plan.target, class_id, of_class[class_id], timer) for class_id in chosen]

    async def _load(
        self, workers: list[Worker], timer: Clock, monitor: Monitor, subscribers: list[Subscriber]
    ) -> float:
        """Play; gives the seconds that the load took, without the grace at its end.

        LoadTestError when a worker hangs.
        """
        duration_s = self.plan.scenario.duration_s

        ticks: dict[int, list[Tick]] = {}

        def told(worker: int, tick: Tick) -> None:
            ticks.setdefault(worker, []).append(tick)

        async def show() -> None:
            while True:
                await trio.sleep(1)
                if len(ticks) < len(workers):  # not everybody has told yet
                    continue
                news = added(ticks.values())
                ticks.clear()
                alerts = Histogram()
                for subscriber in subscribers:
                    alerts.merge(subscriber.recent)
                    subscriber.recent = Histogram()
                self.display.tick(Progress(timer.offset_s, duration_s, news, alerts, monitor))

        def stop() -> None:
            self.display.say("interrupted: stopping the load. Once more ends it without a result")
            for worker in workers:
                worker.stop()

        at_work = set(range(len(workers)))

        async def work(number: int) -> None:
            await workers[number].run(timer, partial(told, number))
            at_work.remove(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            if self.workers > 1:
                nursery.start_soon(pulse, timer, duration_s, self.own.behind)
            if self.faults:
                assert self.servers is not None
                nursery.start_soon(fault_plans.play, self.faults, self.servers, timer)
            within_s = BEGIN_S + duration_s + self.plan.grace_s + ACCOUNT_WITHIN_S
            with working() as own, self.interrupts.stopping_by(stop), trio.move_on_after(within_s) as patience:
                async with trio.open_nursery() as loading:
                    for number in range(len(workers)):
                        loading.start_soon(work, number)
            if patience.cancelled_caught:
                who = ", ".join(map(str, sorted(at_work)))
                raise LoadTestError(f"worker {who} told no account within {within_s:.0f} s")
            loaded_s = min(timer.offset_s, duration_s)
            self.own.cpu_cores = own.cores
            nursery.cancel_scope.cancel()
        return max(loaded_s, 0.001)

    async def _quiet(self, subscribers: list[Subscriber], timer: Clock) -> None:
        """Wait until no news came for a while."""
        deadline = timer.offset_s + NEWS_WITHIN_S
        began = timer.offset_s
        while subscribers and timer.offset_s < deadline:
            last = max(began, *(subscriber.last_news_s for subscriber in subscribers), 0.0)
            if timer.offset_s - last >= QUIET_S:
                return
            await trio.sleep(0.1)

    def _concluded(self, course: Course, books: Accounts, version: str | None, started: str) -> Result:
        """Judge the promises, and say all that there is to say."""
        samples, subscribers = course.monitor.samples, course.subscribers
        loaded_s, drain_s = course.loaded_s, course.drain_s
        checks = books.checks
        if drain_s is None:
            checks = [accounts.undrained(given_up=course.settled), *checks]
        lost = sum(check.faults for check in checks)
        figures = results.figures(books.tally, books.news, samples, loaded_s=loaded_s, drain_s=drain_s, lost=lost)
        histograms = results.histograms_of(books.tally, books.news)
        for promise in self.promises:
            if promise.rank and promise.figure not in figures:
                figures[promise.figure] = results.percentile(promise.figure, histograms)
        judgements = [results.judgement(each) for each in promises.judged(self.promises, figures)]
        limits = results.limits(books.tally, processes=self.workers)
        found = Result(
            scenario=self.plan.scenario.name,
            says=self.plan.scenario.says,
            started=started,
            options=self.options,
            environment=results.environment(self.plan.url, version),
            interrupted=self.interrupts.came,
            capped=bool(books.tally.capped),
            ok=False,  # so far
            judgements=judgements,
            checks=checks,
            figures=figures,
            events=books.events,
            errors_by_kind=books.tally.kinds,
            generator=limits,
            notes=[limits.says, *self._notes(course, books.news, books.tally)],
            faults=[(fault.text, fault.at_s, fault.for_s) for fault in self.faults],
            timeline=results.timeline(books.tally, books.news),
            samples=samples,
            histograms=histograms,
            subscribers={
                "connected": len(subscribers),
                "frames": sum(each.frames for each in subscribers),
                "cuts": sum(len(each.cuts) for each in subscribers),
                "frames skipped": sum(each.skipped for each in subscribers),
                "alerts repeated": sum(each.repeated for each in subscribers),
            },
        )
        found.ok = not (found.interrupted or found.failures)
        return found

    def _notes(self, course: Course, news: News | None, tally: Tally) -> Iterator[str]:
        """What the figures leave unsaid."""
        if course.monitor.metrics_missing:
            yield "/metrics was not to be had: no lag and no commit times"
        elif (commits := commits_say(course.monitor.samples)) is not None:
            yield commits
        if tally.cut_off:
            yield (
                f"{tally.cut_off} requests had no answer yet when the run was interrupted, the first for "
                f"{tally.cut_off_s:.1f} s: they are in no time and no error figure"
            )
        if tally.capped:
            yield f"the load ended at {self.plan.most_events:,} events: say --max-events for more"
        if self.dsn is None:
            yield "no DSN: rows were not counted, only what the API shows"
        cuts = sorted({cut for subscriber in course.subscribers for cut in subscriber.cuts})
        if cuts:
            yield f"subscribers were cut off: {', '.join(cuts)}"
        if news is not None and news.excused:
            yield f"news of {news.excused} events came while a subscriber was cut off: nobody knows whether in time"
        slope = any(each.figure == "memory_slope" for each in self.promises)
        if slope and self.plan.scenario.duration_s < 2 * WINDOW_S:
            yield (
                f"memory_slope is of warm-up here: under {2 * WINDOW_S / 60:.0f} minutes the daemon's window of known "
                "events still fills"
            )
        if self.plan.closed:
            yield "closed loop: users wait for answers, so times while the daemon stalls are too good"


async def reach(plan: Plan) -> str | None:
    """The daemon's version, when it tells; LoadTestError when nobody is there or it is not ready."""
    async with LeanTransport(plan.target) as transport:
        line = transport.line()
        try:
            ready = await line.get("/readyz")
            if ready.status != 200:
                raise LoadTestError(f"{plan.url} is not ready: HTTP {ready.status} from /readyz")
            described = await line.get("/api/v1/openapi.json")
            found: str = msgspec.json.decode(described.body)["info"]["version"]
        except TransportError as error:
            raise LoadTestError(f"{plan.url}: {error}: is the daemon running?") from error
        except (msgspec.DecodeError, KeyError, TypeError):
            return None
        else:
            return f"classpulse {found}"
        finally:
            await line.aclose()


def new_run() -> str:
    """What all ids of a run begin with."""
    return secrets.token_hex(4)


@contextmanager
def stretched_limits(needed: int = 0) -> Iterator[None]:
    """As many open files as we may have: each student has a connection. CannotTryError when that is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise CannotTryError(f"{needed} open files are needed, and this system allows {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
