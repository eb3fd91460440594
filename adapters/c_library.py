"""The C library that this process runs on."""

import ctypes
from functools import cache


@cache
def c_library() -> ctypes.CDLL:
    """Loaded once: each loading leaves a cycle of types, some kilobytes that only the cyclic collector would find.

    Raises OSError where there is none to be had.
    """
    return ctypes.CDLL(None, use_errno=True)
