"""AWQ checkpoints of true shapes: a `config.json` and a safetensors header; the weights are a hole.

The sizes are those of the published `config.json` of hugging-quants/Llama-3.2-3B-Instruct-AWQ and
Qwen/Qwen2.5-Coder-7B-Instruct-AWQ (group size 128, 4 bits, embeddings and head in half precision).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

GROUP, BITS = 128, 4


@dataclass(frozen=True)
class AwqShape:
    """Sizes of a llama-like checkpoint."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    is_tied: bool
    has_bias: bool
    context: int


LLAMA_3B = AwqShape("llama", 28, 3072, 8192, 24, 8, 128256, True, False, 131072)
QWEN_7B = AwqShape("qwen2", 28, 3584, 18944, 28, 4, 152064, False, True, 32768)
TINY = AwqShape("llama", 2, 256, 512, 4, 2, 1024, True, False, 2048)


def write_awq(folder: Path, shape: AwqShape) -> Path:
    """Write the checkpoint's folder and return it; the data is sparse."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=1))
    header: dict[str, object] = {}
    offset = 0
    for name, (kind, dimensions) in tensors_of(shape).items():
        size = 4 if kind == "I32" else 2
        for dimension in dimensions:
            size *= dimension
        header[name] = {
            "dtype": kind, "shape": dimensions, "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def config_of(shape: AwqShape) -> dict[str, object]:
    """Return `config.json`."""
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[shape.model_type]
    return {
        "architectures": [architecture],
        "model_type": shape.model_type,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "awq", "bits": BITS, "group_size": GROUP, "version": "gemm",
            "zero_point": True,
        },
    }  # fmt: skip


def tensors_of(shape: AwqShape) -> dict[str, tuple[str, list[int]]]:
    """Return name → type and dimensions, as AutoAWQ writes them."""
    hidden, kv = shape.hidden, shape.kv_heads * (shape.hidden // shape.heads)
    found: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("F16", [shape.vocabulary, hidden])
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden, kv),
            ("self_attn.v_proj", hidden, kv),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", hidden, shape.intermediate),
            ("mlp.up_proj", hidden, shape.intermediate),
            ("mlp.down_proj", shape.intermediate, hidden),
        ):
            packed = columns * BITS // 32
            found[f"{prefix}.{name}.qweight"] = ("I32", [rows, packed])
            found[f"{prefix}.{name}.qzeros"] = ("I32", [rows // GROUP, packed])
            found[f"{prefix}.{name}.scales"] = ("F16", [rows // GROUP, columns])
            if shape.has_bias and name[-6:-5] in "qkv" and name.startswith("self_attn"):
                found[f"{prefix}.{name}.bias"] = ("F16", [columns])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{norm}.weight"] = ("F16", [hidden])
    found["model.norm.weight"] = ("F16", [hidden])
    if not shape.is_tied:
        found["lm_head.weight"] = ("F16", [shape.vocabulary, hidden])
    return found
