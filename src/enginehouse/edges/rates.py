"""Measure the engine's own operations: what decode and prefill are made of.

`measure_rates` runs this module in a process of its own. The operations are llama.cpp's, from the
`xllamacpp` wheel: products with weights in the layout that the engine gives them (repacked or not,
routed to experts or not), large enough not to stay in a cache; attention over a cache of its own;
and a chain of small operations, which costs little but the threads' waiting for each other.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from enginehouse.core.estimate_speed import (
    ATTENTION,
    CACHED,
    EXPERTS,
    PRODUCTS,
    REPACKED,
    SMALL_OPERATIONS,
)
from enginehouse.core.ggml_types import GGML_TYPES

ROW, BATCH = 2048, 256
WEIGHTS_BYTES = 96 << 20
PASSES = 15
"""Of which the mean counts: a long run sees all of a shared machine, not its best or usual."""
LIMIT_S = 120.0
CONTEXT_BYTES = 16 << 20
F32, F16, I32, CPU_DEVICE = 0, 1, 26, 0
COUNT, USED, EXPERT = 8, 2, 1024
"""Experts, how many of them a token is given to, and the rows and columns of one."""
CELLS, CACHES_BYTES = 256, 64 << 20
"""Cells of a cache, and the size of all caches that attention reads in turn."""
CHAIN, SMALL = 1000, 1024
WIDE = 4096
LITTLE, LEAST_S = 256, 1e-7
MOST_NODES = 8192
CACHED_ROWS, TURNS = 1024, 40
"""Rows of the weights that stay in the caches, 1 to 4 MiB, and how often they are multiplied."""
Q8_0 = (8, 32, 34)
"""ggml's number of the type, elements a block, bytes a block."""


def measure_rates(names: Sequence[str], threads: int) -> dict[str, tuple[float, float]]:
    """Return name → (rate of one token, rate of a batch's tokens).

    Names are those of `core.estimate_speed`, which says what a rate counts. Empty where the wheel
    is not installed or cannot run here; a name that is not known is left out.
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


HeadShape = tuple[int, int, int]
"""Heads, heads of keys and values, elements of a head."""


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
        "ggml_new_tensor_3d": (pointer, [pointer, ctypes.c_int, size, size, size]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_mul_mat_id": (pointer, [pointer, pointer, pointer, pointer]),
        "ggml_add": (pointer, [pointer, pointer, pointer]),
        "ggml_mul": (pointer, [pointer, pointer, pointer]),
        "ggml_rms_norm": (pointer, [pointer, pointer, ctypes.c_float]),
        "ggml_swiglu_split": (pointer, [pointer, pointer, pointer]),
        "ggml_permute": (pointer, [pointer] * 2 + [ctypes.c_int] * 4),
        "ggml_flash_attn_ext": (pointer, [pointer] * 5 + [ctypes.c_float] * 3),
        "ggml_new_graph_custom": (pointer, [pointer, length, ctypes.c_bool]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_get_first_tensor": (pointer, [pointer]),
        "ggml_get_next_tensor": (pointer, [pointer, pointer]),
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
        self._values: dict[int, bytes] = {}
        # One thread's processor time is the same on a busy machine; several wait for each other.
        self._clock = time.process_time if threads == 1 else time.perf_counter
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

    def time_product(
        self, kind: int, is_repacked: bool, count: int, columns: int, row: int = ROW
    ) -> float:
        """Return the seconds of `count` products of square weights with some columns."""
        new = self.ggml.ggml_new_tensor_2d

        def build(held: int, steps: int) -> list[int]:
            weights = [new(held, kind, row, row) for _ in range(count)]
            given = new(steps, F32, row, columns)
            return [self.ggml.ggml_mul_mat(steps, tensor, given) for tensor in weights]

        return self._time(build, self._place(is_repacked))

    def time_cached(self, kind: int, is_repacked: bool, turns: int) -> float:
        """Return the shortest seconds of `turns` products of the same weights, which stay near."""

        def build(held: int, steps: int) -> list[int]:
            weights = self.ggml.ggml_new_tensor_2d(held, kind, ROW, CACHED_ROWS)
            given = self.ggml.ggml_new_tensor_2d(steps, F32, ROW, 1)
            return [self.ggml.ggml_mul_mat(steps, weights, given) for _ in range(turns)]

        return self._time(build, self._place(is_repacked), min)

    def time_experts(
        self, kind: int, is_repacked: bool, count: int, used: int, columns: int
    ) -> float:
        """Return the seconds of `count` products that give each column to `used` of the experts."""
        ggml = self.ggml
        routes = [(column + turn) % COUNT for column in range(columns) for turn in range(used)]

        def build(held: int, steps: int) -> list[int]:
            weights = [
                ggml.ggml_new_tensor_3d(held, kind, EXPERT, EXPERT, COUNT) for _ in range(count)
            ]
            given = ggml.ggml_new_tensor_3d(steps, F32, EXPERT, 1, columns)
            chosen = ggml.ggml_new_tensor_2d(steps, I32, used, columns)
            self._values[chosen] = bytes((ctypes.c_int32 * len(routes))(*routes))
            return [ggml.ggml_mul_mat_id(steps, tensor, given, chosen) for tensor in weights]

        return self._time(build, self._place(is_repacked))

    def time_attention(self, shape: HeadShape, columns: int, layers: int) -> float:
        """Return the seconds of attentions over one full cache after another.

        A cache has a row of all heads for each cell, as the engine's own has, and was evicted from
        the processor's caches since it was read last, as weights evict it between two tokens.
        """
        ggml = self.ggml
        heads, kv_heads, size = shape

        def build(held: int, steps: int) -> list[int]:
            query = ggml.ggml_new_tensor_3d(steps, F32, size, columns, heads)
            mask = ggml.ggml_new_tensor_2d(steps, F16, CELLS, columns)
            self._values = {query: _pattern("f", size * columns * heads)}
            self._values[mask] = _causal_mask(columns)
            caches = [
                ggml.ggml_new_tensor_3d(held, F16, size, kv_heads, CELLS) for _ in range(2 * layers)
            ]
            self._values |= dict.fromkeys(caches, _pattern("e", size * CELLS * kv_heads))
            views = [ggml.ggml_permute(steps, cache, 0, 2, 1, 3) for cache in caches]
            return [
                ggml.ggml_flash_attn_ext(steps, query, keys, values, mask, size**-0.5, 0.0, 0.0)
                for keys, values in zip(views[::2], views[1::2], strict=True)
            ]

        return self._time(build, self.plain)

    def time_chain(self, width: int, columns: int, count: int) -> float:
        """Return the seconds of `count` × 5 operations on vectors, each on the one before."""
        ggml = self.ggml

        def build(held: int, steps: int) -> list[int]:
            weight = ggml.ggml_new_tensor_2d(held, F32, width, 1)
            given = last = ggml.ggml_new_tensor_2d(steps, F32, width, columns)
            for _ in range(count):
                normed = ggml.ggml_mul(steps, ggml.ggml_rms_norm(steps, last, 1e-5), weight)
                gated = ggml.ggml_swiglu_split(steps, normed, given)
                last = ggml.ggml_add(steps, ggml.ggml_add(steps, gated, given), normed)
            return [last]

        return self._time(build, self.plain)

    def _place(self, is_repacked: bool) -> int:
        place = self.repacked if is_repacked else self.plain
        if place is None:
            raise OSError("the engine does not repack here")
        return int(place)

    def _time(
        self,
        build: Callable[[int, int], list[int]],
        place: int,
        of: Callable[[Iterable[float]], float] = fmean,
    ) -> float:
        """Build a graph, its weights in `place`, and return the mean (or another) of its times."""
        ggml = self.ggml
        held = ggml.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        steps = ggml.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        self._values.clear()
        graph = ggml.ggml_new_graph_custom(steps, MOST_NODES, False)
        for result in build(held, steps):
            ggml.ggml_build_forward_expand(graph, result)
        buffers = (
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(held, place),
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(steps, self.plain),
        )
        self._fill(held)
        for tensor, values in self._values.items():
            ggml.ggml_backend_tensor_set(tensor, values, 0, len(values))
        passes = []
        for _ in range(PASSES):
            began = self._clock()
            ggml.ggml_backend_graph_compute(self.backend, graph)
            passes.append(self._clock() - began)
        for buffer in buffers:
            ggml.ggml_backend_buffer_free(buffer)
        for context in (held, steps):
            ggml.ggml_free(context)
        return of(passes)

    def _fill(self, held: int) -> None:
        """Write zeros into every weight, by which the engine also arranges it its own way."""
        tensor = self.ggml.ggml_get_first_tensor(held)
        while tensor:
            zeros = bytes(self.ggml.ggml_nbytes(tensor))
            self.ggml.ggml_backend_tensor_set(tensor, zeros, 0, len(zeros))
            tensor = self.ggml.ggml_get_next_tensor(held, tensor)


def _pattern(form: str, count: int) -> bytes:
    """Return numbers around 0: attention's time depends on them a little, zeros are too easy."""
    some = [math.sin(7.0 * number) / 2 for number in range(4096)]
    return (struct.pack(f"{len(some)}{form}", *some) * (count // len(some) + 1))[
        : count * struct.calcsize(form)
    ]


def _causal_mask(columns: int) -> bytes:
    """Return a mask, f16, by which a column sees the cells before it; one column sees all."""
    hidden, seen = b"\x00\xfc", b"\x00\x00"
    rows = range(CELLS - columns + 1, CELLS + 1)
    return b"".join(seen * row + hidden * (CELLS - row) for row in rows)


def rates_here(names: Sequence[str], threads: int) -> dict[str, tuple[float, float]]:
    """Measure in this process; raises OSError or AttributeError without a fitting library."""
    cpu = _Cpu(threads)
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        if name == SMALL_OPERATIONS:
            found[name] = _chain_rates(cpu)
        elif name == PRODUCTS:
            found[name] = _start_rates(cpu)
        elif name.startswith(ATTENTION):
            found[name] = _attention_rates(cpu, name.removeprefix(ATTENTION))
        elif (rates := _product_rates(cpu, name)) is not None:
            found[name] = rates
    return found


def _chain_rates(cpu: _Cpu) -> tuple[float, float]:
    elements = 5.0 * 8 * WIDE * BATCH
    return 5.0 * CHAIN / cpu.time_chain(SMALL, 1, CHAIN), elements / cpu.time_chain(WIDE, BATCH, 8)


def _start_rates(cpu: _Cpu) -> tuple[float, float]:
    """What a product costs beside its bytes: the time of small ones, less that of large ones."""
    (rate, _), (number, block, size) = _product_rates(cpu, "Q8_0") or (0.0, 0.0), Q8_0
    one = LITTLE * LITTLE // block * size
    count = MOST_NODES // 2
    spent = cpu.time_product(number, False, count, 1, LITTLE) / count - one / rate
    return 1 / max(spent, LEAST_S), 1 / max(spent, LEAST_S)


def _attention_rates(cpu: _Cpu, text: str) -> tuple[float, float]:
    """A batch's tokens see half of the cells on average; only those are counted."""
    heads, kv_heads, size = (int(word) for word in text.split("x"))
    shape = heads, kv_heads, size
    layers = max(CACHES_BYTES // (4 * CELLS * kv_heads * size), 2)
    one = 2.0 * heads * size * CELLS
    many = one * BATCH * (BATCH + 1) / (2 * CELLS)
    decode, prefill = cpu.time_attention(shape, 1, layers), cpu.time_attention(shape, BATCH, 2)
    return one * layers / decode, many * 2 / prefill


def _product_rates(cpu: _Cpu, name: str) -> tuple[float, float] | None:
    numbers = {name: (number, block, size) for number, (name, block, size) in GGML_TYPES.items()}
    is_routed, is_repacked = EXPERTS in name, REPACKED in name
    base = name.removesuffix(CACHED).removesuffix(EXPERTS).removesuffix(REPACKED)
    if base not in numbers:
        return None
    number, block, size = numbers[base]
    if name.endswith(CACHED):
        near = ROW * CACHED_ROWS // block * size
        rate = TURNS * near / cpu.time_cached(number, is_repacked, TURNS)
        return rate, rate
    if is_routed:
        one = EXPERT * EXPERT * COUNT // block * size
        count = max(WEIGHTS_BYTES // one, 1)
        decode = cpu.time_experts(number, is_repacked, count, COUNT, 1)
        prefill = cpu.time_experts(number, is_repacked, 1, USED, BATCH)
        return count * one / decode, 2.0 * EXPERT * EXPERT * USED * BATCH / prefill
    one = ROW * ROW // block * size
    count = max(WEIGHTS_BYTES // one, 1)
    decode = cpu.time_product(number, is_repacked, count, 1)
    prefill = cpu.time_product(number, is_repacked, 1, BATCH)
    return count * one / decode, 2.0 * ROW * ROW * BATCH / prefill


if __name__ == "__main__":
    json.dump(rates_here(sys.argv[2:], int(sys.argv[1])), sys.stdout)
