"""Which layers attend, slide or recur, from a Hugging Face config.json.

Each rule follows the architecture's `configuration_*.py` in Transformers (4.57).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]

NAMES = {
    "full_attention": "full", "attention": "full", "global": "full", "sliding_attention": "sliding",
    "local": "sliding", "chunked_attention": "chunked", "linear_attention": "recurrent",
    "mamba": "recurrent", "mamba2": "recurrent", "conv": "recurrent", "recurrent": "recurrent",
    "hybrid": "full", "mlp": "none", "moe": "none",
}  # fmt: skip
NEMOTRON_LETTERS = {"M": "recurrent", "*": "full", "-": "none", "E": "none"}
SLIDING_BY_DEFAULT = {"mistral", "mixtral", "phi3", "starcoder2"}
"""These slide in every layer where `sliding_window` is set."""
PURE_RECURRENT = {"mamba", "mamba2", "falcon_mamba", "rwkv"}


def layer_kinds(config: Config, layers: int) -> tuple[tuple[str, int], ...]:
    """Return each layer's kind (as `Block.kind`) and window."""
    window = _positive(config, "sliding_window")
    chunk = _positive(config, "attention_chunk_size") or window
    kinds = (_listed(config) or _by_rule(config, window))[:layers]
    kinds = [*kinds, *kinds[-1:] * (layers - len(kinds))]
    return tuple(
        (kind, window if kind == "sliding" else chunk if kind == "chunked" else 0)
        if kind not in ("sliding", "chunked") or window or chunk
        else ("full", 0)
        for kind in kinds
    )


def _listed(config: Config) -> list[str]:
    """Return the kinds where the config lists them layer by layer, in one of the known ways."""
    for name in ("layer_types", "layers_block_type", "block_types", "_block_types"):
        listed = config.get(name)
        if isinstance(listed, list) and listed:
            kinds = [NAMES.get(str(item), "full") for item in listed]
            repeats = _layers(config) // len(kinds) + 1 if "block_types" in name else 1
            return kinds * repeats
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        return [NEMOTRON_LETTERS.get(letter, "full") for letter in pattern[:4096]]
    for name in ("attn_layer_indices", "full_attn_idxs"):
        chosen = config.get(name)
        if isinstance(chosen, list):
            attending = {layer for layer in chosen if type(layer) is int}
            return [
                "full" if layer in attending else "recurrent" for layer in range(_layers(config))
            ]
    return _periodic(config)


def _periodic(config: Config) -> list[str]:
    """Return the kinds where a period tells them."""
    layers, model = range(_layers(config)), str(config.get("model_type", ""))
    period = _positive(config, "attn_layer_period")
    if period:  # jamba
        offset = _positive(config, "attn_layer_offset")
        return ["full" if layer % period == offset % period else "recurrent" for layer in layers]
    period = _positive(config, "full_attention_interval")
    if period:  # qwen3-next
        return ["recurrent" if (layer + 1) % period else "full" for layer in layers]
    period = _positive(config, "sliding_window_pattern") or {
        "gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "gemma3": 6,
    }.get(model, 0)  # fmt: skip
    if period and _positive(config, "sliding_window"):
        return ["sliding" if (layer + 1) % period else "full" for layer in layers]
    return []


def _by_rule(config: Config, window: int) -> list[str]:
    """Return the kind of all layers where nothing lists them."""
    model = str(config.get("model_type", ""))
    if model in PURE_RECURRENT:
        return ["recurrent"]
    if window and model in SLIDING_BY_DEFAULT:
        return ["sliding"]
    if window and config.get("use_sliding_window") is True and model.startswith("qwen"):
        first = _positive(config, "max_window_layers")
        layers = _layers(config)
        return ["full" if layer < first else "sliding" for layer in range(layers)]
    return ["full"]


def _layers(config: Config) -> int:
    names: Sequence[str] = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    return next((min(count, 4096) for name in names if (count := _positive(config, name))), 0)


def _positive(config: Config, name: str) -> int:
    value = config.get(name)
    return value if type(value) is int and 0 < value < 1 << 40 else 0
