"""One function that runs every reader on bytes: for the fuzzers, and for the replay of their finds.

The first byte chooses the reader, the second how much of nothing follows the bytes, as in a sparse
file. Anything but facts or an `EnginehouseError` is a find.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

from enginehouse.cli_model_text import layers_text, model_text
from enginehouse.core.errors import EnginehouseError, render_error
from enginehouse.core.gguf_split import SplitError, SplitName, join_headers
from enginehouse.core.model import Model
from enginehouse.core.model_facts import model_of
from enginehouse.core.ollama_store import ManifestError, layers_of
from enginehouse.core.safetensors_facts import Checkpoint, model_of_checkpoint
from enginehouse.core.safetensors_header import HeaderError
from enginehouse.edges.byte_sources import ByteSource
from enginehouse.edges.checkpoint_folder import read_checkpoint
from enginehouse.edges.gguf_file import read_gguf
from enginehouse.edges.safetensors_file import parse_json, read_safetensors

NOTHING = (0, 1 << 12, 1 << 24, 1 << 36)
"""How many zero bytes may follow: a claim of 64 GiB costs a sparse file nothing."""


class MemoryBytes:
    """Bytes with nothing after them, as a source."""

    def __init__(self, data: bytes, nothing: int = 0, name: str = "fuzzed") -> None:
        self.name, self.place, self.step = name, f"/{name}", 1 << 16
        self._data = data
        self.size = len(data) + nothing

    def read_at(self, offset: int, count: int) -> bytes:
        """Return the bytes there, zeros beyond the data."""
        count = max(0, min(count, self.size - offset))
        return self._data[offset : offset + count].ljust(count, b"\0")

    def close(self) -> None:
        """Do nothing."""


class MemoryFolder:
    """A folder of such files."""

    name, place = "fuzzed", "/fuzzed"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def names(self) -> tuple[str, ...]:
        """Return the names."""
        return tuple(self._files)

    def open(self, name: str) -> ByteSource:
        """Open a file."""
        return MemoryBytes(self._files[name], name=name)


def check(data: bytes) -> str:
    """Run the reader that the data chooses; return `facts` or the error's id."""
    if len(data) < 2:
        return "facts"
    reader = READERS[data[0] % len(READERS)]
    try:
        reader(data[2:], NOTHING[data[1] % len(NOTHING)])
    except EnginehouseError as problem:
        render_error(problem.report)
        return problem.report.id
    except (HeaderError, ManifestError, SplitError) as problem:
        return type(problem).__name__
    return "facts"


def _show(model: Model) -> None:
    model_text(model)
    layers_text(model)


def _gguf(data: bytes, nothing: int) -> None:
    header = read_gguf(MemoryBytes(data, nothing))
    _show(model_of(header, name="x", path="/x", source="file", digest=""))
    with contextlib.suppress(SplitError):
        join_headers([header, header], SplitName("x", 1, 2, ".gguf"))


def _safetensors(data: bytes, nothing: int) -> None:
    header = read_safetensors(MemoryBytes(data, nothing))
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8}
    _checkpoint(Checkpoint(config, header.tensors, (), (header.digest,)))


def _config(data: bytes, nothing: int) -> None:
    config: dict[str, Any] = parse_json(data, dict[str, Any])
    _checkpoint(Checkpoint(config, (), (), (), tokenizer=config, adapter=config))


def _checkpoint(checkpoint: Checkpoint) -> None:
    _show(model_of_checkpoint(checkpoint, name="x", path="/x", source="file", digest=""))


def _folder(data: bytes, nothing: int) -> None:
    weights = struct.pack("<Q", 2) + b"{}"
    names = ("model.safetensors.index.json", "config.json", "tokenizer_config.json", "README.md")
    files = dict(zip(names, data.split(b"\0", 3), strict=False))
    _checkpoint(read_checkpoint(MemoryFolder({**files, "model.safetensors": weights})))


def _manifest(data: bytes, nothing: int) -> None:
    layers_of(parse_json(data, dict[str, Any]))


READERS: tuple[Callable[[bytes, int], None], ...] = (
    _gguf, _safetensors, _config, _folder, _manifest,
)  # fmt: skip


def text(value: str) -> bytes:
    """Return a string as GGUF writes it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def seeds() -> dict[str, bytes]:
    """Return good inputs of each reader, to start from."""
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("gemma3"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("gemma3.block_count") + struct.pack("<II", 4, 4),
        text("gemma3.attention.sliding_window") + struct.pack("<II", 4, 64),
        text("gemma3.attention.head_count") + struct.pack("<IIQIIII", 9, 4, 4, 8, 8, 4, 4),
        text("gemma3.embedding_length") + struct.pack("<II", 4, 64),
        text("gemma3.context_length") + struct.pack("<IQ", 10, 4096),
        text("gemma3.rope.freq_base") + struct.pack("<If", 6, 1e6),
        text("gemma3.expert_count") + struct.pack("<II", 4, 4),
        text("split.count") + struct.pack("<IH", 2, 2),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") * 3,
        text("tokenizer.chat_template") + struct.pack("<I", 8) + text("{% if tools %}"),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 4, 1, 0),
        text("blk.0.ffn_up_exps.weight") + struct.pack("<IQQQIQ", 3, 32, 2, 4, 8, 512),
        text("blk.1.attn_q.weight") + struct.pack("<IQIQ", 1, 256, 99, 1024),
    ]
    counts = struct.pack("<IQQ", 3, len(tensors), len(entries))
    gguf = b"GGUF" + counts + b"".join(entries) + b"".join(tensors)
    table = (
        b'{"__metadata__":{"format":"pt"},"model.layers.0.mlp.experts.0.w.qweight":{"dtype":"I32",'
        b'"shape":[2,4],"data_offsets":[0,32]},"lm_head.weight":{"dtype":"BF16","shape":[4],'
        b'"data_offsets":[32,40]}}'
    )
    config = (
        b'{"architectures":["X"],"model_type":"jamba","num_hidden_layers":8,"hidden_size":64,'
        b'"num_attention_heads":4,"attn_layer_period":4,"attn_layer_offset":2,"mamba_d_state":16,'
        b'"layer_types":["full_attention","sliding_attention"],"sliding_window":16,'
        b'"quantization_config":{"quant_method":"compressed-tensors","config_groups":{"g":{"weights"'
        b':{"num_bits":4,"group_size":128}}}},"text_config":{"kv_lora_rank":512,"n_routed_experts":'
        b'8,"num_experts_per_tok":2,"rope_scaling":{"rope_type":"yarn","factor":4.0}}}'
    )
    manifest = (
        b'{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:'
        + b"0" * 64 + b'","size":5}]}'
    )  # fmt: skip
    index = b'{"weight_map":{"a":"model.safetensors"}}'
    return {
        "gguf": b"\0\2" + gguf,
        "safetensors": b"\1\0" + struct.pack("<Q", len(table)) + table + bytes(40),
        "config": b"\2\0" + config,
        "folder": b"\3\0" + index + b"\0" + config + b"\0{}\0---\nlicense: mit\n---\n",
        "manifest": b"\4\0" + manifest,
    }
