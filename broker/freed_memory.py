"""Freed memory of this process: some is kept for the next batch, the rest goes back to the system (decision 0002).

All of it speaks to glibc; elsewhere nothing is done, and the methods say so.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
FREED_MEMORY_KEPT_BYTES = 64 * 1024 * 1024
LARGEST_FROM_HEAP_BYTES = 32 * 1024 * 1024
ARENAS_MAX = 2  # the owner thread's, and one for all others: what one thread's arena has free no other can use
STATM = Path("/proc/self/statm")


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Heap  # glibc 2.33
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError):
        return None
    return library


def keep_freed_memory() -> bool:
    """Have glibc keep up to 64 MiB of freed heap instead of giving it back at once; False where there is no glibc. Before threads
    are started: each takes an arena with its first allocation.

    Batches of 64 KiB come and go by the thousand: with the default every one of them is paid for in page faults again
    (copy of 64 KiB 51 us against 7 us, AES-256-GCM 65 us against 30 us on the machine of bench/README.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(M_TRIM_THRESHOLD, FREED_MEMORY_KEPT_BYTES) == 1
    from_heap = mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP_BYTES) == 1
    return bool(mallopt(M_ARENA_MAX, ARENAS_MAX) == 1 and kept and from_heap)


def resident_bytes() -> int:
    """Memory that the process has; 0 where the system does not say."""
    try:
        return int(STATM.read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


class FreedMemory:
    """Gives back what a peak left. A peak (200 connections that each send 128 KiB at once) is over in a second; its memory stays,
    as one small piece that lives on at its end keeps all below it.

    `bytes_max`: so much freed memory may stay. Blocking, some milliseconds when there is much to give back.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.times_given_back = 0
        self._libc = _glibc()
        self._resident_after = 0  # the last time

    def look(self) -> bool:
        """Whether memory was given back. What the heap has free is counted by glibc whether its pages are there or not, so it is
        only tried when the process has grown by as much since the last time."""
        if self._libc is None:
            return False
        resident = resident_bytes()
        self._resident_after = min(self._resident_after, resident)
        if resident - self._resident_after < self.bytes_max or self._libc.mallinfo2().fordblks < self.bytes_max:
            return False
        self._libc.malloc_trim(0)
        self._resident_after = resident_bytes()
        self.times_given_back += 1
        return True
