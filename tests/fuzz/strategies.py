"""Inputs with the right words and wrong values: they get past the parsers, into the rules."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from enginehouse.core.gguf_layout import (
    NEMOTRON,
    RECURRENT,
    RECURRENT_BY_INTERVAL,
    RECURRENT_WITHOUT_KV_HEADS,
    WINDOWS,
)
from tests.fuzz.target import READERS, seeds, text

COUNTS = st.sampled_from([0, 1, 2, 3, 4, 8, 64, 128, 4096, (1 << 32) - 1, 1 << 40, (1 << 63) - 1])

GGUF_KEYS = [
    "block_count",
    "embedding_length",
    "context_length",
    "feed_forward_length",
    "vocab_size",
    "pooling_type",
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_feed_forward_length",
    "nextn_predict_layers",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.kv_lora_rank",
    "attention.q_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.shared_kv_layers",
    "attention.recurrent_layers",
    "attention.indexer.key_length",
    "attention.causal",
    "full_attention_interval",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "wkv.head_size",
    "token_shift_count",
    "shortconv.l_cache",
    "kda.head_dim",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "vision.block_count",
]
GENERAL_KEYS = [
    "general.type",
    "general.name",
    "general.license",
    "general.file_type",
    "general.alignment",
    "general.base_model.0.name",
    "split.no",
    "split.count",
    "split.tensors.count",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
    "adapter.type",
    "clip.projector_type",
]
ARCHS = sorted(
    {*WINDOWS, *RECURRENT, *RECURRENT_WITHOUT_KV_HEADS, *RECURRENT_BY_INTERVAL, *NEMOTRON,
     "llama", "deepseek2", "gemma4", "falcon-h1", "clip", "bert", "glm-dsa", "deci"}
)  # fmt: skip
TENSORS = ["token_embd.weight", "output.weight", "blk.0.ffn_up_exps.weight", "blk.3.attn_q.weight",
           "blk.0.x.lora_a", "v.blk.0.attn_q.weight", "blk.1.ssm_in.weight", "\x1b[2J"]  # fmt: skip


def _string(value: str) -> bytes:
    return struct.pack("<I", 8) + text(value)


def _array(kind: int, form: str, values: list[Any]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}{form}", 9, kind, len(values), *values)


values = st.one_of(
    COUNTS.map(lambda value: struct.pack("<IQ", 10, value)),
    st.integers(0, (1 << 32) - 1).map(lambda value: struct.pack("<II", 4, value)),
    st.integers(-(1 << 31), (1 << 31) - 1).map(lambda value: struct.pack("<Ii", 5, value)),
    st.booleans().map(lambda value: struct.pack("<I?", 7, value)),
    st.floats(width=32).map(lambda value: struct.pack("<If", 6, value)),
    st.text(max_size=20).map(_string),
    st.lists(st.integers(0, 200), max_size=40).map(lambda found: _array(4, "I", found)),
    st.lists(st.booleans(), max_size=40).map(lambda found: _array(7, "?", found)),
    st.lists(st.floats(width=32), max_size=9).map(lambda found: _array(6, "f", found)),
)  # fmt: skip


@st.composite
def ggufs(draw: st.DrawFn) -> bytes:
    """Draw a GGUF whose keys an architecture reads, with values of any type."""
    arch = draw(st.sampled_from(ARCHS))
    names = draw(st.lists(st.sampled_from(GGUF_KEYS), unique=True, max_size=16))
    common = draw(st.lists(st.sampled_from(GENERAL_KEYS), unique=True, max_size=5))
    layers = draw(st.integers(0, 64))
    entries = [text("general.architecture") + _string(arch)]
    if "block_count" not in names:
        entries.append(text(f"{arch}.block_count") + struct.pack("<II", 4, layers))
    entries += [text(f"{arch}.{name}") + draw(values) for name in names]
    entries += [text(name) + draw(values) for name in common]
    tensors = []
    for name in draw(st.lists(st.sampled_from(TENSORS), unique=True, max_size=4)):
        shape = draw(st.lists(st.sampled_from([1, 32, 64, 256, 1 << 20]), max_size=4))
        kind, offset = draw(st.integers(0, 45)), draw(st.sampled_from([0, 32, 1 << 20]))
        form = f"<I{len(shape)}QIQ"
        tensors.append(text(name) + struct.pack(form, len(shape), *shape, kind, offset))
    counts = struct.pack("<IQQ", draw(st.sampled_from([2, 3])), len(tensors), len(entries))
    return b"\0\3GGUF" + counts + b"".join(entries) + b"".join(tensors)


CONFIG_KEYS = [
    "architectures",
    "model_type",
    "num_hidden_layers",
    "n_layer",
    "hidden_size",
    "d_model",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "layers_block_type",
    "block_types",
    "hybrid_override_pattern",
    "attn_layer_indices",
    "attn_layer_period",
    "attn_layer_offset",
    "full_attention_interval",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "torch_dtype",
    "quantization_config",
    "compression_config",
    "mamba_d_state",
    "mamba_n_heads",
    "mamba_d_head",
    "mamba_expand",
    "expand",
    "conv_kernel",
    "state_size",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "conv_L_cache",
    "text_config",
    "vision_config",
    "audio_config",
    "tie_word_embeddings",
    "multi_query",
    "tokenizer_class",
    "chat_template",
]
INNER_KEYS = [
    "quant_method",
    "bits",
    "group_size",
    "config_groups",
    "weights",
    "num_bits",
    "input_activations",
    "kv_cache_scheme",
    "format",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "activation_scheme",
    "quant_algo",
    "kv_cache_quant_algo",
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "num_hidden_layers",
    "hidden_size",
    "layer_types",
    "sliding_window",
]
WORDS = st.sampled_from(
    ["llama", "mamba", "jamba", "qwen2", "gemma2", "mistral", "awq", "gptq", "fp8", "modelopt",
     "compressed-tensors", "bitsandbytes", "sliding_attention", "full_attention", "mamba", "yarn",
     "M-M*-E", "NVFP4", "\x1b[2J", ""]
)  # fmt: skip
plain = st.one_of(
    COUNTS, COUNTS.map(lambda value: -value), st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(), st.none(), WORDS, st.lists(st.one_of(WORDS, COUNTS, st.none()), max_size=12),
)  # fmt: skip
inner = st.dictionaries(st.sampled_from(INNER_KEYS), plain, max_size=5)
tables = st.recursive(
    st.one_of(plain, inner),
    lambda children: st.dictionaries(st.sampled_from(INNER_KEYS), children, max_size=4),
    max_leaves=8,
)
configs = st.dictionaries(
    st.sampled_from(CONFIG_KEYS), st.one_of(plain, tables), max_size=14
)  # fmt: skip


def _changed(data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(data)
    for at, piece in edits:
        place = at % len(content)
        content[place : place + len(piece)] = piece
    return bytes(content)


edits = st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=9)), max_size=6)
inputs = st.one_of(
    st.builds(_changed, st.sampled_from(sorted(seeds().values())), edits),
    st.builds(
        lambda reader, nothing, data: bytes([reader, nothing]) + data,
        st.integers(0, len(READERS) - 1), st.integers(0, 3), st.binary(max_size=300),
    ),
    ggufs(),
    configs.map(lambda config: b"\2\0" + json.dumps(config).encode()),
    configs.map(lambda config: b"\3\0{}\0" + json.dumps(config).encode() + b"\0{}\0x"),
)  # fmt: skip
