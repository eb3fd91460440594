"""The conflating mailboxes between the actors. Each holds one slot, or the newest, of a key; none fills by repeats."""

from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from engine.alerts import Alert
from engine.cohort import NotebookTotals
from engine.event import UserKey
from engine.ports import DeadLetter, Sample

from .mailbox import ConflatingMailbox, RecentMailbox

if TYPE_CHECKING:
    from .session import SessionActor

# Alerts for operators that wait to be taken; more are in the log only.
_MAX_OPS: Final = 1000

# Alerts of one class between two looks of the broadcaster: as many events as the journal's queue holds.
_ALERTS: Final = 20_000

# Samples that wait while the store of time series is away; past them the oldest students' are not written.
_SAMPLES: Final = 20_000

SampleMailbox: TypeAlias = ConflatingMailbox[tuple[str, str, str], Sample]

log = structlog.get_logger("ops")


class Mailboxes:
    """From the router and the session actors, to whom it may concern."""

    def __init__(self) -> None:
        self.buried = 0  # dead letters since the start
        # To the broadcaster: students that changed, notebooks that were resized, students that retired.
        self.changed: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        self.resized: ConflatingMailbox[tuple[str, str], None] = ConflatingMailbox()
        self.retired: ConflatingMailbox[UserKey, None] = ConflatingMailbox()
        # To the broadcaster: alerts by class.
        self.alerts: RecentMailbox[str, Alert] = RecentMailbox(_ALERTS)
        # To recovery: students whose past is not known yet.
        self.unsettled: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        # To the store writer: notebooks (class, path) to be stored, and events (by seq) that could not be applied.
        self.notebooks: ConflatingMailbox[tuple[str, str], NotebookTotals] = ConflatingMailbox()
        self.dead_letters: ConflatingMailbox[int, DeadLetter] = ConflatingMailbox()
        # To the writer of time series: a student's latest sample of each notebook (class, student, path).
        self.samples: SampleMailbox = ConflatingMailbox(_SAMPLES)
        # To the store writer that keeps offsets: how far the stores are that cannot keep theirs; None: forget it.
        self.offsets: ConflatingMailbox[str, int | None] = ConflatingMailbox()
        # To operators, by (what, class, student or ""): something that a person should look at.
        self.ops: ConflatingMailbox[tuple[str, str, str], str] = ConflatingMailbox()

    def alert(self, what: str, class_id: str, subject: str, message: str) -> None:
        """Tell operators: a log line, and a message in `ops` while it has room."""
        log.warning(what, class_id=class_id, subject=subject, reason=message)
        if len(self.ops) < _MAX_OPS:
            self.ops.put((what, class_id, subject), message)
