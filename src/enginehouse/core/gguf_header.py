"""A GGUF file's header as a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.core.ggml_types import GGML_TYPES, REMOVED_TYPES

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a header.

    `gap_bytes` is the room up to the next tensor (or the file's end): what its data can take at
    most, used where the type is not in the table.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    gap_bytes: int = 0

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_known(self) -> bool:
        """Whether the table knows the type."""
        return self.type_id in GGML_TYPES

    @property
    def type_name(self) -> str:
        """ggml's name of the type, or `type N`."""
        if self.type_id in GGML_TYPES:
            return GGML_TYPES[self.type_id][0]
        return REMOVED_TYPES.get(self.type_id, f"type {self.type_id}")

    @property
    def bytes(self) -> int:
        """The bytes its data takes."""
        if self.type_id not in GGML_TYPES:
            return self.gap_bytes
        _, block, size = GGML_TYPES[self.type_id]
        return -(-self.elements // block) * size


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the tensors' data.

    `array_lengths` holds the length of every array; `arrays` the values of numeric ones of at most
    4,096 items. `long_strings` holds the length of strings that were too long to keep; `texts` are
    the first 16 items of short string arrays. `digest` is the SHA-256 of the header's bytes.
    """

    version: int
    metadata: Mapping[str, Scalar]
    arrays: Mapping[str, tuple[Scalar, ...]]
    array_lengths: Mapping[str, int]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_bytes: int
    long_strings: Mapping[str, int]
    texts: Mapping[str, tuple[str, ...]]
    digest: str = ""

    def integer(self, key: str) -> int:
        """Return a count that the metadata states, 0 where it does not or is absurd."""
        value = self.metadata.get(key, 0)
        return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0

    def number(self, key: str) -> float:
        """Return a number that the metadata states, 0.0 where it does not."""
        value = self.metadata.get(key, 0.0)
        is_usable = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_usable else 0.0

    def text(self, key: str) -> str:
        """Return a text that the metadata states, "" where it does not."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def per_layer(self, key: str, layers: int, default: int = 0) -> tuple[int, ...]:
        """Return a count for each layer: an array's items, or one value for all of them."""
        if key in self.arrays:
            items = [max(0, int(v)) if isinstance(v, int) else 0 for v in self.arrays[key]]
            return tuple((items + [default] * layers)[:layers])
        value = self.integer(key) if key in self.metadata else default
        return (value,) * layers
