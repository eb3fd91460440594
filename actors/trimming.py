"""How far every store is, and so how much the journal can let go of."""

from engine.ports import Journal


class Trimming:
    """One a daemon: each writer reports to it, and the slowest holds the journal back."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._offsets: dict[str, int] = {}

    def expect(self, *names: str) -> None:
        """Somebody will report under these names; what was trimmed before, these have for sure."""
        self._offsets |= dict.fromkeys(names, self._journal.trimmed_to)

    async def report(self, offsets: dict[str, int]) -> None:
        """These are committed. The journal is trimmed to the lowest of all that are expected."""
        self._offsets |= offsets
        await self._journal.trim(offsets, min(self._offsets.values()))
