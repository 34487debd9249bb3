"""Freed memory that the process keeps for its next large array, where the C library can be told so."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# Of glibc's malloc.h; from here on blocks come from the heap, which gives nothing back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


@cache
def keep_memory() -> bool:
    """Tell glibc to keep freed memory; True where it took it. It concerns the whole process, and so only our own.

    By default glibc returns every block above 32 MiB to the kernel, and the next one is filled with zeros again, page
    by page: half of the time of a training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _NEVER)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
