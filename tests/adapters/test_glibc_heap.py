"""The C library's heap stays small."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from adapters.glibc_heap import FreePages, give_back_free, keep_small
from tests.unable import unable

# glibc learns by the first block that is freed; the others have small ones behind them that stay.
GROW = """
import sys
from adapters.glibc_heap import keep_small

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "told":
    assert keep_small()
block = b"1" * 2**21
del block
before = resident()
large = [b"1" * (2**21 - 8192) for _ in range(8)]
small = [bytes(1000) for _ in range(100)]
del large
print(resident() - before)
"""

# Bytes are given back as told, in two bursts, each with a block behind it that stays: only the heap's end goes back by
# itself. Said of each: whether pages went back, by how much the process shrank, and what a second look did.
BURSTS = """
import sys
from adapters.glibc_heap import give_back_free

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

stays = [b"1" * 8000 for _ in range(2000)]
for megabytes in map(int, sys.argv[1:]):
    blocks = [b"1" * 8000 for _ in range(megabytes * 128)]
    stays.append(bytes(1000))
    before = resident()
    del blocks
    print(give_back_free(), (before - resident()) / 2**20, give_back_free())
"""

# Most of what a small program's heap has in memory is free, and it is little.
LITTLE = """
from adapters.glibc_heap import _SHARE, _SMAPS, give_back_free, heap_resident, mallinfo

blocks = [b"1" * 8000 for _ in range(768)]
stays = bytes(8100)  # behind them: the end of the heap goes back by itself
del blocks
resident = heap_resident(_SMAPS.open())
print(give_back_free(), resident - mallinfo().uordblks > _SHARE * resident)
"""

# malloc_info(3) says which heaps there are; four threads take something of more than Python's own blocks.
THREADS = """
import ctypes, sys, threading
from adapters.glibc_heap import keep_small

if sys.argv[1] == "told":
    assert keep_small()
everybody = threading.Barrier(5)

def work():
    kept = [b"1" * size for size in range(1000, 20_000, 500)]
    everybody.wait()
    everybody.wait()

for _ in range(4):
    threading.Thread(target=work).start()
everybody.wait()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
everybody.wait()
"""


@pytest.fixture(autouse=True)
def _glibc(request):
    if platform.libc_ver()[0] != "glibc" and "monkeypatch" not in request.fixturenames:
        unable("only glibc's heap is told")


def said(program, *how):
    return subprocess.run([sys.executable, "-c", program, *how], capture_output=True, text=True, check=True).stdout


def test_freed_blocks_leave_no_holes_in_the_heap():
    assert int(said(GROW, "untold")) > 8 * 2**20  # of 16
    assert int(said(GROW, "told")) < 2**20


def bursts(*megabytes):
    lines = said(BURSTS, *map(str, megabytes)).splitlines()
    return [(given == "True", float(shrank), again == "True") for given, shrank, again in map(str.split, lines)]


def test_what_a_burst_left_free_goes_back_once():
    ((first, shrank, again), (second, shrank_again, yet_again)) = bursts(24, 24)
    assert first
    assert second
    assert min(shrank, shrank_again) > 18
    assert not again
    assert not yet_again


def test_what_little_is_free_stays_where_it_is():
    ((given, shrank, _),) = bursts(8)  # of 24: less than what a burst leaves
    assert not given
    assert shrank < 1


def test_what_is_most_of_a_small_heap_stays_too():
    assert said(LITTLE).split() == ["False", "True"]


def test_threads_have_one_heap():
    assert said(THREADS, "untold").count("<heap nr=") > 1
    assert said(THREADS, "told").count("<heap nr=") == 1


def test_where_there_is_no_such_call_it_says_so(monkeypatch):
    monkeypatch.setattr("adapters.glibc_heap.c_library", object)
    assert not keep_small()
    assert give_back_free() is None


async def test_where_the_system_does_not_say_what_is_free_nobody_looks_again(monkeypatch):
    monkeypatch.setattr("adapters.glibc_heap._SMAPS", Path("/nowhere/smaps"))
    with trio.fail_after(10):
        await FreePages().run()
