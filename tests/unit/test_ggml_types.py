"""The table of tensor types against the field's own."""

from __future__ import annotations

import gguf
import pytest

from enginehouse.core.ggml_types import GGML_TYPES, REMOVED_TYPES
from enginehouse.core.gguf_header import TensorInfo

# The package gives Q8_1 two f32 factors; ggml's block (ggml-common.h) has two f16 ones, 36 bytes.
STORED = [kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
def test_every_type_of_the_gguf_package_is_known(kind: gguf.GGMLQuantizationType) -> None:
    """Name, elements a block and bytes a block are those of the `gguf` package."""
    assert GGML_TYPES[int(kind)] == (kind.name, *gguf.GGML_QUANT_SIZES[kind])


def test_a_removed_type_is_named_and_takes_the_room_it_has() -> None:
    """Q4_0_4_4 is no longer read: its bytes are the gap that the file leaves."""
    tensor = TensorInfo("x", (32, 2), 31, 0, gap_bytes=64)
    assert (tensor.type_name, tensor.bytes, tensor.is_known) == ("Q4_0_4_4", 64, False)
    assert TensorInfo("x", (32,), 4000, 0).type_name == "type 4000"
    assert not set(REMOVED_TYPES) & set(GGML_TYPES)


def test_rows_are_counted_in_whole_blocks() -> None:
    """A tensor of 256 × 3 in Q4_K is three blocks; NVFP4 holds 64 in 36 bytes."""
    assert TensorInfo("x", (256, 3), 12, 0).bytes == 3 * 144
    assert TensorInfo("x", (64, 2), 40, 0).bytes == 72
