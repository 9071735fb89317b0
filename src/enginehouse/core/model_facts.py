"""A GGUF header → the facts of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from enginehouse.core.chat_template import template_of
from enginehouse.core.gguf_header import GgufHeader, TensorInfo
from enginehouse.core.gguf_layout import WITHOUT_CACHE, blocks_of, draft_layers, mla_of
from enginehouse.core.model import (
    FACTS_VERSION,
    Block,
    Encoder,
    Experts,
    Model,
    Rope,
    TensorGroup,
    Tokenizer,
    WeightQuantization,
)
from enginehouse.core.tensor_classes import class_of_gguf, layer_of

POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


def model_of(header: GgufHeader, *, name: str, path: str, source: str, digest: str) -> Model:
    """Return a model's facts; what the header does not say is 0 or empty."""
    arch = header.text("general.architecture") or "unknown"
    blocks = weigh_blocks(blocks_of(header), header.tensors)
    groups = group_tensors(
        (class_of_gguf(t.name), t.type_name, t.elements, t.bytes) for t in header.tensors
    )
    reads = Reads.of(header, arch)
    weight_bytes = sum(group.bytes for group in groups)
    return Model(
        name=name,
        path=path,
        source=source,
        format="gguf",
        digest=digest,
        file_bytes=header.file_bytes,
        architecture=arch,
        quantization=largest_type(groups),
        parameters=sum(group.elements for group in groups),
        weight_bytes=weight_bytes,
        bytes_per_token=reads.sum(header.tensors, lambda tensor: tensor.bytes),
        context_length=header.integer(f"{arch}.context_length"),
        layers=header.integer(f"{arch}.block_count"),
        embedding_length=header.integer(f"{arch}.embedding_length"),
        vocabulary_size=header.integer(f"{arch}.vocab_size")
        or header.array_lengths.get("tokenizer.ggml.tokens", 0),
        k_elements_per_token=sum(block.k_elements for block in blocks),
        v_elements_per_token=sum(block.v_elements for block in blocks),
        has_chat_template="tokenizer.chat_template" in header.metadata
        or "tokenizer.chat_template" in header.long_strings,
        pooling=_pooling(header, arch),
        license=header.text("general.license") or header.text("general.license.name"),
        facts_version=FACTS_VERSION,
        header_digest=header.digest,
        role=_role(header, arch),
        title=header.text("general.name"),
        is_causal=arch not in WITHOUT_CACHE
        and header.metadata.get(f"{arch}.attention.causal", True) is not False,
        active_parameters=reads.sum(header.tensors, lambda tensor: tensor.elements),
        blocks=blocks,
        groups=groups,
        feed_forward_length=max((block.feed_forward_length for block in blocks), default=0),
        is_output_tied=_is_tied(header),
        experts=_experts(header, arch),
        mla=mla_of(header, arch),
        rope=_rope(header, arch),
        weight_quantization=WeightQuantization(
            "gguf",
            bits=round(8 * weight_bytes / max(1, sum(group.elements for group in groups)), 2),
            detail=FILE_TYPES.get(header.integer("general.file_type"), "")
            if "general.file_type" in header.metadata
            else "",
        ),
        template=template_of(
            header.text("tokenizer.chat_template"),
            "the file",
            header.long_strings.get("tokenizer.chat_template", 0),
        ),
        tokenizer=_tokenizer(header),
        encoder=_encoder(header) if arch == "clip" else None,
        base_model=header.text("general.base_model.0.name"),
        adapter_rank=_adapter_rank(header),
        notes=_notes(header, arch),
    )


def group_tensors(tensors: Iterable[tuple[str, str, int, int]]) -> tuple[TensorGroup, ...]:
    """Sum (class, type, elements, bytes) by class and type, the largest first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for tensor_class, type_name, elements, size in tensors:
        entry = sums.setdefault((tensor_class, type_name), [0, 0, 0])
        entry[0] += 1
        entry[1] += elements
        entry[2] += size
    groups = (TensorGroup(key[0], key[1], *entry) for key, entry in sums.items())
    return tuple(sorted(groups, key=lambda group: -group.bytes))


def largest_type(groups: Sequence[TensorGroup]) -> str:
    """Name the type that holds most of the weights' bytes."""
    totals: dict[str, int] = {}
    for group in groups:
        totals[group.type] = totals.get(group.type, 0) + group.bytes
    return max(totals, key=lambda name: totals[name], default="none")


def weigh_blocks(blocks: Sequence[Block], tensors: Iterable[TensorInfo]) -> tuple[Block, ...]:
    """Add to each block the bytes of its tensors."""
    weights, experts = [0] * len(blocks), [0] * len(blocks)
    for tensor in tensors:
        layer = layer_of(tensor.name)
        if layer is None or layer >= len(blocks):
            continue
        weights[layer] += tensor.bytes
        if class_of_gguf(tensor.name) == "experts":
            experts[layer] += tensor.bytes
    return tuple(
        replace(block, weight_bytes=weight, expert_bytes=expert)
        for block, weight, expert in zip(blocks, weights, experts, strict=True)
    )


@dataclass(frozen=True)
class Reads:
    """Which share of each tensor one decoded token reads."""

    first_draft_layer: int
    active_experts: float
    is_output_tied: bool

    @staticmethod
    def of(header: GgufHeader, arch: str) -> Reads:
        """Return the shares of a header's model."""
        experts = _experts(header, arch)
        return Reads(
            header.integer(f"{arch}.block_count") - draft_layers(header, arch),
            experts.used / experts.count if experts and experts.count else 1.0,
            _is_tied(header),
        )

    def share(self, name: str) -> float:
        """Return the share of the tensor of this name, 0.0 to 1.0."""
        tensor_class, layer = class_of_gguf(name), layer_of(name)
        if layer is not None and layer >= self.first_draft_layer:
            return 0.0
        if tensor_class == "token embedding":
            return 1.0 if self.is_output_tied and name == "token_embd.weight" else 0.0
        if tensor_class == "experts":
            return self.active_experts
        return 0.0 if tensor_class == "projector" else 1.0

    def sum(self, tensors: Iterable[TensorInfo], size: Callable[[TensorInfo], int]) -> int:
        """Return the sum of what is read."""
        return int(sum(size(tensor) * self.share(tensor.name) for tensor in tensors))


def _is_tied(header: GgufHeader) -> bool:
    names = {tensor.name for tensor in header.tensors}
    return "token_embd.weight" in names and "output.weight" not in names


def _experts(header: GgufHeader, arch: str) -> Experts | None:
    count = header.integer(f"{arch}.expert_count")
    if not count:
        return None
    layers = header.integer(f"{arch}.block_count")
    used = header.per_layer(f"{arch}.expert_used_count", min(layers, 4096))
    widths = header.per_layer(f"{arch}.expert_feed_forward_length", min(layers, 4096))
    return Experts(
        count=count,
        used=min(count, max(used, default=0) or count),
        shared=header.integer(f"{arch}.expert_shared_count"),
        feed_forward_length=max(widths, default=0)
        or max(header.per_layer(f"{arch}.feed_forward_length", min(layers, 4096)), default=0),
    )


def _rope(header: GgufHeader, arch: str) -> Rope | None:
    if not any(key.startswith(f"{arch}.rope.") for key in header.metadata):
        return None
    prefix = f"{arch}.rope"
    return Rope(
        dimensions=header.integer(f"{prefix}.dimension_count"),
        base=header.number(f"{prefix}.freq_base"),
        scaling=header.text(f"{prefix}.scaling.type"),
        factor=header.number(f"{prefix}.scaling.factor") or header.number(f"{prefix}.scale_linear"),
        original_context=header.integer(f"{prefix}.scaling.original_context_length"),
    )


def _tokenizer(header: GgufHeader) -> Tokenizer | None:
    kind = header.text("tokenizer.ggml.model")
    if not kind:
        return None
    return Tokenizer(
        kind,
        header.text("tokenizer.ggml.pre"),
        header.array_lengths.get("tokenizer.ggml.tokens", 0),
        header.array_lengths.get("tokenizer.ggml.merges", 0),
    )


def _pooling(header: GgufHeader, arch: str) -> str:
    value = header.metadata.get(f"{arch}.pooling_type")
    return POOLING.get(int(value), "other") if isinstance(value, int) else ""


def _role(header: GgufHeader, arch: str) -> str:
    if header.text("general.type") == "adapter" or "adapter.type" in header.metadata:
        return "adapter"
    return "projector" if arch == "clip" or header.text("general.type") == "mmproj" else "model"


def _encoder(header: GgufHeader) -> Encoder:
    kind = "audio" if "clip.audio.block_count" in header.metadata else "vision"
    if header.metadata.get("clip.has_vision_encoder") and kind == "audio":
        kind = "vision and audio"
    prefix = "clip.audio" if kind == "audio" else "clip.vision"
    return Encoder(
        kind=kind,
        projector=header.text("clip.projector_type") or header.text(f"{prefix}.projector_type"),
        blocks=header.integer(f"{prefix}.block_count"),
        embedding_length=header.integer(f"{prefix}.embedding_length"),
        feed_forward_length=header.integer(f"{prefix}.feed_forward_length"),
        heads=header.integer(f"{prefix}.attention.head_count"),
        image_size=header.integer(f"{prefix}.image_size"),
        patch_size=header.integer(f"{prefix}.patch_size"),
    )


def _adapter_rank(header: GgufHeader) -> int:
    """Return the largest rank: the inner size of the LoRA pairs, `…lora_a` having it as rows."""
    ranks = [
        tensor.shape[1]
        for tensor in header.tensors
        if tensor.name.endswith(".lora_a") and len(tensor.shape) > 1
    ]
    return max(ranks, default=0)


def _notes(header: GgufHeader, arch: str) -> tuple[str, ...]:
    notes = []
    unknown = sorted({t.type_name for t in header.tensors if not t.is_known})
    if unknown:
        notes.append(
            f"tensors of the types {', '.join(unknown)} are not in llama.cpp b11549; their bytes "
            "are the room that the file leaves for them"
        )
    if arch == "deepseek4":
        notes.append("its compressed caches beside the sliding window are not counted per token")
    if arch == "t5":
        notes.append("an encoder and decoder; only the encoder's blocks are listed")
    return tuple(notes)


FILE_TYPES: Mapping[int, str] = {
    0: "all F32", 1: "mostly F16", 2: "mostly Q4_0", 3: "mostly Q4_1", 7: "mostly Q8_0",
    8: "mostly Q5_0", 9: "mostly Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M",
    32: "mostly BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4 experts",
    39: "mostly NVFP4", 40: "mostly Q1_0", 41: "mostly Q2_0",
}  # fmt: skip
"""`general.file_type` → what `llama-quantize` was asked for (`llama_ftype` in include/llama.h)."""
