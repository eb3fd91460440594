"""The window in which a repeat of an event is known: 64-bit keyed digests, bounded by count and by age."""

from array import array
from collections import deque
from hashlib import blake2b
from typing import Final

DIGEST_BYTES: Final = 8
_from_bytes: Final = int.from_bytes  # looked up once: it runs for every event


class Digester:
    """64 bits of keyed BLAKE2b over (class, user, event_id). ``key`` is the journal's: nobody can aim at a collision.

    With 500,000 in the window, the chance that a new event is taken for a repeat is below 3e-14.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._keyed = blake2b(digest_size=DIGEST_BYTES, key=key)  # its copy has the key's block behind it

    def __call__(self, class_id: str, user_id: str, event_id: str) -> int:
        """The digest, as an unsigned integer."""
        digest = self._keyed.copy()
        digest.update(f"{class_id}\0{user_id}\0{event_id}".encode())
        return _from_bytes(digest.digest(), "little")


class DedupeWindow:
    """Digests of the events of the last commits. Both bounds hold: the oldest commits leave first."""

    def __init__(self, *, max_events: int, window_ms: int) -> None:
        self._max_events = max_events
        self._window_ms = window_ms
        self.known: set[int] = set()  # to look into; `add` alone changes it
        self._commits: deque[tuple[int, array[int]]] = deque()

    def __len__(self) -> int:
        return len(self.known)

    def add(self, received_at: int, digests: "array[int]") -> None:
        """Note the events of one commit (received at ``received_at`` ms), and let go of what is too old or too many."""
        if digests:
            self.known.update(digests)
            self._commits.append((received_at, digests))
        while self._commits and (
            len(self.known) > self._max_events or self._commits[0][0] < received_at - self._window_ms
        ):
            self.known.difference_update(self._commits.popleft()[1])
