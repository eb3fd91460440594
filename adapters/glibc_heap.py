"""The C library's heap, told to give back what it would keep; Python takes every block over 512 bytes from it.

glibc maps a block of its own for each large request, and gives it back at once; but by each one that is freed it learns
to keep blocks of that size in the heap, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). There the tables of the window of
repeats, which are made anew now and then, left holes that nothing else filled: the daemon grew by some megabytes each
time. Told a threshold, glibc does not learn.

And it gives each thread a heap of its own (M_ARENA_MAX), with holes of its own: what the journal's thread takes is
freed by the event loop's. There is one lock to take for all of them then, which is no matter beside Python's.

What a burst has left free goes back, and nothing less: what little is free at any time is wanted again within a second,
each time by other blocks. Given back every ten seconds it made the daemon grow (docs/performance.md).
"""

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trio

from .c_library import c_library

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 512 * 1024  # bytes: above a batch's body and what a flush encodes at once, below those tables
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 1  # one that a thread has already stays
# Bytes that are free and yet in memory, from which on they go back; and their share of the heap, as a large one on huge
# pages keeps its holes. With 200 students 3 to 6 MB of 22 are free at any time.
_MUCH: Final = 8 * 2**20
_SHARE: Final = 0.5
_SMAPS: Final = Path("/proc/self/smaps")
# Seconds between two looks. glibc's own takes 0.2 ms in a heap of 25 MB and 9 ms in one of 150 MB, giving back half
# again as long, and who asks for memory meanwhile waits for it. Reading the maps takes a millisecond more.
_PERIOD_S: Final = 60.0


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3), since glibc 2.33: sizes in bytes."""

    _fields_ = [
        *((f"other_{place}", ctypes.c_size_t) for place in range(7)),
        ("uordblks", ctypes.c_size_t),  # in use
        ("fordblks", ctypes.c_size_t),  # free, whether it is in memory or not
        ("keepcost", ctypes.c_size_t),
    ]


def keep_small() -> bool:
    """For the whole process, from now on; False: this system's allocator does not have it."""
    try:
        mallopt = c_library().mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, _ARENAS))


class FreePages:
    """Gives free pages of the heap back to the system, where they are many."""

    async def run(self) -> None:
        """Until cancelled; where the system does not say what is free (glibc before 2.33), it returns."""
        while await trio.to_thread.run_sync(give_back_free, abandon_on_cancel=True) is not None:
            await trio.sleep(_PERIOD_S)


def give_back_free() -> bool | None:
    """Whether free pages were many, and went back; None: this system does not say."""
    try:
        with _SMAPS.open(errors="replace") as smaps:  # names of mapped files may be any bytes
            resident = heap_resident(smaps)
        trim = c_library().malloc_trim
    except (OSError, AttributeError):
        return None
    found = mallinfo()
    if found is None:
        return None
    if resident - found.uordblks < max(_MUCH, _SHARE * resident):
        return False
    trim(0)
    return True


def free_bytes() -> int:
    """What is free in the heap, whether it is in memory or not; 0 where the allocator does not say."""
    found = mallinfo()
    return 0 if found is None else int(found.fordblks)


def mallinfo() -> _Mallinfo2 | None:
    """What glibc says of its heap; None: this allocator does not."""
    try:
        function = c_library().mallinfo2
    except (OSError, AttributeError):
        return None
    function.restype = _Mallinfo2
    found: _Mallinfo2 = function()
    return found


def heap_resident(smaps: Iterable[str]) -> int:
    """Bytes of the heap that are in memory; ``smaps`` are the lines of ``/proc/self/smaps``, proc(5)."""
    resident, inside = 0, False
    for line in smaps:
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the head of a mapping
            was_inside, inside = inside, rest.endswith("[heap]\n")
            if was_inside and not inside:
                break  # parts of the heap lie side by side, and what comes after it is most of the file
        elif inside and name == "Rss:":
            resident += 1024 * int(rest.split()[0])
    return resident
