"""quantization_config → method and bits, and how many weights packed tensors hold."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse.core.model import WeightQuantization
from enginehouse.core.quantization import quantization_of, weights_in
from enginehouse.core.safetensors_header import SafeTensor


@pytest.mark.parametrize(
    ("stated", "method", "bits", "group_size"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq", 4, 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": True}, "gptq", 8, 32),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", 8, 0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4, 0),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", 8, 0),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25, 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt", 4.5, 0),
        ({"quant_method": "exl9", "bits": 3.5}, "exl9", 3.5, 0),
        ({"bits": "many"}, "unknown", 0, 0),
    ],
)
def test_methods(stated: dict[str, Any], method: str, bits: float, group_size: int) -> None:
    """Each method states its bits and groups in its own way."""
    found = quantization_of({"quantization_config": stated}, "F16")
    assert (found.method, found.bits, found.group_size) == (method, bits, group_size)


def test_compressed_tensors_says_weights_activations_and_cache() -> None:
    """W4A16 in groups of 128 with an fp8 KV cache, as llm-compressor writes it."""
    weights = {"num_bits": 4, "type": "int", "group_size": 128}
    stated = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights, "input_activations": None}},
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }  # fmt: skip
    found = quantization_of({"quantization_config": stated}, "")
    assert found == WeightQuantization(
        "compressed-tensors", 4, 128, kv_bits=8, detail="W4A16 int, pack-quantized"
    )


def test_without_a_config_the_type_tells() -> None:
    """An unquantized checkpoint has the bits of its type."""
    assert quantization_of({}, "BF16") == WeightQuantization("none", 16, detail="BF16")


def test_packed_weights_are_counted_each() -> None:
    """Eight 4-bit weights in an I32, two in a U8; scales are none."""
    awq = WeightQuantization("awq", 4)
    assert weights_in(SafeTensor("a.qweight", "I32", (10, 4), 160), awq) == 320
    assert weights_in(SafeTensor("a.qzeros", "I32", (10, 4), 160), awq) == 0
    assert weights_in(SafeTensor("a.scales", "F16", (10, 4), 80), awq) == 0
    bnb = WeightQuantization("bitsandbytes", 4)
    assert weights_in(SafeTensor("a.weight", "U8", (100, 1), 100), bnb) == 200
    plain = WeightQuantization("none", 16)
    assert weights_in(SafeTensor("a.weight", "BF16", (3, 4), 24), plain) == 12
