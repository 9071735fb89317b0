"""Layers, experts and rope from the config.json of models that exist (their shapes, shortened)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from enginehouse.core.hf_config import blocks_of, experts_of, mla_of, rope_of, text_config

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 28, "hidden_size": 3072, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip


def kinds(config: dict[str, Any]) -> str:
    runs = groupby(block.kind[0] for block in blocks_of(config))
    return " ".join(f"{len(list(run))}{letter}" for letter, run in runs)


def test_a_dense_model() -> None:
    """Llama 3.2 3B keeps 8 heads of 128 for K and for V in each of 28 layers."""
    blocks = blocks_of(LLAMA)
    assert len(blocks) == 28
    assert {(b.kind, b.k_elements, b.v_elements) for b in blocks} == {("full", 1024, 1024)}
    rope = rope_of(LLAMA)
    assert rope is not None
    assert (rope.scaling, rope.factor, rope.original_context) == ("llama3", 32.0, 8192)


SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, "8s"),
        ({"model_type": "mistral", "sliding_window": None}, "8f"),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, "8f"),
        (
            {
                "model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True,
                "max_window_layers": 5,
            },
            "5f 3s",
        ),
        ({"model_type": "gemma3_text", "sliding_window": 512}, "5s 1f 2s"),
        ({"layer_types": ["sliding_attention", "x"] * 4, "sliding_window": 8}, "1s 1f " * 4),
        ({"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4}, "4r 1f 3r"),
        ({"model_type": "qwen3_next", "full_attention_interval": 4}, "3r 1f 3r 1f"),
        ({"model_type": "bamba", "attn_layer_indices": [2, 5]}, "2r 1f 2r 1f 2r"),
        ({"hybrid_override_pattern": "M-M*-M-E"}, "1r 1n 1r 1f 1n 1r 2n"),
        ({"model_type": "mamba"}, "8r"),
        ({"layer_types": ["conv", "full_attention", 7], "sliding_window": "no"}, "1r 7f"),
    ],
)  # fmt: skip
def test_layers_follow_the_config(extra: dict[str, Any], expected: str) -> None:
    """Each of the ways in which configs tell layers apart is understood."""
    assert kinds(SMALL | extra) == expected.strip()


def test_latent_attention_keeps_only_the_latent() -> None:
    """DeepSeek V3 keeps 512 + 64 elements of K for a token and layer, and no V."""
    config = {
        "num_hidden_layers": 2, "hidden_size": 7168, "num_attention_heads": 128,
        "num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    }  # fmt: skip
    mla = mla_of(config)
    assert mla is not None
    assert (mla.kv_rank, mla.q_rank, mla.key_length, mla.value_length) == (512, 1536, 192, 128)
    assert [(b.k_elements, b.v_elements) for b in blocks_of(config)] == [(576, 0)] * 2


def test_recurrent_states() -> None:
    """Mamba 130M and Qwen3-Next: convolution and state in f32."""
    mamba = {
        "model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 768, "state_size": 16,
        "expand": 2, "conv_kernel": 4,
    }  # fmt: skip
    assert blocks_of(mamba)[0].state_bytes == 4 * (16 * 1536 + 3 * 1536)
    following = SMALL | {
        "full_attention_interval": 4, "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    }  # fmt: skip
    assert blocks_of(following)[0].state_bytes == 4 * (32 * 128 * 128 + 3 * (4096 + 4096))


def test_experts() -> None:
    """Mixtral and DeepSeek name the same thing differently; a dense model has none."""
    mixtral = experts_of({"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 9})
    assert mixtral is not None
    assert (mixtral.count, mixtral.used, mixtral.feed_forward_length) == (8, 2, 9)
    deepseek = experts_of(
        {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1}
    )
    assert deepseek is not None
    assert (deepseek.count, deepseek.used, deepseek.shared) == (256, 8, 1)
    assert experts_of(LLAMA) is None


def test_a_joined_model_is_read_by_its_language_part() -> None:
    """What a vision-language config states outside holds where the inner one says nothing."""
    config = {"tie_word_embeddings": True, "text_config": {"hidden_size": 9}, "hidden_size": 1}
    assert text_config(config) == {"tie_word_embeddings": True, "hidden_size": 9}


@pytest.mark.parametrize("value", [-1, 0, 1 << 60, "x", None, [], {}, True, 1.5])
def test_absurd_values_count_as_absent(value: object) -> None:
    """No value of any type raises, and none makes many layers."""
    names = ("num_hidden_layers", "num_attention_heads", "sliding_window", "layer_types",
             "attn_layer_period", "kv_lora_rank", "mamba_d_state", "rope_scaling")  # fmt: skip
    for name in names:
        config = SMALL | {name: value}
        assert len(blocks_of(config)) <= 4096
        experts_of(config), mla_of(config), rope_of(config)
