"""The C library's heap stays small."""

import platform
import subprocess
import sys

import pytest

from adapters.glibc_heap import give_back_free, keep_small
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

# A block that stays is the last of many that were freed: only the heap's end goes back by itself.
HOLES = """
import sys
from adapters.glibc_heap import give_back_free

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [b"1" * 8000 for _ in range(2000)]
last = bytes(1000)
before = resident()
del blocks
if sys.argv[1] == "told":
    assert give_back_free()
elif sys.argv[1] == "told of more":
    assert not give_back_free(24 * 2**20)
print(before - resident())
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


def said(program, how):
    return subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout


def test_freed_blocks_leave_no_holes_in_the_heap():
    assert int(said(GROW, "untold")) > 8 * 2**20  # of 16
    assert int(said(GROW, "told")) < 2**20


def test_what_is_free_within_the_heap_goes_back_when_it_is_told():
    assert int(said(HOLES, "untold")) < 2**20
    assert int(said(HOLES, "told")) > 12 * 2**20  # of 16


def test_what_little_is_free_stays_where_it_is():
    assert int(said(HOLES, "told of more")) < 2**20


def test_threads_have_one_heap():
    assert said(THREADS, "untold").count("<heap nr=") > 1
    assert said(THREADS, "told").count("<heap nr=") == 1


def test_where_there_is_no_such_call_it_says_so(monkeypatch):
    monkeypatch.setattr("adapters.glibc_heap.c_library", object)
    assert not keep_small()
    assert not give_back_free()
