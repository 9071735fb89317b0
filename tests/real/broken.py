"""A small llama that llama.cpp can serve, and the ways in which it can be broken.

The weights are noise; the tokenizer knows each byte. Loading it takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH = 64
CONTEXT = 4096
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MERGES = ["t h"]


def byte_tokens() -> list[str]:
    """Return GPT-2's visible stand-ins for the 256 bytes (its published byte encoder)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(spare)) for byte in range(256)]


TOKENS = [*byte_tokens(), "th", "<|end|>"]
METADATA: Mapping[str, Any] = {
    "llama.block_count": 1,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": WIDTH,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 1) + [3],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": len(TOKENS) - 1,
    "tokenizer.chat_template": TEMPLATE,
}
TENSORS: Mapping[str, tuple[int, ...]] = {
    "token_embd.weight": (len(TOKENS), WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH, WIDTH),
    "blk.0.attn_v.weight": (WIDTH, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (WIDTH, WIDTH),
    "blk.0.ffn_up.weight": (WIDTH, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, WIDTH),
}


def write_llama(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    architecture: str = "llama",
    split: tuple[int, int, int] | None = None,
) -> Path:
    """Write the model, with some keys or tensors changed; None leaves one out.

    `split` says that it is one part: its number, how many parts and how many tensors there are.
    """
    writer = gguf.GGUFWriter(path, architecture)
    if split is not None:
        number, count, tensor_count = split
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", tensor_count)
    for key, value in {**METADATA, **(metadata or {})}.items():
        if value is not None:
            _add(writer, key, value)
    noise = np.random.default_rng(1)
    for name, shape in {**TENSORS, **(tensors or {})}.items():
        if shape is not None:
            weights = noise.normal(0, 0.05, shape) + (1.0 if name.endswith("norm.weight") else 0.0)
            writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_array(key, value)


def patch(path: Path, offset: int, data: bytes) -> Path:
    """Write bytes over a place of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path
