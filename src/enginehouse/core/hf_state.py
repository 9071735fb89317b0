"""The recurrent state of one layer, from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def state_bytes(config: Mapping[str, Any]) -> int:
    """Return one layer's state for one sequence, in bytes (f32): convolution and state.

    As Transformers' `modeling_mamba`, `_mamba2`, `_qwen3_next` and `_lfm2` shape their caches.
    """
    return 4 * (_gated_delta(config) or _short_convolution(config) or _mamba(config))


def _gated_delta(config: Mapping[str, Any]) -> int:
    heads = _count(config, "linear_num_value_heads")
    if not heads:
        return 0
    key, value = _count(config, "linear_key_head_dim"), _count(config, "linear_value_head_dim")
    width = 2 * _count(config, "linear_num_key_heads") * key + heads * value
    return heads * key * value + max(0, _count(config, "linear_conv_kernel_dim") - 1) * width


def _short_convolution(config: Mapping[str, Any]) -> int:
    length = _count(config, "conv_L_cache")
    return (length - 1) * _count(config, "hidden_size") if length else 0


def _mamba(config: Mapping[str, Any]) -> int:
    states = _count(config, "mamba_d_state", "ssm_state_size", "state_size")
    heads = _count(config, "mamba_n_heads", "mamba_num_heads")
    inner = heads * _count(config, "mamba_d_head", "mamba_head_dim") or (
        _count(config, "mamba_d_ssm", "mamba_intermediate")
        or _count(config, "mamba_expand", "expand") * _count(config, "hidden_size", "d_model")
    )
    groups = _count(config, "mamba_n_groups", "n_groups") if heads else 0
    kernel = _count(config, "mamba_d_conv", "conv_kernel", "d_conv")
    return states * inner + max(0, kernel - 1) * (inner + 2 * groups * states)


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 1 << 32:
            return value
    return 0
