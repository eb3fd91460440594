"""Samples on their way to a store of time series, beside the rows. It keeps no offset: another store does, for it."""

import math

import msgspec

from engine.event import UserKey
from engine.ports import Flush, Sample

from .mailboxes import Mailboxes
from .recovery import Recovery


class Series:
    """`actors.writer.Cargo` of a store that takes points: written twice they are the same.

    So its offset may follow: it goes into the next transaction of the store that keeps states, with the dead letters
    of the events it passes over, and counts for trimming once it is committed there. While that store is away, points
    are written on, from the offset in memory.
    """

    keeps_states = False
    floor = math.inf

    def __init__(self, name: str, mailboxes: Mailboxes, recovery: Recovery, *, max_samples: int) -> None:
        """``max_samples``: in one flush."""
        self.names = (name,)
        self._name = name
        self._samples = mailboxes.samples
        self._offsets = mailboxes.offsets
        self._recovery = recovery
        self._max_samples = max_samples
        self._offset: int | None = None
        self._taken: dict[tuple[str, str, str], Sample] = {}

    async def resume(self) -> int:
        """Where it was when the daemon started; later only we move it."""
        if self._offset is None:
            self._offset = self._recovery.resumes[self._name]
        return self._offset

    def take(self, *, rows: int) -> bool:  # noqa: ARG002 - samples are few beside rows
        """The oldest samples that wait."""
        self._taken = self._samples.take(self._max_samples)
        return bool(self._taken)

    def load(self, flush: Flush) -> Flush:
        """The samples are as they were taken."""
        return msgspec.structs.replace(flush, samples=list(self._taken.values()))

    def failed(self) -> None:
        """They wait again, those of which there is no newer one."""
        self._samples.put_back(self._taken)

    def stored(self, flush: Flush, refused: set[UserKey]) -> dict[str, int]:  # noqa: ARG002 - it has no states
        """The offset sets out to where it is kept; nothing is committed for good yet."""
        if flush.upto != self._offset:
            self._offset = flush.upto
            self._offsets.put(self._name, flush.upto)
        return {}

    @property
    def more(self) -> bool:
        """Whether the last load was as much as goes into one."""
        return len(self._taken) == self._max_samples
