"""The laws of the types that tensors get when a model is quantized."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.gguf_header import GgufHeader, TensorInfo
from enginehouse.core.quant_types import (
    FORMATS,
    TYPE_IDS,
    may_quantize,
    predict_file_bytes,
    target_types,
)
from tests.unit.headers import header


def llama(
    layers: int, width: int, heads: int = 32, kv_heads: int = 8, output: bool = True,
    kind: str = "F16", experts: int = 0, arch: str = "llama",
) -> GgufHeader:  # fmt: skip
    """A llama's header with square matrices of a width."""
    names = ["token_embd.weight", "output_norm.weight"] + (["output.weight"] if output else [])
    for layer in range(layers):
        parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down")
        names += [f"blk.{layer}.{part}.weight" for part in (*parts, "attn_norm", "ffn_gate_inp")]
    tensors = tuple(
        TensorInfo(
            name,
            (width,) if "norm" in name else (width, width),
            TYPE_IDS["F32" if "norm" in name or "inp" in name else kind],
            0,
        )
        for name in names
    )
    counts = {
        "block_count": layers, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "expert_count": experts,
    }  # fmt: skip
    return header(arch, dict(counts), tensors)


def types_of(head: GgufHeader, quantization: str) -> dict[str, str]:
    """Each tensor's type by name."""
    return {t.tensor.name: t.type_name for t in target_types(head, quantization)}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("Q4_0", {"Q4_0": 225, "Q6_K": 1}),
        ("Q8_0", {"Q8_0": 226}),
        ("Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        ("Q5_K_M", {"Q5_K": 193, "Q6_K": 33}),
        ("Q4_K_S", {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}),
        ("IQ4_NL", {"IQ4_NL": 189, "Q5_K": 36, "Q6_K": 1}),
        ("Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}),
        ("Q2_K", {"Q2_K": 129, "Q3_K": 64, "Q4_K": 32, "Q6_K": 1}),
    ],
)
def test_the_mixtures_are_those_of_llama_quantize(
    quantization: str, expected: dict[str, int]
) -> None:
    """A llama of 32 layers with 8 of 32 KV heads gets the known mix of types."""
    types = types_of(llama(32, 4096), quantization)
    quantized = Counter(t for name, t in types.items() if "norm" not in name and "inp" not in name)
    assert dict(quantized) == expected
    assert types["token_embd.weight"] == FORMATS[quantization].base


def test_a_tied_embedding_is_treated_as_the_output_that_it_is() -> None:
    """Without an output tensor the embedding gets the output's type."""
    assert types_of(llama(2, 1024, output=False), "Q4_0")["token_embd.weight"] == "Q6_K"
    assert types_of(llama(2, 1024, output=False), "Q8_0")["token_embd.weight"] == "Q8_0"


def test_rows_that_do_not_fit_a_block_get_a_smaller_one() -> None:
    """Rows of 576 are no multiple of 256, rows of 100 not even of 32."""
    types = types_of(llama(8, 576, output=False), "Q4_K_M")
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["token_embd.weight"] == "Q8_0"
    assert types_of(llama(8, 100), "Q4_0")["blk.0.attn_q.weight"] == "F16"


def test_eight_experts_keep_their_keys_and_values_at_eight_bits() -> None:
    """The small tensors of a mixture of eight experts are not worth saving on."""
    types = types_of(llama(8, 1024, experts=8), "Q4_K_M")
    assert types["blk.0.attn_k.weight"] == types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.0.attn_output.weight"] == "Q5_K"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (64, 64), True), ("blk.0.attn_q.bias", (64, 64), False),
        ("blk.0.attn_norm.weight", (64, 64), False), ("blk.0.attn_q.weight", (64, 1), False),
        ("blk.0.ffn_gate_inp.weight", (64, 8), False), ("blk.0.ffn_down_exps.weight", (64, 8, 4),
        True), ("position_embd.weight", (64, 64), False), ("blk.0.ssm_conv1d.weight", (4, 64),
        False), ("blk.0.time_mix_w1.weight", (64, 64), False),
        ("blk.0.time_mix_key.weight", (64, 64), True),
    ],
)  # fmt: skip
def test_only_matrices_of_weights_are_quantized(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    """Vectors, norms, routers and small special tensors stay as they are."""
    assert may_quantize(TensorInfo(name, shape, 1, 0)) is expected


@given(
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 40),
    st.sampled_from([32, 96, 256, 576, 1024, 33]),
    st.booleans(),
    st.sampled_from(["F32", "F16", "BF16", "Q8_0"]),
)
def test_every_tensor_gets_a_type_that_its_rows_fit(
    quantization: str, layers: int, width: int, output: bool, kind: str
) -> None:
    """No tensor is lost, none gets a type its rows do not fit, and the size is their sum."""
    if width == 33 and kind == "Q8_0":
        kind = "F16"
    head = llama(layers, width, output=output, kind=kind)
    targets = target_types(head, quantization)
    assert sorted(t.tensor.name for t in targets) == sorted(t.name for t in head.tensors)
    for target in targets:
        block = GGML_TYPES[target.type_id][1]
        assert target.tensor.shape[0] % block == 0
    assert predict_file_bytes(head, targets) >= sum(t.bytes for t in targets)
    assert [t.tensor.name for t in targets if t.tensor.name.startswith("blk.")][:1] == [
        "blk.0.attn_k.weight"
    ]
