"""Write a GGUF file of a shape with random weights, which llama.cpp loads and serves.

    ./dev bench random_gguf llama-3.2-1b Q4_K_M /tmp/model.gguf

The weights mean nothing, but they take the same bytes and the same time as trained ones. The
tokenizer is a real byte-level BPE with as many tokens and merges as the shape's model has. A block
format's scales are small, so that activations stay finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.shapes import SHAPES, Shape, Tensor, metadata_of, tensors_of  # noqa: E402

TILE_BLOCKS = 4096
SCALE = 0.002
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

PLAIN = {"F16": Type.F16, "BF16": Type.BF16, "F32": Type.F32}
MIXES: dict[str, dict[str, Type]] = {
    **{name: dict.fromkeys(("matrix", "output"), type_) for name, type_ in PLAIN.items()},
    "Q8_0": {"matrix": Type.Q8_0, "output": Type.Q8_0},
    "Q4_0": {"matrix": Type.Q4_0, "output": Type.Q6_K},
    "Q4_1": {"matrix": Type.Q4_1, "output": Type.Q6_K},
    "Q5_0": {"matrix": Type.Q5_0, "output": Type.Q6_K},
    "IQ4_NL": {"matrix": Type.IQ4_NL, "output": Type.Q6_K},
    "Q4_K_M": {"matrix": Type.Q4_K, "output": Type.Q6_K, "qkv": Type.Q5_K},
    "Q5_K_M": {"matrix": Type.Q5_K, "output": Type.Q6_K, "qkv": Type.Q6_K},
    "Q6_K": {"matrix": Type.Q6_K, "output": Type.Q6_K},
}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""Where a row is no multiple of 256 (`tensor_type_fallback` in llama.cpp's llama-quant.cpp)."""


def type_of(shape: Shape, mix: str, tensor: Tensor) -> Type:
    """Return the type that `llama-quantize` gives a tensor in a mix (its main rules)."""
    name, dimensions, kind = tensor
    types = MIXES[mix]
    if kind == "f32":
        return Type.F32
    if kind in ("embedding", "output"):
        tied_or_output = kind == "output" or shape.is_tied
        chosen = types["output"] if tied_or_output else types["matrix"]
    elif mix.endswith("_M") and kind in ("value", "down"):
        more = uses_more_bits(int(name.split(".")[1]), shape.layers)
        chosen = Type.Q6_K if more else types["matrix"]
    else:
        chosen = types.get(kind, types["matrix"])
    return FALLBACK.get(chosen, chosen) if dimensions[0] % 256 else chosen


def uses_more_bits(layer: int, layers: int) -> bool:
    """Whether a `_M` mix gives a layer more bits (`use_more_bits` in llama-quant.cpp)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def write_random_gguf(
    path: Path, shape: Shape, mix: str, seed: int = 1, is_hollow: bool = False
) -> Path:
    """Write a shape as a GGUF file with random weights of one mix of types.

    A hollow file has the right size and a hole in place of its weights: only its header is of use.
    """
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name("random weights")
    writer.add_license("CC0-1.0")
    add_metadata(writer, shape)
    add_tokenizer(writer, shape)
    tensors = [(tensor, type_of(shape, mix, tensor)) for tensor in tensors_of(shape)]
    for (name, dimensions, _), kind in tensors:
        size = byte_size(dimensions, kind)
        writer.add_tensor_info(
            name, list(reversed(dimensions)), np.dtype(np.float32), size, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if is_hollow:
        writer.close()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + 32 + sum(_padded_sizes(tensors)))
        return path
    tiles = {kind: random_tile(kind, generator) for _, kind in tensors}
    for (name, dimensions, _), kind in tensors:
        size = byte_size(dimensions, kind)
        if kind is Type.F32:
            writer.write_tensor_data(small_tensor(name, dimensions, generator))
        else:
            writer.write_tensor_data(np.resize(tiles[kind], size))
    writer.close()
    return path


def _padded_sizes(tensors: list[tuple[Tensor, Type]]) -> Iterator[int]:
    for (_, dimensions, _), kind in tensors:
        yield -(-byte_size(dimensions, kind) // 32) * 32


def byte_size(dimensions: tuple[int, ...], kind: Type) -> int:
    """Return a tensor's bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(dimensions)) // block * size


def small_tensor(
    name: str, dimensions: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return a norm (ones), a state's decay (negative) or a small random tensor."""
    shape = tuple(reversed(dimensions))
    if "norm" in name or name.endswith("ssm_d"):
        return np.ones(shape, dtype=np.float32)
    if name.endswith("ssm_a"):
        return np.full(shape, -1.0, dtype=np.float32)
    return (generator.standard_normal(shape) * 0.02).astype(np.float32)


def random_tile(kind: Type, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return some random blocks of a type, with sane scales, to be repeated over a tensor."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = (generator.standard_normal(TILE_BLOCKS * block) * 0.02).astype(np.float32)
    if kind is Type.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind is Type.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if kind is Type.F32:
        return values.view(np.uint8)
    tile = generator.integers(0, 256, (TILE_BLOCKS, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(SCALE).tobytes(), dtype=np.uint8)
    for offset in SCALE_OFFSETS[kind]:
        tile[:, offset : offset + 2] = scale
    return tile.reshape(-1)


SCALE_OFFSETS: dict[Type, tuple[int, ...]] = {
    Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,),
    Type.IQ4_NL: (0,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,),
}  # fmt: skip
"""Where the half-precision scales stand in a block (ggml's `ggml-common.h`)."""


def add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Write the architecture's keys."""
    for name, value in metadata_of(shape).items():
        key = f"{shape.architecture}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def add_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Write a byte-level BPE tokenizer of the shape's size."""
    tokens, merges = tokenizer_of(shape)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    special = (gguf.TokenType.CONTROL,) * 2
    writer.add_token_types(special + (gguf.TokenType.NORMAL,) * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT_TEMPLATE)


def tokenizer_of(shape: Shape) -> tuple[list[str], list[str]]:
    """Return tokens (control, bytes, then pairs of what is before) and the merges that make them.

    Beyond one merge a token, further merges that make the same tokens otherwise.
    """
    letters = list(gguf_bytes())
    tokens = ["<|begin|>", "<|end|>", *letters]
    merges: list[str] = []
    wanted = shape.vocabulary - len(tokens)
    halves = [f"{a}{b}" for a, b in product("etaoinshrdlucmfwygpbvkxqjz", repeat=2)]
    for left, right in _pairs(halves):
        if len(merges) == wanted:
            break
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    most = len(merges) if shape.merges < 0 else shape.merges
    for token in tokens[2 + len(letters) + len(halves) :]:
        if len(merges) >= most:
            break
        merges += [f"{token[0]} {token[1:]}", f"{token[:3]} {token[3:]}"]
    return tokens, merges[:most] if shape.merges > 0 else merges


def _pairs(halves: list[str]) -> Iterator[tuple[str, str]]:
    yield from ((half[0], half[1]) for half in halves)
    yield from product(halves, repeat=2)


def gguf_bytes() -> Iterator[str]:
    """Yield the characters by which byte-level BPE writes the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from (chr(code) for code in printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("mix", choices=sorted(MIXES))
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    path = write_random_gguf(options.path, SHAPES[options.shape], options.mix)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
