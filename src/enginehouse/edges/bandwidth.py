"""Measure the memory's read bandwidth, the limit of decode."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

BUFFER_BYTES = 256 << 20
PASSES = 8


def measure_memory_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return read bandwidth in bytes/s: the best of 16 passes of all threads together.

    Each thread lets libc's `memcmp` compare the two halves of its buffer, which are equal, or its
    `memchr` look for a byte that is not there: vectorised loops that only read, as decode does, and
    ctypes releases the GIL meanwhile. One core gets more out of two streams than out of one, where
    the C library has a vectorised `memcmp`. The best pass, since everything that disturbs a pass
    makes it slower.
    """
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    half = buffer_bytes // 2
    buffers = [mmap.mmap(-1, buffer_bytes) for _ in range(threads)]
    views = [ctypes.c_char.from_buffer(buffer) for buffer in buffers]
    addresses = [ctypes.addressof(view) for view in views]
    for address in addresses:
        libc.memset(address, 1, buffer_bytes)
    readers: tuple[tuple[Callable[..., Any], list[tuple[int, ...]]], ...] = (
        (libc.memcmp, [(address, address + half, half) for address in addresses]),
        (libc.memchr, [(address, 0, buffer_bytes) for address in addresses]),
    )
    shortest_s = min(_pass_s(*reader) for reader in readers for _ in range(PASSES))
    del views
    for buffer in buffers:
        buffer.close()
    return threads * buffer_bytes / shortest_s


def _pass_s(function: Callable[..., Any], arguments: Sequence[tuple[int, ...]]) -> float:
    """Return the seconds that one thread for each set of arguments takes, all at once."""
    workers = [threading.Thread(target=function, args=given) for given in arguments]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began
