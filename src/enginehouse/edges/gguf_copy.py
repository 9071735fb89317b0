"""Write a GGUF file with another's metadata, byte for byte, and tensors of other types.

The keys that llama.cpp changes when it quantizes are changed here too: `general.file_type`,
`general.quantization_version`, and those that say which part of several a file is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.quant_types import Target
from enginehouse.edges.gguf_file import ARRAY, SCALARS, STRING, read_gguf_header
from enginehouse.edges.gguf_parts import part_paths

UINT32 = 4
QUANTIZATION_VERSION = 2
"""`GGML_QNT_VERSION` in ggml.h of llama.cpp b11549."""
DROPPED = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are in a source of one or several files."""

    path: Path
    offset: int


def tensor_places(path: Path) -> dict[str, Place]:
    """Return where each tensor's bytes are, over all parts of the model.

    Raises:
        UserError: `model.file.*`.
    """
    places = {}
    for part in part_paths(path):
        header = read_gguf_header(part)
        for tensor in header.tensors:
            places[tensor.name] = Place(part, header.data_offset + tensor.offset)
    return places


def build_header(path: Path, targets: Sequence[Target], file_type: int, alignment: int) -> bytes:
    """Return the new file's header, padded: the source's metadata, the new tensors' table."""
    first = part_paths(path)[0]
    size = read_gguf_header(first).data_offset
    with first.open("rb") as file:
        head = file.read(size)
    new = {
        "general.quantization_version": _number(
            "general.quantization_version", QUANTIZATION_VERSION
        ),
        "general.file_type": _number("general.file_type", file_type),
    }
    entries = [data for key, data in split_entries(head) if key not in DROPPED and key not in new]
    entries += new.values()
    body = b"".join(
        (b"GGUF", struct.pack("<IQQ", 3, len(targets), len(entries)), *entries, *_table(targets,
        alignment))
    )  # fmt: skip
    return body + bytes(-len(body) % alignment)


def split_entries(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield each metadata entry's key and its bytes, of a header that was read and found sound."""
    at = 24
    for _ in range(struct.unpack_from("<Q", head, 16)[0]):
        start = at
        length = struct.unpack_from("<Q", head, at)[0]
        key = head[at + 8 : at + 8 + length].decode(errors="replace")
        at += 8 + length
        kind = struct.unpack_from("<I", head, at)[0]
        at = _end_of(head, at + 4, kind)
        yield key, head[start:at]


def _end_of(head: bytes, at: int, kind: int) -> int:
    """Return where a value of a kind that starts at `at` ends."""
    if kind == STRING:
        return at + 8 + int(struct.unpack_from("<Q", head, at)[0])
    if kind != ARRAY:
        return at + struct.calcsize(SCALARS[kind])
    item, count = struct.unpack_from("<IQ", head, at)
    at += 12
    if item != STRING:
        return at + int(count) * struct.calcsize(SCALARS[item])
    for _ in range(count):
        at += 8 + int(struct.unpack_from("<Q", head, at)[0])
    return at


def _number(key: str, value: int) -> bytes:
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<II", UINT32, value)


def _table(targets: Iterable[Target], alignment: int) -> Iterator[bytes]:
    """Yield each tensor's entry; the data follow one another, each padded to the alignment."""
    offset = 0
    for target in targets:
        name, shape = target.tensor.name.encode(), target.tensor.shape
        yield struct.pack("<Q", len(name)) + name
        yield struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, target.type_id, offset)
        offset += -(-target.bytes // alignment) * alignment
