"""A large heap on huge pages, where Linux gives them to who asks.

With thousands of live students an event touches memory that was not touched for long, and finding its page costs as
much as fetching it: with 20,000 of them an event cost a sixth less on huge pages (docs/performance.md). Python's
allocator does not ask for any, so this asks for what the heap has become, now and then. With hundreds it gains nothing,
and a huge page keeps what lies between its blocks.
"""

import ctypes
import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import structlog
import trio

from .c_library import c_library
from .glibc_heap import free_bytes

HUGE_PAGE: Final = 2 * 1024 * 1024  # bytes, on x86-64 and on arm64 with pages of 4 KiB
# "Collapse this into a huge page, now" (madvise(2), since Linux 6.1).
_MADV_COLLAPSE: Final = 25
# Seconds between two looks: a class that comes in is on huge pages before it has opened its notebooks.
_PERIOD_S: Final = 10.0
# Parts of the time that the heap is left alone, to one of CPU time in which it is moved. A page takes 0.5 to 6 ms,
# and who asks for memory waits for it: in a row, they held the event loop up for 76 ms (docs/performance.md).
_REST: Final = 9.0
# Bytes of heap from which on it counts as large: some thousand students, beside the window of repeats.
_LARGE: Final = 160 * 2**20
_MAPS: Final = Path("/proc/self/maps")

log = structlog.get_logger("memory")


class HugePages:
    """Looks at the heap while it runs; where the system has none of them it says so once and returns."""

    async def run(self) -> None:
        """Until cancelled."""
        # A look at a grown heap takes seconds, most of them rests; nobody waits for that at the end.
        while await trio.to_thread.run_sync(tend, abandon_on_cancel=True):
            await trio.sleep(_PERIOD_S)
        log.info("no huge pages on this system: thousands of live students cost more CPU an event")


def tend(large: int = _LARGE) -> bool:
    """Have a heap of which ``large`` bytes or more are in use on huge pages; False: there are none on this system."""
    try:
        with _MAPS.open(errors="replace") as maps:  # names of mapped files may be any bytes
            pages = list(heap_pages(maps))
    except OSError:
        return False
    span = len(pages) * HUGE_PAGE
    # A heap that was large is as long as before, with little in it.
    if span < large or span - free_bytes() < large:
        return True
    return collapse(pages)


def collapse(pages: Iterable[int]) -> bool:
    """Ask for these, by address; False: this system does not do that. What cannot be had now is asked for again."""
    try:
        madvise = c_library().madvise
    except (OSError, AttributeError):
        return False
    for page in pages:
        began = time.thread_time()
        failed = madvise(ctypes.c_void_p(page), ctypes.c_size_t(HUGE_PAGE), _MADV_COLLAPSE)
        if failed and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            return False
        time.sleep(_REST * (time.thread_time() - began))
    return True


def heap_pages(maps: Iterable[str]) -> Iterator[int]:
    """Addresses of whole huge pages in anonymous memory; ``maps`` are the lines of ``/proc/self/maps``, proc(5)."""
    guard = 0  # where the last mapping without any right ended
    for line in maps:
        span, rights, _, _, inode, *name = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if rights.startswith("---"):
            guard = end
        # A guard comes before a thread's stack, of which only the top is ever touched.
        elif rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and start != guard:
            yield from range(-(-start // HUGE_PAGE) * HUGE_PAGE, end - HUGE_PAGE + 1, HUGE_PAGE)
