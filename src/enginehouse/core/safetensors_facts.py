"""Safetensors headers, config.json and the tokenizer's files → the facts of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from enginehouse.core.chat_template import template_of
from enginehouse.core.hf_config import (
    CONTEXT,
    HIDDEN,
    WIDTH,
    blocks_of,
    experts_of,
    integer,
    layer_count,
    mla_of,
    rope_of,
    text_config,
)
from enginehouse.core.model import (
    FACTS_VERSION,
    Block,
    Encoder,
    Experts,
    Model,
    Part,
    TensorGroup,
    Tokenizer,
    WeightQuantization,
)
from enginehouse.core.model_facts import group_tensors, largest_type
from enginehouse.core.quantization import quantization_of, weights_in
from enginehouse.core.safetensors_header import SafeTensor
from enginehouse.core.tensor_classes import class_of_hf, hf_layer_of

ENCODER_MODELS = {
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "modernbert",
    "nomic_bert",
    "mpnet",
}


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a checkpoint's folder; `adapter` is the content of adapter_config.json."""

    config: Mapping[str, Any]
    tensors: tuple[SafeTensor, ...]
    parts: tuple[Part, ...]
    digests: tuple[str, ...]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""
    template_origin: str = ""
    license: str = ""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = ""
    notes: tuple[str, ...] = ()


def model_of_checkpoint(
    checkpoint: Checkpoint, *, name: str, path: str, source: str, digest: str
) -> Model:
    """Return a checkpoint's facts; what it does not say is 0 or empty."""
    config = text_config(checkpoint.config)
    groups = group_tensors(
        (class_of_hf(t.name), t.dtype, weights, t.bytes)
        for t, weights in _weighed(checkpoint.tensors, quantization_of(config, ""))
    )
    quantization = quantization_of(config, largest_type(groups))
    experts = experts_of(config)
    blocks = _weigh(blocks_of(config), checkpoint.tensors)
    is_tied = _is_tied(config, checkpoint.tensors)
    active = [
        (tensor, weights, _share(tensor.name, layer_count(config), experts, is_tied))
        for tensor, weights in _weighed(checkpoint.tensors, quantization)
    ]
    return Model(
        name=name,
        path=path,
        source=source,
        format="safetensors",
        digest=digest,
        file_bytes=sum(part.bytes for part in checkpoint.parts if part.role == "weights"),
        architecture=_architecture(checkpoint.config),
        quantization=_label(quantization, groups),
        parameters=sum(group.elements for group in groups),
        weight_bytes=sum(group.bytes for group in groups),
        bytes_per_token=int(sum(tensor.bytes * share for tensor, _, share in active)),
        context_length=integer(config, *CONTEXT),
        layers=layer_count(config),
        embedding_length=integer(config, *HIDDEN),
        vocabulary_size=integer(config, "vocab_size", "padded_vocab_size"),
        k_elements_per_token=sum(block.k_elements for block in blocks),
        v_elements_per_token=sum(block.v_elements for block in blocks),
        has_chat_template=bool(checkpoint.template),
        pooling=checkpoint.pooling,
        license=checkpoint.license,
        facts_version=FACTS_VERSION,
        header_digest=hashlib.sha256("\n".join(checkpoint.digests).encode()).hexdigest(),
        role="adapter" if checkpoint.adapter else "model",
        title=str(checkpoint.config.get("_name_or_path") or "")[:200],
        is_causal=str(config.get("model_type", "")) not in ENCODER_MODELS,
        active_parameters=int(sum(weights * share for _, weights, share in active)),
        blocks=blocks,
        groups=groups,
        feed_forward_length=integer(config, *WIDTH),
        is_output_tied=is_tied,
        experts=experts,
        mla=mla_of(config),
        rope=rope_of(config),
        weight_quantization=quantization,
        template=template_of(checkpoint.template, checkpoint.template_origin),
        tokenizer=_tokenizer(checkpoint),
        encoder=_encoder(checkpoint.config),
        parts=checkpoint.parts,
        base_model=str(checkpoint.adapter.get("base_model_name_or_path") or "")[:200],
        adapter_rank=integer(checkpoint.adapter, "r"),
        notes=checkpoint.notes,
    )


def _weighed(
    tensors: Sequence[SafeTensor], quantization: WeightQuantization
) -> list[tuple[SafeTensor, int]]:
    return [(tensor, weights_in(tensor, quantization)) for tensor in tensors]


def _weigh(blocks: Sequence[Block], tensors: Sequence[SafeTensor]) -> tuple[Block, ...]:
    weights, experts = [0] * len(blocks), [0] * len(blocks)
    for tensor in tensors:
        tensor_class, layer = class_of_hf(tensor.name), hf_layer_of(tensor.name)
        if layer is None or layer >= len(blocks) or tensor_class == "projector":
            continue
        weights[layer] += tensor.bytes
        experts[layer] += tensor.bytes if tensor_class == "experts" else 0
    return tuple(
        replace(block, weight_bytes=weight, expert_bytes=expert)
        for block, weight, expert in zip(blocks, weights, experts, strict=True)
    )


def _share(name: str, layers: int, experts: Experts | None, is_tied: bool) -> float:
    """Return the share of a tensor that one decoded token reads."""
    tensor_class, layer = class_of_hf(name), hf_layer_of(name)
    if tensor_class == "projector" or name.startswith("mtp.") or ".mtp." in name:
        return 0.0
    if layer is not None and layer >= layers:
        return 0.0
    if tensor_class == "token embedding":
        return 1.0 if is_tied else 0.0
    if tensor_class == "experts" and experts is not None:
        return experts.used / experts.count
    return 1.0


def _is_tied(config: Mapping[str, Any], tensors: Sequence[SafeTensor]) -> bool:
    classes = {class_of_hf(tensor.name) for tensor in tensors}
    return "token embedding" in classes and "output" not in classes


def _architecture(config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return listed[0][:100]
    return str(config.get("model_type") or "unknown")[:100]


def _label(quantization: WeightQuantization, groups: Sequence[TensorGroup]) -> str:
    if quantization.method == "none":
        return largest_type(groups)
    bits = f"{quantization.bits:g}-bit" if quantization.bits else ""
    return f"{quantization.method} {bits}".strip()


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    kind = checkpoint.tokenizer.get("tokenizer_class")
    if not isinstance(kind, str):
        return None
    return Tokenizer(kind[:100], tokens=integer(text_config(checkpoint.config), "vocab_size"))


def _encoder(config: Mapping[str, Any]) -> Encoder | None:
    for kind in ("vision", "audio"):
        inner = config.get(f"{kind}_config")
        if isinstance(inner, Mapping):
            return Encoder(
                kind,
                projector=str(inner.get("model_type") or "")[:60],
                blocks=integer(inner, "num_hidden_layers", "depth", "encoder_layers"),
                embedding_length=integer(inner, "hidden_size", "embed_dim", "d_model"),
                feed_forward_length=integer(inner, *WIDTH),
                heads=integer(inner, "num_attention_heads", "num_heads"),
                image_size=integer(inner, "image_size"),
                patch_size=integer(inner, "patch_size"),
            )
    return None
