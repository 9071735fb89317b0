"""Turn a GGUF file of the llama architecture into a safetensors checkpoint in bfloat16.

    .venv/bin/python benchmarks/checkpoint_of_gguf.py MODEL.gguf FOLDER

So that engines that read safetensors are measured with the very weights that llama.cpp serves: the
quantized values are dequantized, not fetched from anywhere. The rows of q and k are put back into
the order that Hugging Face's Llama has them in (llama.cpp pairs a rotary dimension with its
neighbour, Llama with the one half a head away). The tokenizer is byte-level BPE as SmolLM2's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy

LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that are no text, as `<|im_start|>`."""


def main() -> None:
    """Write the checkpoint and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(write_checkpoint(options.model, options.folder))


def write_checkpoint(model: Path, folder: Path) -> Path:
    """Write weights, config and tokenizer; return the folder."""
    reader = gguf.GGUFReader(model)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise SystemExit(f"{model} is a {fields['general.architecture']}, not a llama")
    folder.mkdir(parents=True, exist_ok=True)
    heads = int(fields["llama.attention.head_count"])
    kv_heads = int(fields["llama.attention.head_count_kv"])
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        if name is None:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if ".self_attn.q_proj." in name:
            values = unpaired(values, heads)
        if ".self_attn.k_proj." in name:
            values = unpaired(values, kv_heads)
        tensors[name] = (list(values.shape), bfloat16(values))
    write_safetensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config_of(fields, "lm_head.weight" not in tensors))
    write_tokenizer(fields, folder)
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[list[int], bytes]]) -> None:
    """Write the format by hand: its Python package takes bfloat16 only from torch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in tensors.items():
        header[name] = {
            "dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + len(data)],
        }  # fmt: skip
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(data)


def hugging_face_name(name: str) -> str | None:
    """Return Hugging Face's name of a tensor, None for what it computes by itself."""
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    _, _, rest = name.partition("blk.")
    layer, _, rest = rest.partition(".")
    theirs = LAYER_TENSORS.get(rest.removesuffix(".weight"))
    return f"model.layers.{layer}.{theirs}.weight" if theirs else None


def unpaired(values: Any, heads: int) -> Any:
    """Undo the interleaving of rotary pairs that llama.cpp's converter applies to q and k."""
    rows, columns = values.shape
    return (
        values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def bfloat16(values: Any) -> bytes:
    """Round to nearest even, as hardware does."""
    bits = numpy.ascontiguousarray(values).view(numpy.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return bytes((rounded >> 16).astype(numpy.uint16).tobytes())


def config_of(fields: dict[str, Any], ties: bool) -> dict[str, Any]:
    """Return config.json, with the rotary base under transformers 5's name and the older one."""
    heads = int(fields["llama.attention.head_count"])
    base = float(fields.get("llama.rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": int(fields["llama.embedding_length"]) // heads,
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "max_position_embeddings": int(fields["llama.context_length"]),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_act": "silu",
        "tie_word_embeddings": ties,
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
    }


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and its configuration with the chat template."""
    tokens = list(fields["tokenizer.ggml.tokens"])
    types = list(fields["tokenizer.ggml.token_type"])
    added = [
        {
            "id": number, "content": token, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for number, token in enumerate(tokens)
        if types[number] == CONTROL_TOKEN
    ]  # fmt: skip
    pieces = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True},
        ],
    }  # fmt: skip
    decoder = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    merges = [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pieces,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip
    write_json(folder / "tokenizer.json", document)
    end = tokens[int(fields["tokenizer.ggml.eos_token_id"])]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[int(fields["tokenizer.ggml.bos_token_id"])],
            "eos_token": end,
            "pad_token": end,
            "model_max_length": int(fields["llama.context_length"]),
            "clean_up_tokenization_spaces": False,
            "chat_template": fields.get("tokenizer.chat_template", ""),
        },
    )


def write_json(path: Path, document: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()
