"""From a Hugging Face config.json to layers, experts, rope and quantization.

Field names are those of the `configuration_*.py` files of Transformers; where one idea has several
names, the first that is present counts. Absurd values count as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginehouse.core.hf_layers import layer_kinds
from enginehouse.core.hf_state import state_bytes
from enginehouse.core.model import Block, Experts, Mla, Rope

Config = Mapping[str, Any]

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
WIDTH = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k")
MOST_LAYERS = 4096


def text_config(config: Config) -> Config:
    """Return the language model's part of a config: its own where several models are joined."""
    for name in ("thinker_config", "text_config", "llm_config", "language_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            config = {**_shared(config), **inner}
    return config


def _shared(config: Config) -> Config:
    names = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "vocab_size")
    return {name: config[name] for name in names if name in config}


def integer(config: Config, *names: str) -> int:
    """Return the first of the named counts that is present and usable, else 0."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(type(item) is int for item in value):
            value = max(value)
        if type(value) is int and 0 < value < 1 << 40:
            return value
    return 0


def number(config: Config, name: str) -> float:
    """Return a number, 0.0 where it is not one."""
    value = config.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and value is not None and abs(value) < 1e18 else 0.0


def layer_count(config: Config) -> int:
    """Return how many layers the language model has, draft heads not counted."""
    return min(integer(config, *LAYERS), MOST_LAYERS)


def mla_of(config: Config) -> Mla | None:
    """Return the ranks of multi-head latent attention, None without it."""
    rank = integer(config, "kv_lora_rank")
    if not rank:
        return None
    return Mla(
        kv_rank=rank,
        q_rank=integer(config, "q_lora_rank"),
        key_length=integer(config, "qk_nope_head_dim") + integer(config, "qk_rope_head_dim"),
        value_length=integer(config, "v_head_dim"),
    )


def experts_of(config: Config) -> Experts | None:
    """Return the mixture of experts, None for a dense model."""
    count = integer(config, *EXPERTS)
    if count < 2:
        return None
    return Experts(
        count=count,
        used=min(count, integer(config, *EXPERTS_USED) or count),
        shared=integer(config, "n_shared_experts", "num_shared_experts")
        or int(bool(integer(config, "shared_expert_intermediate_size"))),
        feed_forward_length=integer(config, "moe_intermediate_size", "expert_ffn_hidden_size")
        or integer(config, *WIDTH),
    )


def rope_of(config: Config) -> Rope | None:
    """Return the rotary position encoding, None where the config says nothing of it."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaling = scaling if isinstance(scaling, Mapping) else {}
    base = number(config, "rope_theta") or number(scaling, "rope_theta")
    if not base and not scaling:
        return None
    kind = scaling.get("rope_type") or scaling.get("type") or ""
    return Rope(
        dimensions=integer(config, "qk_rope_head_dim") or head_size(config),
        base=base,
        scaling="" if kind == "default" else str(kind)[:40],
        factor=number(scaling, "factor"),
        original_context=integer(scaling, "original_max_position_embeddings"),
    )


def head_size(config: Config) -> int:
    """Return the size of one attention head."""
    heads = integer(config, *HEADS)
    return integer(config, "head_dim", "attention_head_dim") or (
        integer(config, *HIDDEN) // heads if heads else 0
    )


def blocks_of(config: Config) -> tuple[Block, ...]:
    """Return every layer; without the weights."""
    return tuple(
        _block(config, kind, window) for kind, window in layer_kinds(config, layer_count(config))
    )


def _block(config: Config, kind: str, window: int) -> Block:
    heads = integer(config, *HEADS)
    kv_heads = integer(config, *KV_HEADS) or (1 if config.get("multi_query") is True else heads)
    attends = kind not in ("recurrent", "none")
    mla, size = mla_of(config), head_size(config)
    key, value, shared = size, integer(config, "v_head_dim") or size, kv_heads
    if mla is not None:
        key, value, shared = mla.kv_rank + integer(config, "qk_rope_head_dim"), 0, 1
    return Block(
        kind=kind,
        heads=heads,
        kv_heads=kv_heads if attends else 0,
        key_length=size if mla is None else mla.key_length,
        value_length=value if mla is None else mla.value_length,
        window=window,
        k_elements=shared * key if attends else 0,
        v_elements=shared * value if attends else 0,
        state_bytes=state_bytes(config) if kind == "recurrent" else 0,
        feed_forward_length=integer(config, *WIDTH),
    )
