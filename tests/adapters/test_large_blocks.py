"""Large blocks go back to the system."""

import platform
import subprocess
import sys

from adapters.large_blocks import give_back
from tests.unable import unable

# glibc learns by the first block that is freed; the others have small ones behind them that stay.
GROW = """
import sys
from adapters.large_blocks import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "told":
    assert give_back()
block = b"1" * 2**21
del block
before = resident()
large = [b"1" * (2**21 - 8192) for _ in range(8)]
small = [bytes(1000) for _ in range(100)]
del large
print(resident() - before)
"""


def growth(how):
    return int(subprocess.run([sys.executable, "-c", GROW, how], capture_output=True, text=True, check=True).stdout)


def test_freed_blocks_leave_no_holes_in_the_heap():
    if platform.libc_ver()[0] != "glibc":
        unable("only glibc learns to keep large blocks")
    assert growth("untold") > 8 * 2**20  # of 16
    assert growth("told") < 2**20


def test_where_there_is_no_such_call_it_says_so(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not give_back()
