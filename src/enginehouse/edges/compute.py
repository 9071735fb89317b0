"""Measure how fast this CPU multiplies matrices, the limit of prefill, with the engine's own code.

`measure_compute` runs this module in a process of its own: native code that the CPU cannot run
ends that process, not ours.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import time

ROWS = 2048
COLUMNS = 256
PASSES = 5
LIMIT_S = 20.0
GRAPH_BYTES = 64 << 20
F32, Q8_0 = 0, 8
"""Numbers of ggml's tensor types (ggml.h)."""


def measure_compute(threads: int) -> float | None:
    """Return operations/s of a product of Q8_0 weights with 256 columns: the best of 5 passes.

    The product is llama.cpp's (the `xllamacpp` wheel's, without repacked weights), so it uses the
    instruction sets that prefill uses. None where the wheel is not installed or cannot run here.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "enginehouse.edges.compute", str(threads)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        return float(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def multiply(threads: int) -> float:
    """Measure in this process; raises OSError or AttributeError without a fitting library."""
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    if found is None or found.origin is None:
        raise OSError("the xllamacpp wheel is not installed")
    ggml = ctypes.CDLL(found.origin)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph"):
        getattr(ggml, name).restype = pointer
    ggml.ggml_get_data.restype, ggml.ggml_get_data.argtypes = pointer, [pointer]
    ggml.ggml_nbytes.restype, ggml.ggml_nbytes.argtypes = ctypes.c_size_t, [pointer]
    ggml.ggml_init.argtypes = [_InitParams]
    ggml.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, size, size]
    ggml.ggml_mul_mat.argtypes = [pointer, pointer, pointer]
    ggml.ggml_new_graph.argtypes = [pointer]
    ggml.ggml_build_forward_expand.argtypes = [pointer, pointer]
    ggml.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    context = ggml.ggml_init(_InitParams(GRAPH_BYTES, None, False))
    weights = ggml.ggml_new_tensor_2d(context, Q8_0, ROWS, ROWS)
    batch = ggml.ggml_new_tensor_2d(context, F32, ROWS, COLUMNS)
    for tensor in (weights, batch):
        ctypes.memset(ggml.ggml_get_data(tensor), 0, ggml.ggml_nbytes(tensor))
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(context, weights, batch))
    best = 0.0
    for _ in range(PASSES):
        began = time.perf_counter()
        ggml.ggml_graph_compute_with_ctx(context, graph, threads)
        best = max(best, 2.0 * ROWS * ROWS * COLUMNS / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    sys.stdout.write(str(multiply(int(sys.argv[1]))))
