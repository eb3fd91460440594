"""The C library's heap, told to give back what it would keep; Python takes every block over 512 bytes from it.

glibc maps a block of its own for each large request, and gives it back at once; but by each one that is freed it learns
to keep blocks of that size in the heap, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). There the tables of the window of
repeats, which are made anew now and then, left holes that nothing else filled: the daemon grew by some megabytes each
time. Told a threshold, glibc does not learn.

And it gives each thread a heap of its own (M_ARENA_MAX), with holes of its own: what the journal's thread takes is
freed by the event loop's. There is one lock to take for all of them then, which is no matter beside Python's.
"""

from typing import Final

from .c_library import c_library

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 512 * 1024  # bytes: above a batch's body and what a flush encodes at once, below those tables
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 1  # one that a thread has already stays


def give_back_free() -> bool:
    """Give free pages within the heap back to the system; False: this allocator does not do that.

    Some 0.3 ms for a heap of 25 MB, once 5, in which nobody else takes from it.
    """
    try:
        return bool(c_library().malloc_trim(0))
    except (OSError, AttributeError):
        return False


def keep_small() -> bool:
    """For the whole process, from now on; False: this system's allocator does not have it."""
    try:
        mallopt = c_library().mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, _ARENAS))
