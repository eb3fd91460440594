"""The window in which a repeat of an event is known: 64-bit keyed digests, bounded by count and by age."""

from array import array
from collections import deque
from hashlib import blake2b
from typing import Final

import msgspec

from engine.mapped_queue import MappedQueue

DIGEST_BYTES: Final = 8
DEDUPE_PARTS: Final = 8
# A part is copied when this share of its members came since the last time: of the places of a copy at most 3/5 are used
# before CPython takes more (Objects/setobject.c), which is 6/5 of its members. Small ones are not worth it.
_COPIED_AFTER: Final = 1 / 6
_FEW: Final = 500
# Events past the window's age that one commit lets go of, beside twice as many as it brings. In ms, that is 2.
_DROPPED_AT_ONCE: Final = 10_000
# Of the window: events that were received nearer than this leave it together, with the youngest of them.
_SAME_AGE: Final = 1 / 1000
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
    """Digests of the events of the last commits. Both bounds hold: the oldest events leave first.

    Some 90 bytes an event. A set keeps the places of those that left it, and when they are too many takes twice or four
    times the room; so each is copied before that, one of several parts at a time: that neither holds the event loop up
    nor takes the memory of the whole window twice, and a full window stays as large as it is.
    """

    def __init__(self, *, max_events: int, window_ms: int) -> None:
        self._max_events = max_events
        self._window_ms = window_ms
        # To look into, at `digest % DEDUPE_PARTS`, where calling `in` would cost too much; `add` alone changes it.
        self.parts: Final[list[set[int]]] = [set() for _ in range(DEDUPE_PARTS)]
        self._added = [0] * DEDUPE_PARTS  # to each since it was copied
        self._digests = MappedQueue()  # oldest first
        self._ages: deque[_Age] = deque()  # of all of them, oldest first

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, digest: int) -> bool:
        return digest in self.parts[digest % DEDUPE_PARTS]

    def add(self, received_at: int, digests: "array[int]") -> None:
        """Note the events of one commit (received at ``received_at`` ms), and let go of what is too old or too many."""
        if digests:
            new, parts, added = digests.tolist(), self.parts, self._added
            for digest in new:
                part = digest % DEDUPE_PARTS
                parts[part].add(digest)
                added[part] += 1
            self._digests.extend(digests)
            self._tidy()
            # Commits of one moment share an age, so that one event a commit costs no more than many.
            if self._ages and received_at - self._ages[-1].first < self._window_ms * _SAME_AGE:
                self._ages[-1].last = max(received_at, self._ages[-1].last)  # a clock may be set back
                self._ages[-1].count += len(new)
            else:
                self._ages.append(_Age(received_at, received_at, len(new)))
        self._drop(len(self._digests) - self._max_events)
        # After a quiet hour all of them are too old at once: to know them a little longer harms nobody, a stall does.
        left = _DROPPED_AT_ONCE + 2 * len(digests)
        while left and self._ages and self._ages[0].last < received_at - self._window_ms:
            left -= self._drop(min(left, self._ages[0].count))

    def _tidy(self) -> None:
        """Copy a part to which many came: CPython gives the copy more than twice as many places as it has members."""
        for part, count in enumerate(self._added):
            if count > _COPIED_AFTER * len(self.parts[part]) and count > _FEW:
                self.parts[part] = set(self.parts[part])
                self._added[part] = 0
                return  # one is enough for now

    def _drop(self, count: int) -> int:
        """Let go of the ``count`` oldest; returns how many these are."""
        left = count
        while left > 0:
            taken = self._digests.take(left)
            for digest in taken:
                self.parts[digest % DEDUPE_PARTS].discard(digest)
            left -= len(taken)
        left = count
        while left > 0:
            dropped = min(left, self._ages[0].count)
            self._ages[0].count -= dropped
            left -= dropped
            if not self._ages[0].count:
                self._ages.popleft()
        return count


class _Age(msgspec.Struct, gc=False):
    """When a run of events was received, in ms, and how many they are."""

    first: int
    last: int
    count: int
