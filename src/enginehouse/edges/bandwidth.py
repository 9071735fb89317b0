"""Measure the memory's read bandwidth, the limit of decode."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

from enginehouse.edges.probes import read_available_bytes

BUFFER_BYTES = 256 << 20
PASSES = 5
SHARE_OF_AVAILABLE = 0.1


def measure_memory_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return read bandwidth in bytes/s: the best of 5 passes of all threads together.

    Each thread lets libc's `memchr` look for a byte that is not there: glibc's vectorised search
    only reads, as decode does, and ctypes releases the GIL meanwhile. The best pass, since
    everything that disturbs a pass makes it slower. The buffers are private, touched beforehand,
    and given back; together they take at most a tenth of the available memory, so a machine with
    hardly any left may measure its cache instead.
    """
    threads = max(1, threads)
    size = fitting_buffer_bytes(threads, read_available_bytes(), buffer_bytes)
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    best = 0.0
    buffers = [_private_buffer(size) for _ in range(threads)]
    for _ in range(PASSES):
        readers = [
            threading.Thread(target=libc.memchr, args=(buffer, 0, size)) for buffer in buffers
        ]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * size / (time.perf_counter() - began))
    return best


def fitting_buffer_bytes(threads: int, available_bytes: int, wanted_bytes: int) -> int:
    """Return a buffer's size in whole pages: as wanted, or less where memory is short."""
    share = int(SHARE_OF_AVAILABLE * available_bytes) // threads
    return max(mmap.PAGESIZE, min(wanted_bytes, share) // mmap.PAGESIZE * mmap.PAGESIZE)


def _private_buffer(size: int) -> ctypes.Array[ctypes.c_char]:
    """Return touched memory that is given back when the last reference goes.

    A reader holds one itself: after Ctrl-C no thread reads memory that is gone.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer = (ctypes.c_char * size).from_buffer(pages)
    ctypes.memset(buffer, 1, size)
    return buffer
