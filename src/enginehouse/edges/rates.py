"""Measure the engine's own matrix products, type by type: what decode and prefill are made of.

`measure_rates` runs this module in a process of its own. The products are llama.cpp's, from the
`xllamacpp` wheel, with weights in the layout that the engine gives them (repacked or not), large
enough not to stay in a cache.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from enginehouse.core.ggml_types import GGML_TYPES

ROW, ROWS, BATCH = 2048, 2048, 256
WEIGHTS_BYTES = 96 << 20
PASSES = 5
LIMIT_S = 120.0
CONTEXT_BYTES = 16 << 20
F32, CPU_DEVICE = 0, 0
REPACKED = " repacked"


def measure_rates(names: Sequence[str], threads: int) -> dict[str, tuple[float, float]]:
    """Return name → (bytes/s of one token's product, operations/s of a batch's product).

    Names are ggml's types, ` repacked` appended for the engine's own layout. Empty where the wheel
    is not installed or cannot run here; a name that it does not know is left out.
    """
    command = [sys.executable, "-m", "enginehouse.edges.rates", str(threads), *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False
        )
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return {name: (float(pair[0]), float(pair[1])) for name, pair in found.items()}


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _load() -> Any:
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    if found is None or found.origin is None:
        raise OSError("the xllamacpp wheel is not installed")
    ggml = ctypes.CDLL(found.origin)
    pointer, size, length = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, size, size]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_nbytes": (length, [pointer]),
        "ggml_backend_init_by_type": (pointer, [ctypes.c_int, ctypes.c_char_p]),
        "ggml_backend_get_device": (pointer, [pointer]),
        "ggml_backend_dev_backend_reg": (pointer, [pointer]),
        "ggml_backend_reg_get_proc_address": (pointer, [pointer, ctypes.c_char_p]),
        "ggml_backend_get_default_buffer_type": (pointer, [pointer]),
        "ggml_backend_buft_name": (ctypes.c_char_p, [pointer]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
        "ggml_backend_buffer_free": (None, [pointer]),
        "ggml_backend_tensor_set": (None, [pointer, ctypes.c_char_p, length, length]),
        "ggml_backend_graph_compute": (ctypes.c_int, [pointer, pointer]),
    }  # fmt: skip
    for name, (result, arguments) in signatures.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


class _Cpu:
    """The engine's CPU backend with a number of threads, and its buffer types by name."""

    def __init__(self, threads: int) -> None:
        self.ggml = _load()
        self.backend = self.ggml.ggml_backend_init_by_type(CPU_DEVICE, None)
        device = self.ggml.ggml_backend_get_device(self.backend)
        self._registry = self.ggml.ggml_backend_dev_backend_reg(device)
        set_threads = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(
            self._address(b"ggml_backend_set_n_threads")
        )
        set_threads(self.backend, threads)
        self.plain = self.ggml.ggml_backend_get_default_buffer_type(self.backend)
        self.repacked = self._extra_buffers(device).get(b"CPU_REPACK")

    def _address(self, name: bytes) -> int:
        found = self.ggml.ggml_backend_reg_get_proc_address(self._registry, name)
        if not found:
            raise OSError(f"the engine has no {name.decode()}")
        return int(found)

    def _extra_buffers(self, device: int) -> dict[bytes, int]:
        list_buffers = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(
            self._address(b"ggml_backend_dev_get_extra_bufts")
        )
        found: dict[bytes, int] = {}
        for pointer in list_buffers(device):
            if not pointer:
                break
            found[self.ggml.ggml_backend_buft_name(pointer)] = pointer
        return found

    def time_product(self, kind: int, is_repacked: bool, count: int, columns: int) -> float:
        """Return the seconds of `count` products of ROWS × ROW weights with some columns."""
        ggml = self.ggml
        place = self.repacked if is_repacked else self.plain
        if place is None:
            raise OSError("the engine does not repack here")
        held = ggml.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        weights = [ggml.ggml_new_tensor_2d(held, kind, ROW, ROWS) for _ in range(count)]
        weight_buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(held, place)
        zeros = bytes(ggml.ggml_nbytes(weights[0]))
        for tensor in weights:
            ggml.ggml_backend_tensor_set(tensor, zeros, 0, len(zeros))
        steps = ggml.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        given = ggml.ggml_new_tensor_2d(steps, F32, ROW, columns)
        graph = ggml.ggml_new_graph(steps)
        for tensor in weights:
            ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(steps, tensor, given))
        step_buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(steps, self.plain)
        ones = bytes(ggml.ggml_nbytes(given))
        ggml.ggml_backend_tensor_set(given, ones, 0, len(ones))
        best = float("inf")
        for _ in range(PASSES):
            began = time.perf_counter()
            ggml.ggml_backend_graph_compute(self.backend, graph)
            best = min(best, time.perf_counter() - began)
        for buffer in (weight_buffer, step_buffer):
            ggml.ggml_backend_buffer_free(buffer)
        for context in (held, steps):
            ggml.ggml_free(context)
        return best


def rates_here(names: Sequence[str], threads: int) -> dict[str, tuple[float, float]]:
    """Measure in this process; raises OSError or AttributeError without a fitting library."""
    cpu = _Cpu(threads)
    numbers = {name: (number, block, size) for number, (name, block, size) in GGML_TYPES.items()}
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        base = name.removesuffix(REPACKED)
        if base not in numbers:
            continue
        number, block, size = numbers[base]
        one = ROW * ROWS // block * size
        count = max(WEIGHTS_BYTES // one, 1)
        is_repacked = name != base
        decode = count * one / cpu.time_product(number, is_repacked, count, 1)
        prefill = 2.0 * ROW * ROWS * BATCH / cpu.time_product(number, is_repacked, 1, BATCH)
        found[name] = (decode, prefill)
    return found


if __name__ == "__main__":
    json.dump(rates_here(sys.argv[2:], int(sys.argv[1])), sys.stdout)
