"""Numbers that wait for long, first in, first out, beside the heap.

The blocks of a deque are small, and as old as what is in them. Between what is taken and let go all the time they keep
holes apart that could be one. While the window of repeats was a deque, the holes of a heap under steady load grew by a
megabyte in nine minutes (docs/performance.md).
"""

from array import array
from collections import deque
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

_BLOCK: Final = 65_536  # numbers; of 512 KiB those pages are taken that were written to


class MappedQueue:
    """Unsigned 64-bit integers, in blocks that are mapped one by one and unmapped when they are empty."""

    __slots__ = ("_blocks", "_first", "_length")

    def __init__(self) -> None:
        self._blocks: deque[memoryview[int]] = deque()
        self._first = 0  # the oldest one's place in the first block
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, numbers: "array[int]") -> None:
        """Put these, an array of type ``Q``, behind the others. Raises OSError when no memory can be mapped."""
        assert numbers.typecode == "Q", numbers.typecode
        added = 0
        while added < len(numbers):
            place = (self._first + self._length) % _BLOCK
            some = numbers[added : added + _BLOCK - place]
            if not place:  # the last block is full, or there is none
                self._blocks.append(memoryview(mmap(-1, 8 * _BLOCK, MAP_PRIVATE | MAP_ANONYMOUS)).cast("Q"))
            self._blocks[-1][place : place + len(some)] = some
            self._length += len(some)
            added += len(some)

    def take(self, most: int) -> list[int]:
        """Some of the oldest, at most so many; none only where ``most`` is 0 or none is left."""
        count = min(most, self._length, _BLOCK - self._first)
        if not count:
            return []
        taken = self._blocks[0][self._first : self._first + count].tolist()
        self._first += count
        self._length -= count
        if self._first == _BLOCK:
            self._first = 0
            self._blocks.popleft()
        return taken
