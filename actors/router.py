"""The router: takes commits in seq order and hands each student's events to that student's actor."""

from typing import Final

import structlog
import trio

from engine.clock import WallClock
from engine.cohort import Cohort, NotebookTotals
from engine.errors import UnavailableError
from engine.event import Commit, Event, UserKey
from engine.ports import Journal
from engine.rows import Past, user_key
from engine.watermark import Watermark

from .mailbox import ConflatingMailbox
from .session import Delivery, SessionActor, SessionContext

# Events of one student between the edge and the actor. A client that posts a batch of 1000 fits; a runaway loop does
# not fill memory, and is told 503 for that student alone.
MAX_PENDING: Final = 4096
# Commits between the journal and the router. When full, the commit loop waits: the loop is pure computation behind it.
_MAX_COMMITS: Final = 64
# How often actors that may retire are looked for, in seconds.
_SWEEP_S: Final = 30.0

log = structlog.get_logger("router")


class Router:
    """Owns the session actors and the cohorts. Data goes in by `accept` (edge) and `commits` (journal)."""

    def __init__(
        self,
        journal: Journal,
        context: SessionContext,
        watermark: Watermark,
        *,
        notebooks: ConflatingMailbox[tuple[str, str], NotebookTotals],
        unsettled: ConflatingMailbox[UserKey, SessionActor],
        resized: ConflatingMailbox[tuple[str, str], None],
        retired: ConflatingMailbox[UserKey, None],
        retire_after_ms: int,
        clock: WallClock,
    ) -> None:
        self._journal = journal
        self._context = context
        self._watermark = watermark
        self._notebooks = notebooks
        self._unsettled = unsettled
        self._resized = resized
        self._retired = retired
        self._retire_after_ms = retire_after_ms
        self._clock = clock
        self._send, self._receive = trio.open_memory_channel[Commit](_MAX_COMMITS)
        self._pending: dict[UserKey, int] = {}
        self._nursery: trio.Nursery | None = None
        self.users: dict[UserKey, SessionActor] = {}
        self.cohorts: dict[str, Cohort] = {}

    # --- the edge's side

    async def accept(self, events: list[Event]) -> list[bool]:
        """See `engine.ports.Intake.accept`."""
        pending = self._pending
        for event in events:
            key = (event.class_id, event.user_id)
            if pending.get(key, 0) >= MAX_PENDING:
                raise UnavailableError(f"{pending[key]} events of user {event.user_id} wait to be applied")
        for event in events:
            key = (event.class_id, event.user_id)
            pending[key] = pending.get(key, 0) + 1
        try:
            return await self._journal.append(events)
        finally:
            for event in events:
                key = (event.class_id, event.user_id)
                count = pending[key] - 1
                if count:
                    pending[key] = count
                else:
                    del pending[key]

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
                helpers.start_soon(self._sweep)
                with self._receive:
                    async for commit in self._receive:
                        self.dispatch(commit)
                helpers.cancel_scope.cancel()
            for actor in self.users.values():
                actor.retire()

    def dispatch(self, commit: Commit) -> None:
        """Split a commit by student; each actor gets its share."""
        groups: dict[UserKey, list[tuple[int, Event]]] = {}
        for seq, event in enumerate(commit.events, commit.first_seq):
            key = (event.class_id, event.user_id)
            group = groups.get(key)
            if group is None:
                groups[key] = [(seq, event)]
            else:
                group.append((seq, event))
            if event.notebook_path is not None and self.cohort(event.class_id).observe(event):
                self._notebook_changed(event.class_id, event.notebook_path)
        part = self._watermark.open(commit.last_seq, len(groups))
        for key, events in groups.items():
            actor = self.users.get(key)
            if actor is None:
                actor = self._spawn(key)
                self._unsettled.put(key, actor)
            actor.deliver(Delivery(part, commit.received_at, events))

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

    def adopt_notebook(self, class_id: str, path: str, totals: NotebookTotals) -> None:
        """A notebook's size, as a store knew it."""
        mine = self.cohort(class_id).notebooks.setdefault(path, NotebookTotals())
        mine.merge(totals)

    def _notebook_changed(self, class_id: str, path: str) -> None:
        self._notebooks.put((class_id, path), self.cohorts[class_id].notebooks[path])  # to be stored
        self._resized.put((class_id, path), None)  # to be shown

    def _spawn(self, key: UserKey) -> SessionActor:
        assert self._nursery is not None, "run() has not started"
        actor = self.users[key] = SessionActor(key, self._context, MAX_PENDING)
        self._nursery.start_soon(actor.run, name=f"session {key}")
        return actor

    async def _sweep(self) -> None:
        """Retire students of whom nothing was received for long, once their state is stored."""
        while True:
            await trio.sleep(_SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """One look for actors to retire."""
        before = self._clock() - self._retire_after_ms
        for key, actor in list(self.users.items()):
            if actor.state.last_receipt < before and actor.settled and self._idle(key, actor):
                del self.users[key]
                actor.retire()
                self._retired.put(key, None)

    def _idle(self, key: UserKey, actor: SessionActor) -> bool:
        return key not in self._context.dirty and key not in self._pending and not actor.waiting
