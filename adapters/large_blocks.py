"""Large blocks of memory go back to the system when they are freed.

glibc maps a block of its own for each large request, and gives it back at once; but by each one that is freed it learns
to keep blocks of that size in the heap, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). There the tables of the window of
repeats, which are made anew now and then, left holes that nothing else filled: the daemon grew by some megabytes each
time. Told a threshold, glibc does not learn.
"""

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 512 * 1024  # bytes: above a batch's body and what a flush encodes at once, below those tables


def give_back() -> bool:
    """For the whole process, from now on; False: this system's allocator does not have it."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD))
    except (OSError, AttributeError):
        return False
