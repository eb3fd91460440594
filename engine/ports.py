"""The ports where actors and adapters meet. Each docstring is the contract; implementations pass the same suite."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID

import msgspec

from engine.cohort import NotebookTotals
from engine.errors import UnavailableError
from engine.event import Commit, Event, PackedCommit, UserKey
from engine.series import Activity, By, Errors, Window
from engine.session import UserState

# Where the journal's commits go, in seq order: the router's mailbox. It may make the commit loop wait, never drop.
CommitSink: TypeAlias = Callable[[Commit], Awaitable[None]]

# Told once what became of a batch: for each event whether it is new, or why nothing was kept.
Settle: TypeAlias = Callable[[list[bool] | UnavailableError], None]


class Journal(Protocol):
    """The durable log of accepted events. One writer; everything downstream reads it."""

    @property
    def id(self) -> UUID:
        """Its name: made with it, never reused."""

    @property
    def last_seq(self) -> int:
        """The seq of the last committed event; 0 when empty. Seqs start at 1 and never repeat."""

    @property
    def trimmed_to(self) -> int:
        """Events up to this seq are no longer held."""

    def append(self, events: list[Event], settle: Settle) -> None:
        """Make events durable. ``settle`` is called once, now or later, never with more to wait for.

        It gets, for each event, True when it is new and False when it is a repeat; only after the commit that holds
        them (for a repeat: that holds the first) is on the disk. Or it gets the UnavailableError why they cannot be;
        then nothing of the batch was kept. Raises UnavailableError when that is known at once. Never waits: a call a
        request is cheaper than a task switch a request.
        """

    async def read(self, after: int, upto: int, max_events: int) -> list[PackedCommit]:
        """Commits that hold events of ``(after, upto]``, ascending, whole: about ``max_events``, at least one commit.

        A caller skips what it has in the first commit by its own offset.
        """

    async def trim(self, offsets: dict[str, int], floor: int) -> None:
        """Note what each store has committed, and let go of the payload up to ``floor``. Idempotent."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The absolute state of a student, as a store keeps it: never an increment."""

    key: UserKey
    applied_seq: int  # of the journal that the writer serves
    state: bytes | memoryview  # `UserState` in msgpack
    last_receipt: int  # ms
    profile: tuple[str | None, str | None] | None  # (user_name, team), when not stored yet
    sessions: list["SessionRow"]  # those that changed
    moved: list[tuple[UUID, int]]  # rows (id, started_at ms) that a session has left


class SessionRow(msgspec.Struct, frozen=True, gc=False):
    """A learning session, as a row."""

    id: UUID
    notebook_path: str | None
    client_session: str | None
    started_at: int  # ms
    ended_at: int
    closed: bool
    executions: int
    errors: int


class ClassSession(NamedTuple):
    """Whose session it is."""

    user_id: str
    user_name: str | None
    row: SessionRow


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """An event that could not be applied: the type and place of the error, never its text."""

    seq: int
    event: Event
    error_type: str
    place: str


class Sample(msgspec.Struct, frozen=True, gc=False):
    """How a student stood on a notebook at one moment: a point of `learning_progress`, and of `performance_metrics`."""

    class_id: str
    user_id: str
    notebook_path: str
    time: int  # ms, when it was taken
    completed_cells: int
    total_cells: int
    progress_percentage: float  # 0 to 100
    session_duration_ms: int  # of the latest session there
    # Over the last run of each cell, in ms; None where no run told its duration.
    avg_execution_time: float | None
    max_execution_time: float | None
    error_rate: float | None  # failed runs over runs, 0 to 1; None: no cell has run


class Flush(msgspec.Struct, frozen=True, gc=False):
    """What a store commits at once."""

    journal_id: UUID
    after: int  # rows of (after, upto] are new; the store's offset becomes upto
    upto: int
    commits: list[PackedCommit] = []
    snapshots: list[Snapshot] = []
    snapshot_floor: int = 0  # every event up to it is in its user's stored snapshot, once this flush is stored
    notebooks: list[tuple[str, str, NotebookTotals]] = []  # (class, path, totals) that changed
    dead_letters: list[DeadLetter] = []
    samples: list[Sample] = []
    # Offsets of stores that cannot keep their own, by name; None: it is no longer configured, so forget it.
    offsets: dict[str, int | None] = {}


class StoredOffsets(msgspec.Struct, frozen=True, gc=False):
    """What a store has committed of one journal; 0: nothing."""

    rows: int
    snapshots: int
    others: dict[str, int] = {}  # offsets that are kept here for stores that cannot, by name
    behind: int | None = None  # rows of the shard that has the fewest; None: `rows`


class Retention(msgspec.Struct, frozen=True, gc=False):
    """For how many days what is kept; whole months are let go, once all of them is older."""

    events_days: int
    sessions_days: int


class Place(Protocol):
    """Somewhere that something is stored.

    Every method raises StoreUnavailableError when it is away (the same call may go through later), and
    StoreRefusedError when it must not be used as it is.
    """

    @property
    def name(self) -> str:
        """Its name in health, offsets and metrics."""

    async def open(self) -> None:
        """Make it ready for use. Idempotent."""

    async def ping(self) -> None:
        """Prove that it answers."""


class RowStore(Place, Protocol):
    """A place that rows end up in."""

    async def write(self, flush: Flush) -> None:
        """Commit a flush: all of it, or nothing for sure.

        Raises StoreDataError when the store cannot hold some of it; it then need not be opened again.
        """


class StateKeeper(Place, Protocol):
    """What keeps states and offsets, for those who read them: a store, or all shards of one.

    Its `open` connects, brings the schema up to date, and takes the lock that keeps other daemons out.
    """

    def groups(self, keys: Iterable[UserKey]) -> list[list[UserKey]]:
        """The users by who keeps them: one group can be had while another's keeper is away."""

    async def offsets(self, journal_id: UUID) -> StoredOffsets:
        """What is committed of this journal, everywhere."""

    async def tend(self, now: int, retention: Retention) -> int:
        """Make room for what may come after ``now`` (ms), and let go of what is past its time.

        Idempotent; needs `open` before. Returns how many rows lie where none should: somebody should look at them.
        """

    async def sum_up(self) -> bool:
        """Add some of the stored rows to the sums that queries use, in about 0.1 s; False: all are in them."""

    async def snapshots(self, keys: Iterable[UserKey]) -> list[UserState]:
        """The stored states of these users; those without one are left out."""

    async def recent_snapshots(self, since: int) -> list[UserState]:
        """The stored states of users whose last receipt is at or after ``since`` (ms)."""

    async def notebooks(self) -> list[tuple[str, str, NotebookTotals]]:
        """The known notebooks of every class: (class, path, totals)."""


class Store(RowStore, StateKeeper, Protocol):
    """The place that keeps rows, states, and the offsets with them: it commits a flush in one transaction."""


class SessionQueries(Protocol):
    """Reads for the API, beside the writer's connection."""

    async def user_sessions(
        self, user_id: str, class_id: str, notebook: str | None, limit: int, before: tuple[int, UUID] | None
    ) -> list[SessionRow]:
        """A student's sessions, newest first, from just before ``before`` (started_at ms, id)."""

    async def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """The sessions of a class that started at or after ``since`` (ms), as `user_sessions` orders them."""


class SeriesQueries(Protocol):
    """Time series of cell events, from wherever those are.

    Every method raises StoreUnavailableError and StoreRefusedError as a `Store` does. Only `cell_executed` is an
    execution; an error is one that failed, or an `execution_error`. Counts are of rows: nothing is cached.
    """

    async def activity(self, class_id: str, window: Window, by: By) -> list[Activity]:
        """Executions and their durations; buckets without any are left out, the order is free.

        Raises TooLargeError when there are more groups than ``window.max_groups``.
        """

    async def errors(self, class_id: str, window: Window, by: By) -> list[Errors]:
        """Errors and executions, in the same way."""

    async def notebook_summary(self, class_id: str, path: str) -> dict[str, Any]:
        """The contract's notebook summary (`engine.series.notebook_summary`), of all that is stored."""


class LiveUser(Protocol):
    """What others may ask of a session actor, synchronously: reads only, the state stays its own."""

    @property
    def key(self) -> UserKey:
        """Its class and user."""

    @property
    def state(self) -> UserState:
        """The live state. Read it, never keep or change it."""

    @property
    def position(self) -> int:
        """The highest seq of the journal that is in it; 0 when none is."""


class Outbox(Protocol):
    """One subscriber's frames, as the WebSocket adapter sees it. Bounded: a slow one gets fewer, fresher frames."""

    def subscribe(self, topic: str, resume: tuple[str, int] | None = None) -> None:
        """Queue a snapshot of the topic, then its frames. Raises UnknownTopicError.

        ``resume``: epoch and seq of the last frame that the client had; if the topic can tell what came since, that
        is queued in the snapshot's place.
        """

    def unsubscribe(self, topic: str) -> None:
        """No more frames of this topic."""

    @property
    def conflated(self) -> int:
        """How many frames were dropped because its reader was slow."""

    @property
    def received_at(self) -> int:
        """When the oldest news in the frame that was taken last was received, in ms; 0: it tells none."""

    async def next_frame(self) -> str:
        """Wait for the next frame to send, as JSON text. Raises OverloadedError when alerts are lost by now."""

    def write_through(self, write: Callable[[str, int], bool]) -> None:
        """Give a frame to ``write`` in place of who waits in `next_frame`: its text, and what is then `received_at`.

        ``write`` never waits, and says whether it took the frame: if not, `next_frame` gives it.
        """

    def close(self) -> None:
        """Forget every subscription."""


class LiveFeed(Protocol):
    """The live state of classes, from memory."""

    def connect(self) -> Outbox:
        """A new subscriber."""

    def overview(self, class_id: str) -> dict[str, Any]:
        """``{"epoch", "seq", "state"}`` of a class: the stream's snapshot."""

    def sessions(self, class_id: str, user_id: str) -> tuple[list[SessionRow], set[UUID]]:
        """The live sessions of a student, and the ids of stored ones that are none any more."""

    def class_sessions(
        self, class_id: str, since: int, limit: int, before: tuple[int, UUID] | None
    ) -> list[ClassSession]:
        """The newest live sessions of a class, like `SessionQueries.class_sessions`; perhaps not stored yet."""


class Intake(Protocol):
    """Where accepted events enter, from the edge."""

    def accept(self, events: list[Event], settle: Settle) -> None:
        """Make events durable and hand them on; ``settle`` as in `Journal.append`.

        Raises UnavailableError, and OverLimitError when some are past a limit of their class; then none was taken.
        """


class Bus(Protocol):
    """Tells other programs what happens, as it happens. It may lose messages, the oldest first, and counts them."""

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """Have each (channel, text in UTF-8) told to whoever listens there, in this order. Never waits, never raises.

        What is given together may be lost together, so it should be few: some hundred.
        """


class Cache(Protocol):
    """Values that can be made again. It may lose any of them at any time, and is never the only copy.

    What was put is there for whoever put it; other programs see it a little later.
    """

    async def get(self, key: str) -> bytes | None:
        """The value; None when there is none, or the cache does not answer soon (about 0.25 s). Never raises."""

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep a value for so many seconds. Never waits, never raises."""

    def put_fields(self, key: str, fields: Mapping[str, str], ttl_s: float) -> None:
        """Keep a value of named fields (`get` does not find it). Never waits, never raises."""

    def discard(self, key: str) -> None:
        """Forget a value, if there is one. Never waits, never raises."""
