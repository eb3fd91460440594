"""The conflating mailboxes between the actors. Each holds one slot of its key, so none can be full."""

from typing import TYPE_CHECKING

from engine.cohort import NotebookTotals
from engine.event import UserKey
from engine.ports import DeadLetter

from .mailbox import ConflatingMailbox

if TYPE_CHECKING:
    from .session import SessionActor


class Mailboxes:
    """From the router and the session actors, to whom it may concern."""

    def __init__(self) -> None:
        # To the broadcaster: students that changed, notebooks that were resized, students that retired.
        self.changed: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        self.resized: ConflatingMailbox[tuple[str, str], None] = ConflatingMailbox()
        self.retired: ConflatingMailbox[UserKey, None] = ConflatingMailbox()
        # To recovery: students whose past is not known yet.
        self.unsettled: ConflatingMailbox[UserKey, SessionActor] = ConflatingMailbox()
        # To the store writer: notebooks (class, path) to be stored, and events (by seq) that could not be applied.
        self.notebooks: ConflatingMailbox[tuple[str, str], NotebookTotals] = ConflatingMailbox()
        self.dead_letters: ConflatingMailbox[int, DeadLetter] = ConflatingMailbox()
