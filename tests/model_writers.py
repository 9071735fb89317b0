"""Writes small models in every form that is read: GGUF, parts, checkpoints, caches, stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

Tensors = Mapping[str, tuple[int, ...]]

TINY: Tensors = {
    "token_embd.weight": (16, 64),
    "blk.0.attn_q.weight": (64, 64),
    "blk.1.attn_q.weight": (64, 64),
    "output_norm.weight": (64,),
}
METADATA: Mapping[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(16)],
    "tokenizer.chat_template": "{% if tools %}<tool_call>{% endif %}",
}


def write_gguf(path: Path, metadata: Mapping[str, Any] = METADATA, tensors: Tensors = TINY) -> Path:
    """Write a llama of two layers with the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_parts(folder: Path, count: int = 2, stem: str = "tiny") -> list[Path]:
    """Write the same model in parts, as `llama-gguf-split` does: the metadata in the first."""
    paths = []
    names = list(TINY)
    for number in range(count):
        path = folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(TINY)}
        mine = {name: TINY[name] for name in names[number::count]}
        write_gguf(path, {**(METADATA if number == 0 else {}), **split}, mine)
        paths.append(path)
    return paths


CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 2048,
}


def write_checkpoint(
    folder: Path, config: Mapping[str, Any] = CONFIG, arrays: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint in two shards with its index, tokenizer_config and model card."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = arrays or {
        "model.embed_tokens.weight": np.zeros((16, 64), dtype=np.float16),
        "model.layers.0.self_attn.q_proj.weight": np.zeros((64, 64), dtype=np.float16),
        "model.layers.1.mlp.up_proj.weight": np.zeros((128, 64), dtype=np.float16),
        "lm_head.weight": np.zeros((16, 64), dtype=np.float16),
    }
    names = list(arrays)
    weight_map: dict[str, str] = {}
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        mine = {name: arrays[name] for name in names[number::2]}
        save_file(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    template = "{% if tools %}[TOOL_CALLS]{% endif %}"
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "chat_template": template}
    for name, document in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer),
        ("model.safetensors.index.json", {"weight_map": weight_map}),
    ):
        (folder / name).write_text(json.dumps(document))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: []\n---\n# Tiny\n")
    return folder


def write_cache(cache: Path, repository: str = "me/tiny") -> Path:
    """Write a repository of the hub's cache with the checkpoint; return its folder."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    write_checkpoint(folder / "snapshots" / "abc123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    return folder


def write_store(store: Path, name: str = "tiny", tag: str = "1b") -> Path:
    """Write a model of Ollama's store with template, license and projector; return its manifest."""
    blobs = store / "blobs"
    blobs.mkdir(parents=True)
    draft = write_gguf(store / "draft")
    kinds = {
        "model": draft.read_bytes(),
        "projector": b"GGUF",
        "template": b"{{ if .Tools }}{{ .Prompt }}{{ end }}",
        "license": b"\nMIT License\n\nwords\n",
    }
    draft.unlink()
    layers = []
    for kind, content in kinds.items():
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)})
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / name / tag
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest
