"""Recovery: from stored snapshots and the journal to live state, at start and for students who come back."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

import structlog
import trio

from engine.alerts import STALE_MS, apply_alerting
from engine.backoff import Backoff
from engine.clock import WallClock
from engine.errors import StoreRefusedError, StoreUnavailableError
from engine.event import Commit, Event, UserKey
from engine.faults import reach
from engine.ports import Journal, StateKeeper, StoredOffsets
from engine.rows import Past, user_key
from engine.session import UserState
from engine.watermark import Part

from .rebuild import Trial
from .router import Router
from .session import SessionActor, SessionContext

# Between two tries to reach a store that is away, in seconds: short, because the teacher's view waits for it.
_FIRST_S: Final = 0.5
_LAST_S: Final = 2.0
# Events that one step of the replay takes from the journal, and how often it says how far it is (seconds).
_STEP_EVENTS: Final = 5000
_PROGRESS_S: Final = 1.0
# How long the shutdown waits for the pasts of students who were just met, in seconds.
_SETTLE_S: Final = 0.5

Step: TypeAlias = Callable[[], Awaitable[None]]

log = structlog.get_logger("recovery")


class Resume(NamedTuple):
    """After which seqs a store's writer goes on."""

    rows: int
    snapshots: int


def resume_from(journal: Journal, stored: StoredOffsets, *, accept_gap: bool) -> Resume:
    """Where to go on, from what the store has. Raises StoreRefusedError when events would be missing."""
    if stored.rows > journal.last_seq:
        raise StoreRefusedError(
            f"the database holds events up to seq {stored.rows} of journal {journal.id}, which ends at "
            f"{journal.last_seq}: data_dir is older than the database. Restore the newer data_dir, or move the journal "
            "away to start a new one"
        )
    oldest = min(stored.rows, stored.snapshots)
    if oldest < journal.trimmed_to and not accept_gap:
        raise StoreRefusedError(
            f"the database lacks events {oldest + 1} to {journal.trimmed_to} of journal {journal.id}, and the journal "
            "no longer has them. Restore a newer database, or start with --accept-gap to go on without them"
        )
    return Resume(max(stored.rows, journal.trimmed_to), max(stored.snapshots, journal.trimmed_to))


def resume_follower(journal: Journal, stored: StoredOffsets, follower: str, *, accept_gap: bool) -> int:
    """Where a store that keeps no offset goes on. Raises StoreRefusedError when events would be missing in it.

    One that was never written to begins where the rows of the other end: what is before, that other one holds.
    """
    rows = stored.rows if stored.behind is None else stored.behind
    known = stored.others.get(follower, max(rows, journal.trimmed_to))
    if known > journal.last_seq:
        raise StoreRefusedError(
            f"{follower} holds events up to seq {known} of journal {journal.id}, which ends at {journal.last_seq}: "
            "data_dir is older than the stores. Restore the newer data_dir, or move the journal away to start a new one"
        )
    if known < journal.trimmed_to and not accept_gap:
        raise StoreRefusedError(
            f"{follower} lacks events {known + 1} to {journal.trimmed_to} of journal {journal.id}, and the journal no "
            "longer has them. Start with --accept-gap to go on without them"
        )
    return max(known, journal.trimmed_to)


def part_with(stored: StoredOffsets, follower: str, *, accept_gap: bool) -> None:
    """A store is no longer configured. Raises StoreRefusedError when events that were left to it are not in it yet."""
    known = stored.others[follower]
    if known < stored.rows and not accept_gap:
        raise StoreRefusedError(
            f"{follower} is no longer configured and lacks cell events of seq {known + 1} to {stored.rows}, which no "
            f"other store has: configure it again until it has them, or start with --accept-gap to go on without them"
        )


class Recovery:
    """Brings the past to the router: once for everything at start, then for each student who is met again."""

    def __init__(
        self,
        journal: Journal,
        store: StateKeeper,
        router: Router,
        context: SessionContext,
        part: Part,
        *,
        accept_gap: bool,
        retire_after_ms: int,
        clock: WallClock,
        followers: Collection[str] = (),
    ) -> None:
        """``followers``: stores whose offsets the store keeps for them."""
        self._followers = followers
        self.resumes: dict[str, int] = {}  # where they go on, once recovery is done
        self._journal = journal
        self._store = store
        self._router = router
        self._dirty = context.dirty
        self._mailboxes = context.mailboxes
        self._unsettled = context.mailboxes.unsettled
        self._part = part
        self._accept_gap = accept_gap
        self._retire_after_ms = retire_after_ms
        self._idle_ms = context.idle_ms
        self._thresholds = context.thresholds
        self._clock = clock
        self._head = journal.last_seq  # live events come after it
        self._scope = trio.CancelScope()
        self._settling = trio.Lock()
        self.done = trio.Event()
        self.tried = trio.Event()  # the first attempt is over, well or not
        self.refused: StoreRefusedError | None = None
        self.fault: str | None = None  # why the store could not be used, when last tried

    async def run(self) -> None:
        """Recover, retrying while the store is away, and finish its part; then settle students as they are met.

        A refusal ends it: `refused` tells why, events stay in the journal, and live state goes on from now.
        """
        if self._scope.cancel_called:
            return
        with trio.CancelScope() as self._scope:  # a new one each time: `run` is run again when it fails
            if not self.done.is_set():
                try:
                    await self._persist(self._recover)
                except StoreRefusedError as error:
                    self.refused = error
                    self.tried.set()
                    log.error("store refused", store=self._store.name, reason=str(error))  # noqa: TRY400
                    return
                self._part.done()
                self.done.set()
                self.tried.set()
            while True:
                await self._unsettled.wait_filled()
                await self._persist(self._settle)

    def stop(self) -> None:
        """No student's actor may begin any more: give up a recovery that is under way."""
        if not self.done.is_set():
            self._scope.cancel()

    async def settle_rest(self) -> None:
        """The last who are unsettled, so that they can be stored; given up when the store is away or slow."""
        if self.done.is_set() and self.fault is None:
            with trio.move_on_after(_SETTLE_S), suppress(StoreUnavailableError):
                await self._settle()

    async def _persist(self, step: Step) -> None:
        backoff = Backoff(_FIRST_S, _LAST_S)
        while True:
            try:
                await step()
            except StoreUnavailableError as error:
                if self.fault != str(error):
                    log.warning("store is away; live state goes on without the past", reason=str(error))
                self.fault = str(error)
                self.tried.set()
                await trio.sleep(backoff.pause_s())
            else:
                self.fault = None
                return

    async def _recover(self) -> None:
        await self._store.open()
        reach("recovery.load")
        stored = await self._store.offsets(self._journal.id)
        resume = resume_from(self._journal, stored, accept_gap=self._accept_gap)
        self._resume_followers(stored)
        for class_id, path, totals in await self._store.notebooks():
            self._router.adopt_notebook(class_id, path, totals)
        recent = await self._store.recent_snapshots(self._clock() - self._retire_after_ms)
        pasts = {user_key(state): Past.of(state) for state in recent}
        firsts = await self._replay(resume.snapshots, pasts)
        for key, past in pasts.items():
            reach("recovery.adopt")
            actor = self._router.adopt_user(past)
            if key in firsts:
                self._dirty.mark(key, firsts[key], actor)
        log.info("recovered", users=len(pasts), replayed_from=resume.snapshots + 1, replayed_to=self._head)

    def _resume_followers(self, stored: StoredOffsets) -> None:
        """What is decided here goes into the first transaction of the store's writer, before its rows move on."""
        for follower in self._followers:
            seq = resume_follower(self._journal, stored, follower, accept_gap=self._accept_gap)
            self.resumes[follower] = seq
            self._mailboxes.offsets.put(follower, seq)
        for follower in stored.others.keys() - set(self._followers):
            part_with(stored, follower, accept_gap=self._accept_gap)
            self._mailboxes.offsets.put(follower, None)

    async def _replay(self, after: int, pasts: dict[UserKey, Past]) -> dict[UserKey, int]:
        """Apply the journal's ``(after, head]`` to ``pasts``; tells the first seq that each user's snapshot lacked."""
        journal_id = self._journal.id.hex
        firsts: dict[UserKey, int] = {}
        trials: dict[UserKey, Trial] = {}  # of students with an event that could not be applied
        said = trio.current_time()
        begin = after
        while after < self._head:
            packed = await self._journal.read(after, self._head, _STEP_EVENTS)
            if not packed:
                break
            commits = [commit.unpack() for commit in packed]
            await self._load_missing(commits, pasts)
            for commit in commits:
                for seq, event in enumerate(commit.events, commit.first_seq):
                    key = (event.class_id, event.user_id)
                    self._router.observe(event)
                    if key in trials:
                        trials[key].apply(seq, event, commit.received_at)
                        continue
                    state = pasts[key].state
                    if seq > state.position(journal_id):
                        firsts.setdefault(key, seq)
                        try:
                            self._apply(state, event, commit.received_at)
                        except Exception:  # noqa: BLE001 - one event must not stop everybody's recovery
                            trials[key] = await self._retried(key, seq)
                        else:
                            state.advance(journal_id, seq)
                await trio.lowlevel.checkpoint()
                reach("recovery.replay")
            after = commits[-1].last_seq
            if trio.current_time() - said >= _PROGRESS_S:
                said = trio.current_time()
                log.info("replaying", done=after - begin, of=self._head - begin)
        for key, trial in trials.items():
            pasts[key] = pasts[key]._replace(state=trial.state)
        return firsts

    async def _retried(self, key: UserKey, upto: int) -> Trial:
        """A student's stored state, replayed anew up to this seq: what was made of it may hold half an event."""
        stored = await self._store.snapshots([key])
        state = stored[0] if stored else UserState(class_id=key[0], user_id=key[1])
        trial = Trial(state, self._journal.id.hex, self._idle_ms, self._mailboxes)
        await trial.replay(self._journal, upto)
        return trial

    def _apply(self, state: UserState, event: Event, received_at: int) -> None:
        """As an actor does; alerts of what was received long ago would only startle."""
        if received_at < self._clock() - STALE_MS:
            state.apply(event, received_at, self._idle_ms)
            return
        for alert in apply_alerting(state, event, received_at, self._idle_ms, self._thresholds):
            self._mailboxes.alerts.put(event.class_id, alert)

    async def _load_missing(self, commits: list[Commit], pasts: dict[UserKey, Past]) -> None:
        wanted = {(event.class_id, event.user_id) for commit in commits for event in commit.events} - pasts.keys()
        if not wanted:
            return
        for state in await self._store.snapshots(wanted):
            pasts[user_key(state)] = Past.of(state)
        for key in wanted - pasts.keys():
            pasts[key] = Past.of(UserState(class_id=key[0], user_id=key[1]))

    async def _settle(self) -> None:
        """Bring their past to the students who wait for it; who does not get it waits on."""
        async with self._settling:
            left = {key: actor for key, actor in self._unsettled.take_all().items() if not actor.settled}
            fault: StoreUnavailableError | StoreRefusedError | None = None
            try:
                for group in self._store.groups(list(left)):
                    try:
                        await self._settle_group({key: left[key] for key in group})
                    except (StoreUnavailableError, StoreRefusedError) as error:
                        fault = error  # another group's keeper may be there
                    else:
                        for key in group:
                            del left[key]
            finally:
                self._unsettled.put_back(left)
            if fault is not None:
                raise StoreUnavailableError(str(fault)) from fault  # a refusal too may be mended while this runs

    async def _settle_group(self, actors: dict[UserKey, SessionActor]) -> None:
        found = {user_key(state): state for state in await self._store.snapshots(actors)}
        for key, actor in actors.items():
            reach("recovery.settle")
            state = found.get(key)
            actor.adopt(None if state is None else Past.of(state))
