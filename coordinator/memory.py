"""How the process treats memory that it has freed. It knows the C library's allocator and nothing else.

Components pass through the coordinator in buffers of about a megabyte. As it comes, glibc gives each freed one back to
the kernel, and the next costs 256 page faults: more than hashing the megabyte. Keeping a bounded amount for the next
buffer halves the CPU time of a round.
"""

import ctypes

KEPT_BYTES = 64 * 1024 * 1024
"""Most freed memory at the end of the heap that is kept."""

_LARGEST_KEPT = 16 * 1024 * 1024
"""Larger buffers still come from the kernel and go back to it."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, up to `KEPT_BYTES`; False where the C library has no such setting (not glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, KEPT_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
