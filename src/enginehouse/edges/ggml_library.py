"""The quantization routines of ggml, called in the shared library of the `xllamacpp` wheel.

The wheel does not offer `llama_model_quantize` (it is not linked into it), but it exports ggml's
own routines: `dequantize_row_<type>` and `ggml_quantize_chunk`, whose C signatures hold only plain
numbers and pointers. So every type that the engine computes with can be made without a compiler,
and with the same bits as `llama-quantize` makes. Called only in a child process (`quantize_child`),
since ggml ends the process where an assertion fails.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.quant_types import TYPE_IDS

NEEDED = (
    b"ggml_quantize_chunk", b"ggml_validate_row_data", b"dequantize_row_q4_1",
    b"ggml_fp16_to_fp32_row", b"ggml_bf16_to_fp32_row",
)  # fmt: skip


def find_library() -> Path | None:
    """Return the wheel's shared library, None without one; nothing is loaded."""
    found = importlib.util.find_spec("xllamacpp")
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob("*.so")):
            return path
    return None


class GgmlLibrary:
    """The routines by name, checked for what they are once.

    Raises:
        OSError: the library cannot be loaded.
        AttributeError: it does not export a routine.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._quantize = self._library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self._validate = self._library.ggml_validate_row_data
        self._validate.restype = ctypes.c_bool
        self._validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

    def expander(self, type_name: str) -> Callable[[int, int, int], None] | None:
        """Return what turns `count` values at an address into floats at another.

        None for F32, which are floats already.
        """
        if type_name == "F32":
            return None
        names = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
        spelling = type_name.lower().removesuffix("_k") + ("_K" if type_name[-2:] == "_K" else "")
        routine = self._library[names.get(type_name, f"dequantize_row_{spelling}")]
        routine.restype = None
        routine.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        return lambda source, floats, count: routine(source, floats, count)

    def requantize(self, data: bytes, source: str, target: str, row: int) -> bytes:
        """Return rows of `row` elements in another type; `data` holds whole rows.

        Raises:
            ValueError: the result holds values that are not finite, as the source then does.
        """
        _, block, size = GGML_TYPES[TYPE_IDS[source]]
        count = len(data) // size * block
        given = (ctypes.c_char * len(data)).from_buffer_copy(data)
        floats = given if source == "F32" else (ctypes.c_float * count)()
        expand = self.expander(source)
        if expand is not None:
            expand(ctypes.addressof(given), ctypes.addressof(floats), count)
        _, block, size = GGML_TYPES[TYPE_IDS[target]]
        made = (ctypes.c_char * (count // block * size))()
        kind = TYPE_IDS[target]
        self._quantize(kind, ctypes.addressof(floats), ctypes.addressof(made), 0, count // row, row,
                       None)  # fmt: skip
        if not self._validate(kind, ctypes.addressof(made), len(made)):
            raise ValueError(f"{source} → {target} gave values that are not finite")
        return bytes(made)
