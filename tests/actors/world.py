"""The actors of a daemon, tied together as the composition root does it, between the twins of journal and store.

Nothing in it uses threads, so tests run on the autojump clock: waiting costs nothing.
"""

import json
from functools import partial

import trio

from actors.admission import Limits
from actors.broadcaster import Broadcaster
from actors.mailboxes import Mailboxes
from actors.recovery import Recovery
from actors.router import Router
from actors.series import Series
from actors.session import SessionContext
from actors.states import States
from actors.supervisor import supervise
from actors.trimming import Trimming
from actors.writer import StoreWriter
from adapters.memory import MemoryJournal, MemoryStore
from engine.dirty import DirtyUsers
from engine.session import UserState
from engine.view import Thresholds
from engine.watermark import Watermark
from loadtest.views import merged
from tests.adapters.events import NOW, Receipt
from tests.engine.strategies import whole

IDLE_MS = 1_800_000
RETIRE_MS = 3_600_000
INTERVAL_S = 0.1
THRESHOLDS = Thresholds(180_000, 600_000, 3)
OUTBOX_FRAMES = 4
LIMITS = Limits(20_000, 2000)


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class NotedMailboxes(Mailboxes):
    """They note what operators are told: the broadcaster empties the mailbox itself."""

    def __init__(self):
        super().__init__()
        self._told = {}

    def alert(self, what, class_id, subject, message):
        super().alert(what, class_id, subject, message)
        self._told[what, class_id, subject] = message

    def told(self):
        """What they were told since the last call."""
        told, self._told = self._told, {}
        return told


class World:
    """`start` it, `crash` it, and start another on the same journal and store."""

    def __init__(self, nursery, *, journal=None, store=None, series=None, clock=None, accept_gap=False, limits=LIMITS):
        self.clock = clock or Clock()
        self.journal = journal or MemoryJournal(clock=self.clock)
        self.store = store or MemoryStore()
        self.series = series
        self._outer = nursery
        self._scope = trio.CancelScope()
        self.mailboxes = NotedMailboxes()
        self.dirty = DirtyUsers()
        self.watermark = Watermark()
        context = SessionContext(
            self.journal.id.hex, IDLE_MS, self.dirty, self.mailboxes, set(), self.journal, THRESHOLDS
        )
        past = self.watermark.open(self.journal.last_seq, 1)
        self.router = Router(
            self.journal, context, self.watermark, limits=limits, retire_after_ms=RETIRE_MS, clock=self.clock
        )
        self.recovery = Recovery(
            self.journal,
            self.store,
            self.router,
            context,
            past,
            accept_gap=accept_gap,
            retire_after_ms=RETIRE_MS,
            clock=self.clock,
            followers=[] if series is None else [series.name],
        )
        trimming = Trimming(self.journal)
        self.writer = StoreWriter(
            self.journal,
            self.store,
            States(
                self.journal,
                self.store,
                self.watermark,
                context,
                total_cells=self.router.total_cells,
                clock=self.clock,
                samples=None if series is None else self.mailboxes.samples,
                accept_gap=accept_gap,
            ),
            trimming,
            self.watermark,
            mailboxes=self.mailboxes,
            recovery=self.recovery,
            interval_s=0.5,
            max_events=100,
        )
        self.follower = series and StoreWriter(
            self.journal,
            series,
            Series(series.name, self.mailboxes, self.recovery, max_samples=3),
            trimming,
            self.watermark,
            mailboxes=self.mailboxes,
            recovery=self.recovery,
            interval_s=1,
            max_events=100,
        )
        self.broadcaster = Broadcaster(
            self.router,
            self.mailboxes,
            thresholds=THRESHOLDS,
            interval_s=INTERVAL_S,
            outbox_frames=OUTBOX_FRAMES,
            clock=self.clock,
            facts=lambda: {"store": self.writer.health},
        )

    async def start(self):
        """Everything runs, and the first attempt at recovery is over."""
        with trio.fail_after(300):
            await self._outer.start(self._run)
            await self.recovery.tried.wait()
        return self

    async def _run(self, *, task_status):
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.router.run)
                nursery.start_soon(self.journal.run, self.router.commit)
                for name in ("recovery", "writer", "broadcaster", *(["follower"] if self.follower else [])):
                    nursery.start_soon(partial(supervise, name, getattr(self, name).run))
                task_status.started()

    async def crash(self):
        """As kill -9 does: what is in memory is gone."""
        self._scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def restart(self, **settings):
        await self.crash()
        kept = {"journal": self.journal, "store": self.store, "series": self.series, "clock": self.clock}
        return await World(self._outer, **kept | settings).start()

    # --- the edge's side

    async def post(self, *events):
        """Accepted and applied."""
        receipt = Receipt()
        self.router.accept(list(events), receipt.settle)
        fresh = await receipt.outcome()
        await until(lambda: self.recovery.done.is_set() is False or self.watermark.value >= self.journal.last_seq)
        await trio.testing.wait_all_tasks_blocked()
        return fresh

    async def all_stored(self):
        await until(lambda: self.writer.lag == 0 and not len(self.dirty) and self.writer.health["status"] == "healthy")

    def state(self, user_id="ann", class_id="default"):
        return self.router.users[class_id, user_id].state

    # --- what is stored

    @property
    def stored_ids(self):
        return [event.event_id for _, event in sorted(self.store.rows.items())]

    async def stored_state(self, user_id="ann"):
        (state,) = await self.store.snapshots([("default", user_id)])
        return state

    def stored_sessions(self, user_id="ann"):
        rows = [row for key, row in self.store.sessions.values() if key == ("default", user_id)]
        return sorted((row.started_at, row.ended_at, row.executions, row.errors) for row in rows)


class Watcher:
    """A subscriber that keeps its own copy of the class, and counts its frames."""

    def __init__(self, world, topic="class:default"):
        self.outbox = world.broadcaster.connect()
        self.outbox.subscribe(topic)
        self.frames = []
        self.alerts = []
        self.state = None
        self.seq = None

    async def take(self):
        """The next snapshot or delta, applied to the copy; alerts before it are kept apart. Each seq must follow."""
        while True:
            with trio.fail_after(60):
                frame = json.loads(await self.outbox.next_frame())
            self.frames.append(frame)
            if frame["type"] == "snapshot":
                self.state = frame["state"]
            else:
                assert frame["seq"] == self.seq + 1
            self.seq = frame["seq"]
            if frame["type"] == "alerts":
                self.alerts += frame["alerts"]
                continue
            if frame["type"] == "delta":
                self.state = merged(self.state, frame["changes"])
            return frame

    async def nothing_more(self):
        with trio.move_on_after(10 * INTERVAL_S):
            raise AssertionError(await self.outbox.next_frame())


async def until(condition, within=300):
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.05)


def folded(*events, user_id="ann", received_at=NOW):
    """The state that these events make, without journals."""
    state = UserState(class_id="default", user_id=user_id)
    for event in events:
        state.apply(event, received_at, IDLE_MS)
    return bare(state)


def bare(state):
    """A state in a form that compares, apart from the journals that it was fed from and from what is put away."""
    state = whole(state)
    return {name: getattr(state, name) for name in state.__struct_fields__ if name != "applied"}
