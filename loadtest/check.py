"""What is found of one place where something has to be."""

from collections.abc import Iterable
from typing import Final

import msgspec

# Event ids that are told in full, for each check; of candidates, that are kept.
TOLD: Final = 20
MOST_CANDIDATES: Final = 1000


class Check(msgspec.Struct):
    """One place. `event_ids` are those missing or too many; of `suspects` some are, nobody can say which.

    `candidates` are the first of the suspects, `astray` the students or sessions that differ.
    """

    name: str
    expected: int
    found: int
    event_ids: list[str] = []
    candidates: list[str] = []
    suspects: int = 0
    astray: int = 0
    note: str = ""
    skipped: bool = False
    faults: int = 0

    @property
    def held(self) -> bool:
        """All was there; what could not be asked does not count as there."""
        return not self.faults

    @property
    def counted(self) -> str:
        """For people: how many of how many, or the faults where nothing is expected."""
        return f"{self.found:,} of {self.expected:,}" if self.expected else f"{self.faults:,} faults"

    def blame(self, event_ids: Iterable[str]) -> None:
        """Add events, each a fault."""
        for event_id in event_ids:
            self.faults += 1
            if len(self.event_ids) < TOLD:
                self.event_ids.append(event_id)

    @property
    def more_suspects(self) -> int:
        """How many a text that tells `TOLD` of them leaves out."""
        return max(0, self.suspects - TOLD)
