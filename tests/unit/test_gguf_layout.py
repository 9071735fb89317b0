"""Each layer's attention, from the metadata of made-up models with real shapes."""

from __future__ import annotations

from itertools import groupby

import pytest

from enginehouse.core.gguf_header import Scalar
from enginehouse.core.gguf_layout import blocks_of
from enginehouse.core.model import Block
from tests.unit.headers import header

Metadata = dict[str, Scalar | tuple[Scalar, ...]]


def kinds(blocks: tuple[Block, ...]) -> str:
    """Say the layers in order, runs counted: `5s 1f` is five sliding, then one full."""
    letters = {"full": "f", "sliding": "s", "chunked": "c", "recurrent": "r", "none": "n"}
    runs = groupby(letters[block.kind] for block in blocks)
    return " ".join(f"{len(list(run))}{letter}" for letter, run in runs)


HEADS: Metadata = {
    "embedding_length": 1024,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
}


@pytest.mark.parametrize(
    ("arch", "layers", "extra", "expected"),
    [
        ("llama", 4, {}, "4f"),
        ("llama", 4, {"attention.sliding_window": 1024}, "4f"),
        ("phi3", 4, {"attention.sliding_window": 2047}, "4f"),
        ("gemma2", 4, {}, "1s 1f 1s 1f"),
        ("gemma3", 8, {"attention.sliding_window": 512}, "5s 1f 2s"),
        ("gemma3", 8, {}, "8f"),
        ("gpt-oss", 4, {"attention.sliding_window": 128}, "1s 1f 1s 1f"),
        ("cohere2", 5, {"attention.sliding_window": 4096}, "3s 1f 1s"),
        ("cohere2moe", 5, {"attention.sliding_window": 4096}, "1f 3s 1f"),
        ("llama4", 8, {}, "3c 1f 3c 1f"),
        ("llama4", 4, {"attention.sliding_window": 0}, "4f"),
        ("exaone4", 64, {}, "3s 1f " * 16),
        ("exaone4", 30, {"attention.sliding_window": 4096}, "30f"),
        (
            "gemma4",
            3,
            {
                "attention.sliding_window": 512,
                "attention.sliding_window_pattern": (True, True, False),
            },
            "2s 1f",
        ),
        (
            "unheard-of",
            3,
            {"attention.sliding_window": 64, "attention.sliding_window_pattern": (True, False, 1)},
            "1s 1f 1s",
        ),
        ("mamba", 3, {"attention.head_count": 0}, "3r"),
        ("jamba", 4, {"attention.head_count_kv": (0, 0, 4, 0)}, "2r 1f 1r"),
        ("granitehybrid", 3, {"attention.head_count_kv": (0, 4, 0)}, "1r 1f 1r"),
        ("lfm2", 3, {"attention.head_count_kv": (0, 4, 0)}, "1r 1f 1r"),
        (
            "nemotron_h",
            4,
            {"attention.head_count_kv": (0, 0, 4, 0), "feed_forward_length": (0, 64, 0, 0)},
            "1r 1n 1f 1r",
        ),
        ("qwen3next", 8, {}, "3r 1f 3r 1f"),
        ("qwen35", 5, {"nextn_predict_layers": 1}, "3r 2f"),
        ("deci", 2, {"attention.head_count_kv": (4, 0)}, "1f 1n"),
        ("falcon-h1", 2, {"ssm.state_size": 16, "ssm.inner_size": 64}, "2f"),
    ],
)
def test_layers_are_as_llama_cpp_has_them(
    arch: str, layers: int, extra: Metadata, expected: str
) -> None:
    """Each architecture's own rule says which layers slide, recur or do not attend."""
    found = blocks_of(header(arch, HEADS | {"block_count": layers} | extra))
    assert kinds(found) == expected.strip()


def test_heads_may_differ_between_layers() -> None:
    """Arrays give each layer its own heads; the cache follows them."""
    metadata = HEADS | {
        "block_count": 3, "attention.head_count": (8, 8, 4), "attention.head_count_kv": (4, 2, 1),
        "attention.key_length": 64, "attention.value_length": 32,
    }  # fmt: skip
    found = blocks_of(header("openelm", metadata))
    assert [(b.heads, b.kv_heads, b.k_elements, b.v_elements) for b in found] == [
        (8, 4, 256, 128), (8, 2, 128, 64), (4, 1, 64, 32),
    ]  # fmt: skip


def test_latent_attention_caches_only_the_latent() -> None:
    """DeepSeek's absorbed MLA keeps one K of rank + rope for a token, and no V."""
    metadata: Metadata = {
        "block_count": 2, "embedding_length": 7168, "attention.head_count": 128,
        "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
    }  # fmt: skip
    found = blocks_of(header("deepseek2", metadata))
    assert [(b.k_elements, b.v_elements) for b in found] == [(576, 0)] * 2


def test_layers_that_share_a_cache_keep_none() -> None:
    """Gemma 3n's layers from the twentieth on read an earlier layer's keys and values."""
    found = blocks_of(
        header("gemma3n", HEADS | {"block_count": 30, "attention.sliding_window": 512})
    )
    assert [b.k_elements > 0 for b in found] == [True] * 20 + [False] * 10


def test_draft_heads_keep_nothing_in_ordinary_decoding() -> None:
    """A multi-token-prediction block is marked and has no share of the cache."""
    found = blocks_of(header("glm4moe", HEADS | {"block_count": 3, "nextn_predict_layers": 1}))
    assert [(b.is_draft, b.k_elements > 0) for b in found] == [
        (False, True), (False, True), (True, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "extra", "expected"),
    [
        # mamba-130m: (4-1) × 1536 convolution and 16 × 1536 state
        ("mamba", {"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16}, 116_736),
        # mamba2: groups add to the convolution
        (
            "mamba2",
            {
                "ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 128,
                "ssm.group_count": 1,
            },
            4 * (3 * (1536 + 256) + 128 * 1536),
        ),
        # rwkv: two shifts of 1024 and a state of 64 for each of them
        ("rwkv7", {"wkv.head_size": 64}, 4 * (2 * 1024 + 64 * 1024)),
    ],
)  # fmt: skip
def test_recurrent_states_have_their_size(arch: str, extra: Metadata, expected: int) -> None:
    """The state follows `n_embd_r` and `n_embd_s` of llama.cpp, four bytes an element."""
    metadata: Metadata = {"block_count": 1, "embedding_length": 1024} | extra
    assert blocks_of(header(arch, metadata))[0].state_bytes == expected


def test_absurd_metadata_does_not_cost_time() -> None:
    """A claim of a million million layers ends in a bounded list."""
    assert len(blocks_of(header("llama", HEADS | {"block_count": 1 << 39}))) == 4096
