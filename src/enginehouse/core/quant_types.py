"""Which type each tensor gets when a GGUF model is quantized, by llama.cpp's own rules.

Followed here: `tensor_allows_quantization`, `llama_tensor_get_type_impl` and
`tensor_type_fallback` in src/llama-quant.cpp of llama.cpp b11549, without an importance matrix and
for the formats in `FORMATS`. A test holds the result against `llama-quantize` where there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.gguf_header import GgufHeader, TensorInfo


@dataclass(frozen=True)
class Format:
    """A quantization that a file can have: the type of most tensors and llama.cpp's file type.

    A pure one gives every tensor that type, the token table and the output too, where the mixtures
    spend more bits on them (`llama-quantize --pure`). `values` is what the attention's value
    matrices get all the same: they are few, and an error in them goes into every answer.
    """

    base: str
    file_type: int
    is_pure: bool = False
    values: str = ""


FORMATS: dict[str, Format] = {
    "F16": Format("F16", 1), "BF16": Format("BF16", 32), "Q8_0": Format("Q8_0", 7),
    "Q6_K": Format("Q6_K", 18), "Q5_K_M": Format("Q5_K", 17), "Q5_K_S": Format("Q5_K", 16),
    "Q5_1": Format("Q5_1", 9), "Q5_0": Format("Q5_0", 8), "Q4_K_M": Format("Q4_K", 15),
    "Q4_K_S": Format("Q4_K", 14), "Q4_1": Format("Q4_1", 3), "Q4_0": Format("Q4_0", 2),
    "IQ4_NL": Format("IQ4_NL", 25), "IQ4_XS": Format("IQ4_XS", 30), "Q3_K_L": Format("Q3_K", 13),
    "Q3_K_M": Format("Q3_K", 12), "Q3_K_S": Format("Q3_K", 11), "Q2_K": Format("Q2_K", 10),
    "Q4_0-pure": Format("Q4_0", 2, is_pure=True),
    "Q4_0-pure-v8": Format("Q4_0", 2, is_pure=True, values="Q8_0"),
}  # fmt: skip
"""Formats that need no importance matrix."""

TYPE_IDS = {name: type_id for type_id, (name, _, _) in GGML_TYPES.items()}

UNKNOWN_RULES = ("falcon", "glm5-next", "bailingmoe3")
"""Architectures for which llama.cpp has rules of its own that are not followed here."""

_KEPT_NAMES = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos",
    ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_PATTERN = re.compile(r"time_mix_(?:[wa][012]|[vg][12]|v0|decay_w[12])\.weight")
_CATEGORIES = (
    ("attn_qkv.weight", "qkv"), ("attn_kv_b.weight", "kv_b"), ("attn_v.weight", "v"),
    ("attn_k.weight", "k"), ("attn_q.weight", "q"), ("attn_output.weight", "attn_output"),
    ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
_LAYER = re.compile(r"^blk\.(\d+)\.")
_SMALLER_BLOCKS = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}  # fmt: skip
"""Type with blocks of 256 → what takes its place where a row is no multiple of 256."""


@dataclass(frozen=True)
class Target:
    """A tensor and the type that it gets."""

    tensor: TensorInfo
    type_name: str

    @property
    def type_id(self) -> int:
        """ggml's number of the type; the tensor's own where the name is in no table."""
        return TYPE_IDS.get(self.type_name, self.tensor.type_id)

    @property
    def is_copied(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.type_id == self.tensor.type_id

    @property
    def bytes(self) -> int:
        """The bytes its data will take."""
        if self.is_copied:
            return self.tensor.bytes
        _, block, size = GGML_TYPES[self.type_id]
        return self.tensor.elements // block * size


@dataclass(frozen=True)
class _Traits:
    """What of a model the rules ask for."""

    layers: int
    sharing: int
    experts: int
    is_70b: bool
    has_output: bool


def target_types(header: GgufHeader, quantization: str) -> tuple[Target, ...]:
    """Return each tensor's type under a quantization, in the order llama.cpp writes them.

    Raises:
        KeyError: `quantization` is not in `FORMATS`.
    """
    form = FORMATS[quantization]
    tensors = sorted(header.tensors, key=_order)
    traits = _traits_of(header)
    values = [t for t in tensors if _category(t.name) in ("v", "qkv", "kv_b")]
    downs = [t for t in tensors if _category(t.name) == "down" and may_quantize(t)]
    place = {tensor.name: (index, len(values)) for index, tensor in enumerate(values)}
    place |= {tensor.name: (index, traits.layers) for index, tensor in enumerate(downs)}
    targets = []
    for tensor in tensors:
        wanted = tensor.type_name
        if may_quantize(tensor):
            wanted = form.base
            if form.base not in ("F16", "BF16"):
                chosen = form.base
                if form.values and _category(tensor.name) == "v":
                    chosen = form.values
                if not form.is_pure:
                    chosen = _mixed(quantization, tensor, traits, place.get(tensor.name, (0, 1)))
                wanted = _fitting(chosen, tensor)
        targets.append(Target(tensor, wanted))
    return tuple(targets)


def predict_file_bytes(header: GgufHeader, targets: tuple[Target, ...]) -> int:
    """Predict the file's size; right to the byte where the header keeps its length."""
    alignment = header.integer("general.alignment") or 32
    return header.data_offset + sum(-(-t.bytes // alignment) * alignment for t in targets)


def may_quantize(tensor: TensorInfo) -> bool:
    """Tell whether llama.cpp quantizes a tensor at all: matrices of weights, not the small ones."""
    name = tensor.name
    return (
        tensor.is_known
        and sum(size > 1 for size in tensor.shape[1:]) > 0
        and name.endswith("weight")
        and name not in _KEPT_WHOLE_NAMES
        and not any(part in name for part in _KEPT_NAMES)
        and not _KEPT_PATTERN.search(name)
    )


def _order(tensor: TensorInfo) -> tuple[int, bytes]:
    match = _LAYER.match(tensor.name)
    return (int(match[1]) if match else -1, tensor.name.encode())


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def _traits_of(header: GgufHeader) -> _Traits:
    architecture = header.text("general.architecture")
    layers = header.integer(f"{architecture}.block_count")
    heads = header.per_layer(f"{architecture}.attention.head_count", 1)[0]
    kv_heads = header.per_layer(f"{architecture}.attention.head_count_kv", 1, heads)[0]
    is_70b = layers == 80 and (
        architecture in ("qwen2", "deci", "olmo") or (architecture == "llama" and heads != kv_heads)
    )
    return _Traits(
        layers=layers,
        sharing=heads // kv_heads if kv_heads else 0,
        experts=header.integer(f"{architecture}.expert_count"),
        is_70b=is_70b or (architecture == "jais2" and layers == 68),
        has_output=any(tensor.name == "output.weight" for tensor in header.tensors),
    )


def _mixed(quantization: str, tensor: TensorInfo, traits: _Traits, place: tuple[int, int]) -> str:
    """Return the type that the mixture gives a tensor, whatever its shape."""
    base = FORMATS[quantization].base
    category = _category(tensor.name)
    if category == "output" or (category == "embedding" and not traits.has_output):
        fits = tensor.shape[0] % GGML_TYPES[TYPE_IDS[base]][1] == 0
        return "Q6_K" if fits and base != "Q8_0" else "Q8_0"
    if category in ("v", "qkv", "kv_b"):
        return _value_type(quantization, base, traits, place)
    if category == "k" and traits.experts == 8:
        return "Q8_0"
    if category == "down":
        layer = _LAYER.match(tensor.name)
        index = int(layer[1]) if layer and traits.experts > 1 else place[0]
        return _down_type(quantization, base, index, traits.layers)
    if category == "attn_output":
        return _attention_output_type(quantization, base, traits.experts)
    return base


def _value_type(quantization: str, base: str, traits: _Traits, place: tuple[int, int]) -> str:
    index, count = place
    chosen = base
    if quantization == "Q2_K":
        chosen = "Q4_K" if traits.sharing >= 4 else "Q3_K"
    elif quantization == "Q3_K_M":
        chosen = "Q5_K" if index < 2 else "Q4_K"
    elif quantization == "Q3_K_L" or (quantization in ("IQ4_NL", "IQ4_XS") and traits.sharing >= 4):
        chosen = "Q5_K"
    elif quantization in ("Q4_K_M", "Q5_K_M") and _gets_more_bits(index, count):
        chosen = "Q6_K"
    elif quantization == "Q4_K_S" and index < 4:
        chosen = "Q5_K"
    if traits.is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if traits.experts == 8 else chosen


def _down_type(quantization: str, base: str, layer: int, layers: int) -> str:
    is_early = layer < layers // 8
    if quantization == "Q2_K":
        return "Q3_K"
    if quantization == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if quantization == "Q3_K_L":
        return "Q5_K"
    if quantization in ("Q4_K_M", "Q5_K_M") and _gets_more_bits(layer, layers):
        return "Q6_K"
    if quantization in ("IQ4_NL", "IQ4_XS", "Q4_K_S") and is_early:
        return "Q5_K"
    return base


def _attention_output_type(quantization: str, base: str, experts: int) -> str:
    if experts == 8:
        few = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if quantization in few else base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(quantization, base)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Tell whether a mixture of medium size spends more bits on this layer."""
    eighth = layers // 8
    if layer < eighth or layer >= 7 * layers // 8:
        return True
    return (layer - eighth) % 3 == 2


def _fitting(type_name: str, tensor: TensorInfo) -> str:
    """Return the type, or what takes its place where the rows are no multiple of its blocks."""
    if tensor.shape[0] % GGML_TYPES[TYPE_IDS[type_name]][1] == 0:
        return type_name
    smaller = _SMALLER_BLOCKS.get(type_name, type_name)
    return smaller if tensor.shape[0] % GGML_TYPES[TYPE_IDS[smaller]][1] == 0 else "F16"
