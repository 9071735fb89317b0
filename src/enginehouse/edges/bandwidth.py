"""Measure the memory's read bandwidth, the limit of decode."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

BUFFER_BYTES = 256 << 20
PASSES = 5


def measure_memory_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return read bandwidth in bytes/s: the best of 5 passes of all threads together.

    Each thread lets libc's `memchr` look for a byte that is not there: a vectorised loop that only
    reads, as decode does, and ctypes releases the GIL meanwhile. The best pass, since everything
    that disturbs a pass makes it slower.
    """
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    buffers = [mmap.mmap(-1, buffer_bytes) for _ in range(threads)]
    views = [ctypes.c_char.from_buffer(buffer) for buffer in buffers]
    addresses = [ctypes.addressof(view) for view in views]
    for address in addresses:
        libc.memset(address, 1, buffer_bytes)
    best = 0.0
    for _ in range(PASSES):
        readers = [
            threading.Thread(target=libc.memchr, args=(address, 0, buffer_bytes))
            for address in addresses
        ]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * buffer_bytes / (time.perf_counter() - began))
    del views
    for buffer in buffers:
        buffer.close()
    return best
