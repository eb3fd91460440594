"""The C library's heap, told to give back what it would keep; Python takes every block over 512 bytes from it.

glibc maps a block of its own for each large request, and gives it back at once; but by each one that is freed it learns
to keep blocks of that size in the heap, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). There the tables of the window of
repeats, which are made anew now and then, left holes that nothing else filled: the daemon grew by some megabytes each
time. Told a threshold, glibc does not learn.

And it gives each thread a heap of its own (M_ARENA_MAX), with holes of its own: what the journal's thread takes is
freed by the event loop's. There is one lock to take for all of them then, which is no matter beside Python's.

What a burst has left free in it goes back, and nothing less: pages of which a little is free are wanted again within a
second, and each time by other blocks, so that giving them back makes the process grow, not shrink.
"""

import ctypes
from typing import Final

from .c_library import c_library

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 512 * 1024  # bytes: above a batch's body and what a flush encodes at once, below those tables
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 1  # one that a thread has already stays


# Bytes free in the heap from which on its free pages go back: with 200 students 3 to 6 MB of it are free at any time.
_MUCH: Final = 12 * 2**20


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3), since glibc 2.33: sizes in bytes."""

    _fields_ = [
        *((f"before_{place}", ctypes.c_size_t) for place in range(8)),
        ("fordblks", ctypes.c_size_t),  # free, whether given back or not
        ("keepcost", ctypes.c_size_t),
    ]


def give_back_free(much: int = _MUCH) -> bool:
    """Give free pages within the heap back to the system, where ``much`` is free, in bytes; False: nothing was given.

    Some 0.3 ms for a heap of 25 MB, once 5, in which nobody else takes from it.
    """
    try:
        mallinfo, trim = c_library().mallinfo2, c_library().malloc_trim
    except (OSError, AttributeError):
        return False
    mallinfo.restype = _Mallinfo2
    # What was given back counts as free until it is touched again.
    return bool(mallinfo().fordblks >= much and trim(0))


def keep_small() -> bool:
    """For the whole process, from now on; False: this system's allocator does not have it."""
    try:
        mallopt = c_library().mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, _ARENAS))
