"""Every metric: its name, which is the contract's, what it says, and which part of the daemon knows it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine.measures import Histogram, Histograms, Measure, single


class JournalCounts(Protocol):
    """What the journal counts."""

    accepted: int
    duplicates: int
    last_seq: int
    trimmed_to: int
    payload_bytes: int
    commit_times: Histogram


class IngestCounts(Protocol):
    """What the edge counts, of events."""

    rejected: int  # not valid
    refused: int  # not taken now


class WriterCounts(Protocol):
    """What a store's writer counts."""

    flush_times: Histogram

    @property
    def lag(self) -> int:
        """Acknowledged events that are not stored yet."""


class RouterCounts(Protocol):
    """What the router knows."""

    @property
    def actors(self) -> int:
        """Students in memory."""

    @property
    def waiting(self) -> int:
        """Shares of commits in all their mailboxes."""


class StreamCounts(Protocol):
    """What the stream counts."""

    notify_times: Histogram

    @property
    def subscribers(self) -> int:
        """Open connections."""

    @property
    def conflated(self) -> int:
        """Frames that were dropped because readers were slow."""


class Connections(Protocol):
    """Who has connections to a database."""

    @property
    def connections(self) -> int:
        """How many are open."""


class LetterCounts(Protocol):
    """Who counts dead letters."""

    buried: int


class Sources(NamedTuple):
    """Whom to ask."""

    journal: JournalCounts
    ingest: IngestCounts
    router: RouterCounts
    writers: dict[str, WriterCounts]  # by store
    stream: StreamCounts
    letters: LetterCounts
    databases: dict[str, list[Connections]]
    queries: Histograms  # by database and type
    requests: Histograms  # by route and status


def catalog(of: Sources) -> list[Measure]:
    """The metrics of one daemon. Counters begin at 0 with each start."""
    journal = of.journal

    def by_store(name: str, text: str, read: Callable[[WriterCounts], float | Histogram]) -> Measure:
        return Measure(name, text, ("store",), lambda: {(store,): read(each) for store, each in of.writers.items()})

    return [
        Measure(
            "database_query_duration_seconds",
            "How long statements took, by their first word.",
            ("database", "query_type"),
            lambda: of.queries.by_labels,
        ),
        Measure(
            "database_connection_pool_size",
            "Open connections.",
            ("database",),
            lambda: {(name,): sum(each.connections for each in pool) for name, pool in of.databases.items()},
        ),
        Measure(
            "classpulse_events_total",
            "Events, by what became of them: unavailable ones were answered 503.",
            ("result",),
            lambda: {
                ("accepted",): journal.accepted,
                ("duplicate",): journal.duplicates,
                ("rejected",): of.ingest.rejected,
                ("unavailable",): of.ingest.refused,
            },
        ),
        Measure(
            "classpulse_http_request_duration_seconds",
            "From a request that was read whole to its answer.",
            ("route", "status"),
            lambda: of.requests.by_labels,
        ),
        single("classpulse_journal_commit_seconds", "How long commits took.", lambda: journal.commit_times),
        single("classpulse_journal_events", "Events in the journal.", lambda: journal.last_seq - journal.trimmed_to),
        single("classpulse_journal_bytes", "Their size; see journal.max_bytes.", lambda: journal.payload_bytes),
        by_store("classpulse_store_lag_events", "Acknowledged events, not stored yet.", lambda writer: writer.lag),
        by_store("classpulse_store_flush_seconds", "How long flushes took.", lambda writer: writer.flush_times),
        single("classpulse_session_actors", "Students in memory.", lambda: of.router.actors),
        single("classpulse_mailbox_depth", "Deliveries in all their mailboxes.", lambda: of.router.waiting),
        single(
            "classpulse_notify_latency_seconds",
            "From the receipt of an event until a frame that tells of it is at a subscriber's socket.",
            lambda: of.stream.notify_times,
        ),
        single("classpulse_subscribers", "Open streams.", lambda: of.stream.subscribers),
        single("classpulse_outbox_conflated_total", "Frames dropped for slow readers.", lambda: of.stream.conflated),
        single("classpulse_dead_letters_total", "Events that could not be applied.", lambda: of.letters.buried),
    ]
