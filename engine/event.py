"""The canonical event: what the journal keeps, the actors apply and the stores write."""

from typing import Final, TypeAlias

import msgspec

CELL_EXECUTED: Final = "cell_executed"
EXECUTION_ERROR: Final = "execution_error"
SESSION_START: Final = "session_start"
SESSION_END: Final = "session_end"
NOTEBOOK_OPENED: Final = "notebook_opened"
NOTEBOOK_SAVED: Final = "notebook_saved"
NOTEBOOK_CLOSED: Final = "notebook_closed"
HELP_REQUESTED: Final = "help_requested"
HELP_RESOLVED: Final = "help_resolved"

# Other spellings of the same type, from the contract's event table.
TYPE_ALIASES: Final = {
    "cell_execution": CELL_EXECUTED,
    "help": HELP_REQUESTED,
    "help_stop": HELP_RESOLVED,
}
# Rows of these go to `cell_executions`, those of every other type to `activity_events`.
CELL_TYPES: Final = frozenset({CELL_EXECUTED, EXECUTION_ERROR})
NOTEBOOK_TYPES: Final = frozenset({NOTEBOOK_OPENED, NOTEBOOK_SAVED, NOTEBOOK_CLOSED})
NEEDS_NOTEBOOK: Final = CELL_TYPES | NOTEBOOK_TYPES

# Longest user id, notebook path and cell id, in characters; an event with a longer one is rejected.
MAX_USER_ID_CHARS: Final = 254
MAX_PATH_CHARS: Final = 500
MAX_CELL_ID_CHARS: Final = 500

# Identity of a student in a class: (class_id, user_id). One actor each.
UserKey: TypeAlias = tuple[str, str]


class Order(msgspec.Struct, array_like=True, gc=False, order=True, frozen=True):
    """The order of events: total, and the same whatever arrives first."""

    time: int  # of the event, ms since the epoch
    event_id: str


class Event(msgspec.Struct, array_like=True, gc=False):
    """One event after validation, in the contract's canonical names and types.

    The order of the fields is the journal's format: add at the end, with a default, and never take one away.
    """

    event_id: str
    event_type: str
    time: int  # event time, ms since the epoch
    user_id: str
    class_id: str
    notebook_path: str | None = None
    session_id: str | None = None
    cell_id: str | None = None
    cell_index: int | None = None
    cell_type: str | None = None
    execution_count: int | None = None
    execution_duration_ms: float | None = None
    has_error: bool | None = None
    error_message: str | None = None
    user_name: str | None = None
    team: str | None = None
    total_cells: int | None = None
    completed_cells: int | None = None
    data: str | None = None  # JSON text of an object
    metadata: str | None = None  # JSON text of an object
    clock_skewed: bool = False
    named: bool = True  # the client gave the event_id, so a repeat can be known

    @property
    def failed(self) -> bool:
        """Whether this is the run of a cell that ended in an error."""
        return self.event_type == EXECUTION_ERROR or (self.event_type == CELL_EXECUTED and self.has_error is True)


def error_class(message: str) -> str:
    """The kind of an error by its message: ``NameError`` of ``NameError: name 'x' is not defined``."""
    return message.partition(":")[0]


class Commit(msgspec.Struct, gc=False, frozen=True):
    """What one journal transaction made durable: ``events[i]`` has ``seq == first_seq + i``."""

    first_seq: int
    received_at: int  # time of receipt, ms since the epoch
    events: list[Event]

    @property
    def last_seq(self) -> int:
        """The ``seq`` of its last event."""
        return self.first_seq + len(self.events) - 1

    def pack(self) -> "PackedCommit":
        """As the journal keeps it."""
        return PackedCommit(self.first_seq, self.last_seq, self.received_at, _pack(self.events))


# A commit's payload: a msgpack array of events.
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(list[Event]).decode


class PackedCommit(msgspec.Struct, gc=False, frozen=True):
    """A commit as the journal keeps it. Unpacked one after the other, a backlog never stands in memory at once."""

    first_seq: int
    last_seq: int
    received_at: int  # ms
    payload: bytes

    def __len__(self) -> int:
        return self.last_seq - self.first_seq + 1

    def unpack(self) -> Commit:
        """The events themselves."""
        return Commit(self.first_seq, self.received_at, _unpack(self.payload))

    def after(self, seq: int) -> "PackedCommit":
        """The part of it past ``seq``."""
        if seq < self.first_seq:
            return self
        return Commit(seq + 1, self.received_at, self.unpack().events[seq + 1 - self.first_seq :]).pack()
