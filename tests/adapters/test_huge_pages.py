"""The heap on huge pages."""

import subprocess
import sys
from pathlib import Path

from adapters.huge_pages import HUGE_PAGE, heap_pages, tend
from tests.unable import unable

MAPS = """\
00400000-00a00000 r-xp 00000000 fe:00 1234 /usr/bin/python3
00a00000-01000000 rw-p 00600000 fe:00 1234 /usr/bin/python3
01100000-01700000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000801000 rw-p 00000000 00:00 0
7f0000a00000-7f0000e00000 rw-p 00000000 00:00 0
7f0000e00000-7f0000f00000 r--p 00000000 00:00 0
7f0001000000-7f0001400000 rw-s 00000000 00:01 55 /dev/shm/x
7f0001500000-7f0001700000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""

GROW = """
import sys, time
from pathlib import Path
from adapters.huge_pages import tend
if sys.argv[2] == "small blocks":
    held = [(str(number), number + 10**6) for number in range(400_000)]
else:
    held = [b"1" * 8000 for _ in range(8000)]
    last = bytes(1000)  # the heap stays as long as it was
    if sys.argv[2] == "freed":
        del held
began, worked = time.perf_counter(), time.process_time()
print(tend(int(sys.argv[1])))
print((time.process_time() - worked) / (time.perf_counter() - began))
print(Path("/proc/self/smaps_rollup").read_text())
"""


def test_whole_pages_of_the_heap_alone():
    """No file, nothing shared, no stack, and no part of a page."""
    assert list(heap_pages(MAPS.splitlines())) == [
        0x01200000, 0x01400000, 0x7F0000A00000, 0x7F0000C00000,
    ]  # fmt: skip


def grown(large, of="small blocks"):
    """The share of its time in which a process with a heap of 60 MB worked on it, and bytes of it on huge pages then."""
    done = subprocess.run([sys.executable, "-c", GROW, str(large), of], capture_output=True, text=True, check=True)
    supported, share, *rollup = done.stdout.splitlines()
    assert supported == "True"
    (huge,) = [int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages:")]
    return float(share), huge * 1024


def test_a_heap_that_has_grown_is_on_huge_pages_after_a_while_of_little_work():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        unable("this kernel has no transparent huge pages")
    share, huge = grown(16 * HUGE_PAGE)
    assert share < 0.3  # of the time: whoever asks for memory waits while a page is moved
    assert huge >= 8 * HUGE_PAGE  # some 60 MB were made


def test_a_heap_that_was_large_does_not_go_there():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        unable("this kernel has no transparent huge pages")
    _, huge = grown(16 * HUGE_PAGE, "large blocks")
    assert huge >= 8 * HUGE_PAGE
    _, huge = grown(16 * HUGE_PAGE, "freed")
    assert huge < HUGE_PAGE


def test_a_small_heap_stays_on_small_pages():
    _, huge = grown(200 * HUGE_PAGE)
    assert huge < HUGE_PAGE


def test_where_there_is_no_proc_it_says_so(monkeypatch):
    monkeypatch.setattr("adapters.huge_pages._MAPS", Path("/nowhere/maps"))
    assert not tend()
