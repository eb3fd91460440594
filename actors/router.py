"""The router: takes commits in seq order and hands each student's events to that student's actor."""

from collections.abc import Iterable
from typing import Final

import structlog
import trio

from engine.clock import WallClock
from engine.cohort import Cohort, NotebookTotals
from engine.errors import UnavailableError
from engine.event import Commit, Event, UserKey
from engine.faults import reach
from engine.ports import Journal, Settle
from engine.rows import Past, user_key
from engine.watermark import Part, Watermark

from .admission import Admission, Limits
from .roster import Roster
from .session import SessionActor, SessionContext
from .supervisor import supervise

# Commits between the journal and the router. When full, the commit loop waits: the loop is pure computation behind it.
_MAX_COMMITS: Final = 64
# Deliveries (one a commit) in a student's mailbox. At half of it the edge answers 503 for that student alone, before
# the journal; the other half is room for commits that are under way by then, so the router never waits for one user.
MAILBOX_DELIVERIES: Final = 4 * _MAX_COMMITS
# How often actors that may retire are looked for, in seconds; and how many are looked at in one turn of the event loop:
# with tens of thousands of them, whose memory is cold, a look at all takes as long as a hundred requests.
_SWEEP_S: Final = 30.0
_SWEEP_USERS: Final = 500

log = structlog.get_logger("router")


class Router:
    """Owns the session actors and the cohorts. Data goes in by `accept` (edge) and `commit` (journal)."""

    def __init__(
        self,
        journal: Journal,
        context: SessionContext,
        watermark: Watermark,
        *,
        limits: Limits,
        retire_after_ms: int,
        clock: WallClock,
    ) -> None:
        self._journal = journal
        self._context = context
        self._watermark = watermark
        self._mailboxes = context.mailboxes
        self._retire_after_ms = retire_after_ms
        self._clock = clock
        self._send, self._receive = trio.open_memory_channel[Commit](_MAX_COMMITS)
        self._nursery: trio.Nursery | None = None
        # The commit that is dispatched, and what of it is still to be delivered once its part of the watermark is open.
        self._at: Commit | None = None
        self._rest: tuple[Part, int, dict[UserKey, list[tuple[int, Event]]]] | None = None
        self.users = Roster()
        self.cohorts: dict[str, Cohort] = {}
        self._admission = Admission(limits, self.users, self.cohorts, context.mailboxes)

    # --- for metrics

    @property
    def actors(self) -> int:
        """Students in memory."""
        return len(self.users)

    @property
    def waiting(self) -> int:
        """Deliveries in the mailboxes of all of them."""
        return sum(actor.waiting for actor in self.users.actors())

    # --- the edge's side

    def accept(self, events: list[Event], settle: Settle) -> None:
        """See `engine.ports.Intake.accept`."""
        crowded = self._context.crowded
        if crowded:
            for event in events:
                if (event.class_id, event.user_id) in crowded:
                    raise UnavailableError(f"too many events of user {event.user_id} wait to be applied")
        classes, admitted = self.users.classes, None
        look = self._admission.strained
        for event in events:
            mates = classes.get(event.class_id)
            if look or mates is None or event.user_id not in mates:
                admitted = self._admission.admit(events, settle)
                break
        if admitted is None:
            self._journal.append(events, settle)
            return
        try:
            self._journal.append(events, admitted)
        except UnavailableError:
            admitted.withdraw()
            raise

    # --- the journal's side

    async def commit(self, commit: Commit) -> None:
        """The journal's sink."""
        await self._send.send(commit)

    def finish(self) -> None:
        """No more commits will come: `run` drains what waits, lets the actors drain, and returns."""
        self._send.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch commits until `finish`, then until every actor is through with its mailbox."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            async with trio.open_nursery() as helpers:
                helpers.start_soon(supervise, "sweep", self._sweep)
                with self._receive:
                    await supervise("router", self._route)
                helpers.cancel_scope.cancel()
            for actor in self.users.actors():
                actor.retire()

    async def _route(self) -> None:
        """Dispatch commits until `finish`. Run again after a failure it goes on where it was, even within a commit."""
        if self._rest is not None:
            self._deliver(*self._rest)
        elif self._at is not None:
            self.dispatch(self._at)
        async for commit in self._receive:
            self.dispatch(commit)
            del commit  # its events go now, not when the next has come and the processor's cache holds others

    def dispatch(self, commit: Commit) -> None:
        """Split a commit by student; each actor gets its share."""
        self._at = commit
        reach("router.dispatch")
        groups: dict[UserKey, list[tuple[int, Event]]] = {}
        observe = self.observe
        for seq, event in enumerate(commit.events, commit.first_seq):
            key = (event.class_id, event.user_id)
            if key in groups:
                groups[key].append((seq, event))
            else:
                groups[key] = [(seq, event)]
            if event.notebook_path is not None:
                observe(event)
        self._deliver(self._watermark.open(commit.last_seq, len(groups)), commit.received_at, groups)

    def _deliver(self, part: Part, received_at: int, groups: dict[UserKey, list[tuple[int, Event]]]) -> None:
        """Give each student's actor its share of a part, once."""
        classes = self.users.classes
        key = next(iter(groups))
        try:
            reach("router.deliver")
            for key, events in groups.items():
                mates = classes.get(key[0])
                actor = None if mates is None else mates.get(key[1])
                if actor is None:
                    actor = self._spawn(key)
                    self._mailboxes.unsettled.put(key, actor)
                actor.deliver((part, received_at, events))
        except BaseException:
            at = list(groups).index(key)
            self._rest = (part, received_at, dict(list(groups.items())[at:]))
            raise
        self._at = self._rest = None

    def observe(self, event: Event) -> None:
        """Let the event's cohort know what it tells of a notebook."""
        cohort = self.cohorts.get(event.class_id) or self.cohort(event.class_id)
        path = event.notebook_path
        if cohort.observe(event) and path is not None:
            self._admission.grown(cohort, path)
            key = (event.class_id, path)
            self._mailboxes.notebooks.put(key, cohort.notebooks[path])  # to be stored
            self._mailboxes.resized.put(key, None)  # to be shown

    def cohort(self, class_id: str) -> Cohort:
        """The cohort of a class, made when it is first met."""
        cohort = self.cohorts.get(class_id)
        if cohort is None:
            cohort = self.cohorts[class_id] = Cohort(class_id)
        return cohort

    # --- recovery's side

    def adopt_user(self, past: Past) -> SessionActor:
        """A student's past, as recovery found it: joins the live actor, or gets one."""
        key = user_key(past.state)
        actor = self.users.get(key) or self._spawn(key)
        actor.adopt(past)
        return actor

    def total_cells(self, class_id: str, path: str) -> int:
        """Cells of a notebook, as its class knows it; 0: nothing is known."""
        cohort = self.cohorts.get(class_id)
        return 0 if cohort is None else cohort.total_cells(path)

    def adopt_notebook(self, class_id: str, path: str, totals: NotebookTotals) -> None:
        """A notebook's size, as a store knew it."""
        mine = self.cohort(class_id).notebooks.setdefault(path, NotebookTotals())
        self._admission.grown(self.cohorts[class_id], path)
        if mine.merge(totals):
            self._mailboxes.resized.put((class_id, path), None)

    def _spawn(self, key: UserKey) -> SessionActor:
        assert self._nursery is not None, "run() has not started"
        actor = self.users[key] = SessionActor(key, self._context, MAILBOX_DELIVERIES)
        self._nursery.start_soon(actor.run, name=f"session {key}")
        self._admission.arrived(key)
        return actor

    async def _sweep(self) -> None:
        """Retire students of whom nothing was received for long, once their state is stored."""
        while True:
            keys = list(self.users)
            parts = -(-len(keys) // _SWEEP_USERS) or 1
            for part in range(parts):
                await trio.sleep(_SWEEP_S / parts)
                reach("router.sweep")
                self.sweep(keys[part * _SWEEP_USERS : (part + 1) * _SWEEP_USERS])

    def sweep(self, keys: Iterable[UserKey]) -> None:
        """Retire those of them who may."""
        before = self._clock() - self._retire_after_ms
        for key in keys:
            actor = self.users.get(key)
            if actor is None:
                continue
            if actor.state.last_receipt < before and actor.settled and self._idle(key, actor):
                del self.users[key]
                actor.retire()
                self._admission.left(key)
                self._mailboxes.retired.put(key, None)

    def _idle(self, key: UserKey, actor: SessionActor) -> bool:
        return key not in self._context.dirty and not actor.waiting
