"""From a tensor's name to its class and its layer."""

from __future__ import annotations

import re
from functools import lru_cache

_BLOCK = re.compile(r"^(?:dec\.)?blk\.(\d{1,5})\.")
_NUMBER = re.compile(r"\d+")
_HF_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,5})\.")

_GGUF_CLASSES = (
    (re.compile(r"^(v|a|mm|resampler)\.|^model\.image_newline"), "projector"),
    (re.compile(r"_norm\b|norm_|\.norm\b|_layernorm"), "norms"),
    (
        re.compile(r"^(per_layer_)?token_embd\b|^position_embd|^token_types|^ple_"),
        "token embedding",
    ),
    (re.compile(r"^output\b|^cls\b"), "output"),
    (re.compile(r"_exps\.|_exps_|\bffn_(up|gate|down)\.\d+\.|_chexps\."), "experts"),
    (re.compile(r"\bssm_|\btime_mix|\bchannel_mix|\bshortconv|\bkda_"), "recurrent"),
    (re.compile(r"\battn_|\bcross_attn|\bindexer"), "attention"),
    (re.compile(r"\bffn_|\blaurel|\bexp_probs|\binp_gate"), "feed-forward"),
)  # fmt: skip
"""Order matters: a norm inside an attention is a norm, an attention inside an encoder is its."""

_HF_CLASSES = (
    (
        re.compile(
            r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|audio_tower|audio_encoder"
            r"|multi_modal_projector|mm_projector|embed_vision|embed_audio|connector)\."
        ),
        "projector",
    ),
    (re.compile(r"(layer_?norm|[._]norm\d?|_norm|ln_[f12\d]|norm_f)\.?(weight|bias)?$"), "norms"),
    (
        re.compile(r"embed_tokens|\bwte\b|\bwpe\b|word_embeddings|embeddings?\.weight"),
        "token embedding",
    ),
    (re.compile(r"(^|\.)(lm_head|embed_out|score|classifier)\."), "output"),
    (re.compile(r"\.experts\."), "experts"),
    (re.compile(r"\.(mamba|mixer|linear_attn|ssm|conv|temporal_block)\."), "recurrent"),
    (re.compile(r"attn|attention"), "attention"),
    (re.compile(r"mlp|feed_forward|ffn|\.gate\.|router|shared_expert|\.fc\d?\."), "feed-forward"),
)  # fmt: skip


def class_of_gguf(name: str) -> str:
    """Return the class of a GGUF tensor's name (llama.cpp's naming, src/llama-arch.cpp)."""
    return _find_class(_GGUF_CLASSES, _NUMBER.sub("0", name))


def class_of_hf(name: str) -> str:
    """Return the class of a Hugging Face checkpoint's tensor name."""
    return _find_class(_HF_CLASSES, _NUMBER.sub("0", name))


@lru_cache(maxsize=4096)
def _find_class(classes: tuple[tuple[re.Pattern[str], str], ...], name: str) -> str:
    """Return the first class that fits; remembered, since the layers' names differ in numbers."""
    return next((found for pattern, found in classes if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """Return the layer that a GGUF tensor belongs to, None for those of no layer."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def hf_layer_of(name: str) -> int | None:
    """Return the layer that a checkpoint's tensor belongs to, None for those of no layer."""
    match = _HF_BLOCK.search(name)
    return int(match[1]) if match else None
