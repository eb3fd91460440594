"""The watermark: the highest seq with everything up to it applied, dead-lettered or parked."""

from collections import deque


class Part:
    """Work on a run of seqs that ends at ``last_seq``, shared by ``remaining`` actors."""

    __slots__ = ("_watermark", "last_seq", "remaining")

    def __init__(self, watermark: "Watermark", last_seq: int, remaining: int) -> None:
        self._watermark = watermark
        self.last_seq = last_seq
        self.remaining = remaining

    def done(self) -> None:
        """One of the actors is through with it."""
        self.remaining -= 1
        if not self.remaining:
            self._watermark.advance()


class Watermark:
    """Parts are opened in seq order and finish in any; ``value`` moves when the oldest are finished."""

    def __init__(self) -> None:
        self.value = 0
        self._parts: deque[Part] = deque()

    def open(self, last_seq: int, remaining: int) -> Part:
        """Begin the next part. ``remaining`` is at least 1."""
        part = Part(self, last_seq, remaining)
        self._parts.append(part)
        return part

    def advance(self) -> None:
        """Move past every finished part at the front."""
        while self._parts and not self._parts[0].remaining:
            self.value = self._parts.popleft().last_seq
