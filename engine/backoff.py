"""Pauses between tries."""

import random
from typing import Final

# A pause is shortened by chance to no less than this part: what failed together does not come back together.
_JITTER: Final = 0.5


class Backoff:
    """Pauses that double from ``first_s`` up to ``last_s`` (seconds), each shortened by chance."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._longest_s = first_s  # of the next pause

    def pause_s(self) -> float:
        """How long to wait before the next try, in seconds."""
        longest_s = self._longest_s
        self._longest_s = min(2 * longest_s, self._last_s)
        return longest_s * random.uniform(_JITTER, 1)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """A try went well: the next pause is a first one."""
        self._longest_s = self._first_s
