"""A GGUF header → the facts of a model; and the table of ggml's tensor types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.core.model import Model

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Type id → name, elements a block, bytes a block (ggml's `ggml_type` and block structs)."""

POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}

Scalar = str | int | float | bool


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header; `bytes` is 0 for a type that the table does not know."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes its data takes."""
        _, block, size = GGML_TYPES.get(self.type_id, ("", 1, 0))
        return -(-self.elements // block) * size


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the tensors' data. Arrays of more than 4,096 scalars keep only a length.

    `array_lengths` holds the length of every array; `arrays` the short numeric ones.
    """

    version: int
    metadata: Mapping[str, Scalar]
    arrays: Mapping[str, tuple[Scalar, ...]]
    array_lengths: Mapping[str, int]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_bytes: int


def model_of(header: GgufHeader, *, name: str, path: str, source: str, digest: str) -> Model:
    """Return a model's facts; what the header does not say is 0 or empty."""
    data = header.metadata
    arch = str(data.get("general.architecture", "unknown"))
    layers = _integer(data, f"{arch}.block_count")
    heads = _integer(data, f"{arch}.attention.head_count")
    embedding = _integer(data, f"{arch}.embedding_length")
    head_size = embedding // heads if heads else 0
    kv_heads = _kv_heads(header, arch, layers, heads)
    pooling = data.get(f"{arch}.pooling_type")
    return Model(
        name=name,
        path=path,
        source=source,
        format="gguf",
        digest=digest,
        file_bytes=header.file_bytes,
        architecture=arch,
        quantization=_quantization(header),
        parameters=sum(tensor.elements for tensor in header.tensors),
        weight_bytes=sum(tensor.bytes for tensor in header.tensors),
        bytes_per_token=_bytes_per_token(header, arch),
        context_length=_integer(data, f"{arch}.context_length"),
        layers=layers,
        embedding_length=embedding,
        vocabulary_size=_integer(data, f"{arch}.vocab_size")
        or header.array_lengths.get("tokenizer.ggml.tokens", 0),
        k_elements_per_token=kv_heads
        * (_integer(data, f"{arch}.attention.key_length") or head_size),
        v_elements_per_token=kv_heads
        * (_integer(data, f"{arch}.attention.value_length") or head_size),
        has_chat_template="tokenizer.chat_template" in data,
        pooling=POOLING.get(int(pooling), "other") if isinstance(pooling, int) else "",
        license=str(data.get("general.license", "")),
    )


def _integer(data: Mapping[str, Scalar], key: str) -> int:
    value = data.get(key, 0)
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0


def _kv_heads(header: GgufHeader, arch: str, layers: int, heads: int) -> int:
    """Sum the KV heads over the layers; they may differ from layer to layer."""
    key = f"{arch}.attention.head_count_kv"
    if key in header.arrays:
        return sum(value for value in header.arrays[key] if isinstance(value, int))
    return layers * (_integer(header.metadata, key) or heads)


def _quantization(header: GgufHeader) -> str:
    """Name the type that holds most of the weights' bytes."""
    totals: dict[str, int] = {}
    for tensor in header.tensors:
        name = GGML_TYPES.get(tensor.type_id, (f"type {tensor.type_id}", 1, 0))[0]
        totals[name] = totals.get(name, 0) + tensor.bytes
    return max(totals, key=lambda name: totals[name], default="none")


def _bytes_per_token(header: GgufHeader, arch: str) -> int:
    names = {tensor.name for tensor in header.tensors}
    experts = _integer(header.metadata, f"{arch}.expert_count")
    used = _integer(header.metadata, f"{arch}.expert_used_count")
    total = 0.0
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and "output.weight" in names:
            continue
        active = used / experts if experts and used and "_exps." in tensor.name else 1.0
        total += tensor.bytes * active
    return int(total)
