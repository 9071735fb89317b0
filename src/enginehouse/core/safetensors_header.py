"""A safetensors header as values: what each tensor is and where it ends.

Format: eight bytes of length, then JSON: name → dtype, shape, data_offsets
(huggingface/safetensors, README and safetensors/src/tensor.rs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class HeaderError(Exception):
    """A header that no writer wrote; the text says why."""


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor: its type, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """The number of stored elements (packed ones count once)."""
        return math.prod(self.shape)


def tensor_of(
    name: str, dtype: str, shape: Sequence[int], span: Sequence[int], data_bytes: int
) -> SafeTensor:
    """Return one entry of a header, checked against the bytes that follow the header.

    Raises:
        HeaderError: a range outside of the data, or of another size than type and shape say.
    """
    shown = name[:80]
    if not dtype or len(span) != 2 or len(shape) > 16:
        raise HeaderError(f"tensor {shown!r} lacks a type, a shape or its place")
    begin, end = span
    if any(not 0 <= size < 1 << 50 for size in shape) or not 0 <= begin <= end:
        raise HeaderError(f"tensor {shown!r} has the shape {list(shape)} at {begin}")
    if end > data_bytes:
        raise HeaderError(f"tensor {shown!r} ends at {end:,}, beyond the file's {data_bytes:,}")
    tensor = SafeTensor(name, dtype, tuple(shape), end - begin)
    bits = DTYPE_BITS.get(dtype)
    if bits is not None and (tensor.elements * bits + 7) // 8 != tensor.bytes:
        raise HeaderError(
            f"tensor {shown!r} of {dtype} {list(shape)} cannot take {tensor.bytes:,} bytes"
        )
    return tensor
