"""Read a GGUF header: bounded in time and memory, whatever the file claims.

Our own reader, since the `gguf` package maps the file and builds an array for every one of a
vocabulary's tokens; `docs/adr/0002` tells. A test holds the two against each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from pathlib import Path

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.gguf_header import GgufHeader, Scalar, TensorInfo
from enginehouse.edges.byte_sources import ByteSource, LocalFile, file_error
from enginehouse.edges.cursor import Cursor, DamagedError

SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
MOST_METADATA, MOST_TENSORS, MOST_DIMENSIONS = 4096, 16_384, 4
MOST_KEY_BYTES, MOST_NAME_BYTES = 65_535, 128
KEPT_STRING_BYTES, KEPT_BYTES = 1 << 20, 16 << 20
MOST_ARRAY_ITEMS, MOST_STRINGS = 10_000_000, 2_000_000
KEPT_ITEMS, MOST_KEPT_ITEMS, KEPT_TEXTS = 4096, 400_000, 16
OTHER_FORMATS = {
    b"vers": "a Git LFS pointer, not the file it points to",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"PK\x03\x04": "a zip archive, as PyTorch checkpoints are",
    b"ggjt": "the old GGJT format, from before GGUF",
    b"ggml": "the old GGML format, from before GGUF",
    b"ggla": "the old GGLA format of adapters, from before GGUF",
    b"FUGG": "a big-endian GGUF file",
}


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header (versions 2 and 3, little-endian).

    Raises:
        UserError: `model.file.*`: missing, unreadable, empty, not_gguf, old_version, damaged,
            truncated.
    """
    source = LocalFile(path)
    try:
        return read_gguf(source)
    finally:
        source.close()


def read_gguf(source: ByteSource) -> GgufHeader:
    """Read a GGUF header from bytes wherever they are.

    Raises:
        UserError: `model.file.*`, as `read_gguf_header`.
        MachineError: `network.unreachable`.
    """
    try:
        header = _Reader(source).read()
    except (DamagedError, struct.error, OverflowError) as problem:
        what = f"its header is damaged: {problem}"
        raise file_error(source.name, source.place, "damaged", what) from problem
    end = max((header.data_offset + t.offset + t.bytes for t in header.tensors), default=0)
    if end > source.size:
        what = f"it ends too early: {source.size:,} bytes of {end:,} that its header announces"
        raise file_error(source.name, source.place, "truncated", what)
    return header


class _Reader:
    """Reads forward only; every length is checked against the file before it is believed."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._cursor = Cursor(source)
        self._metadata: dict[str, Scalar] = {}
        self._arrays: dict[str, tuple[Scalar, ...]] = {}
        self._lengths: dict[str, int] = {}
        self._long: dict[str, int] = {}
        self._texts: dict[str, tuple[str, ...]] = {}
        self._room = {"bytes": KEPT_BYTES, "items": MOST_KEPT_ITEMS, "strings": MOST_STRINGS}

    def read(self) -> GgufHeader:
        self._read_magic()
        tensor_count = self._cursor.count("<Q", MOST_TENSORS, "tensors")
        metadata_count = self._cursor.count("<Q", MOST_METADATA, "metadata entries")
        for _ in range(metadata_count):
            self._read_entry()
        tensors = self._tensors(tensor_count)
        alignment = self._metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & alignment - 1:
            raise DamagedError(f"an alignment of {alignment}")
        data_offset = -(-self._cursor.position // alignment) * alignment
        return GgufHeader(
            self._version,
            self._metadata,
            {key: values for key, values in self._arrays.items() if values},
            self._lengths,
            with_gaps(tensors, max(0, self._source.size - data_offset)),
            data_offset,
            self._source.size,
            self._long,
            self._texts,
            self._cursor.digest(),
        )

    def _read_magic(self) -> None:
        source = self._source
        if source.size == 0:
            raise file_error(source.name, source.place, "empty", "it has no bytes")
        if source.size < 4:
            what = "it is not GGUF: it has fewer than 4 bytes"
            raise file_error(source.name, source.place, "not_gguf", what)
        magic = self._cursor.take(4)
        if magic != b"GGUF":
            known = OTHER_FORMATS.get(magic, f"it begins with {magic!r}, GGUF with b'GGUF'")
            what = f"it is not GGUF but {known}"
            raise file_error(source.name, source.place, "not_gguf", what)
        self._version = self._cursor.number("<I")
        if self._version not in (2, 3):
            swapped = self._version & 0xFFFF == 0 and self._version != 0
            what = (
                "it is big-endian GGUF, which this machine's engines do not read"
                if swapped
                else f"its GGUF version is {self._version}, not 2 or 3"
            )
            raise file_error(source.name, source.place, "old_version", what)

    def _read_entry(self) -> None:
        key = self._text(MOST_KEY_BYTES)
        if key in self._metadata or key in self._lengths or key in self._long:
            raise DamagedError(f"the key {key[:80]!r} twice")
        kind = self._cursor.number("<I")
        if kind == ARRAY:
            self._lengths[key] = self._array(key)
        elif kind == STRING:
            size = self._cursor.number("<Q")
            if size > KEPT_STRING_BYTES:
                self._cursor.skip(size)
                self._long[key] = size
            else:
                self._metadata[key] = self._decoded(size)
        elif kind in SCALARS:
            self._metadata[key] = self._cursor.value(SCALARS[kind])
        else:
            raise DamagedError(f"a value of the unknown type {kind}")

    def _text(self, most: int) -> str:
        return self._decoded(self._cursor.count("<Q", most, "bytes of text"))

    def _decoded(self, size: int) -> str:
        self._use("bytes", size)
        return self._cursor.take(size).decode(errors="replace")

    def _use(self, what: str, count: int) -> None:
        self._room[what] -= count
        if self._room[what] < 0:
            raise DamagedError(f"more {what} in its metadata than any model has")

    def _array(self, key: str) -> int:
        kind = self._cursor.number("<I")
        count = self._cursor.count("<Q", MOST_ARRAY_ITEMS, "items in an array")
        if kind == STRING:
            self._use("strings", count)
            if count <= KEPT_TEXTS:
                self._texts[key] = tuple(self._text(MOST_KEY_BYTES) for _ in range(count))
            else:
                self._cursor.skip_strings(count)
            return count
        if kind not in SCALARS:
            raise DamagedError(f"an array of the unknown type {kind}")
        size = struct.calcsize(SCALARS[kind])
        if count > min(KEPT_ITEMS, self._room["items"]):
            self._cursor.skip(count * size)
            return count
        self._room["items"] -= count
        data = self._cursor.take(count * size)
        self._arrays[key] = struct.unpack(f"<{count}{SCALARS[kind][1]}", data)
        return count

    def _tensors(self, count: int) -> list[TensorInfo]:
        names: set[str] = set()
        tensors = []
        for _ in range(count):
            tensor = self._tensor()
            if tensor.name in names:
                raise DamagedError(f"two tensors have the name {tensor.name!r}")
            names.add(tensor.name)
            tensors.append(tensor)
        return tensors

    def _tensor(self) -> TensorInfo:
        name = self._text(MOST_NAME_BYTES)
        dimensions = self._cursor.count("<I", MOST_DIMENSIONS, "dimensions")
        rest = struct.unpack(f"<{dimensions}QIQ", self._cursor.take(8 * dimensions + 12))
        shape, (type_id, offset) = rest[:dimensions], rest[dimensions:]
        tensor = TensorInfo(name, shape, type_id, offset)
        if any(size == 0 for size in shape) or tensor.elements > 1 << 50 or offset > 1 << 50:
            raise DamagedError(f"tensor {name!r} has the shape {shape} at {offset:,}")
        block = GGML_TYPES.get(type_id, ("", 1, 0))[1]
        if shape and shape[0] % block:
            raise DamagedError(f"tensor {name!r}: rows of {shape[0]} in blocks of {block}")
        return tensor


def with_gaps(tensors: list[TensorInfo], data_bytes: int) -> tuple[TensorInfo, ...]:
    """Give tensors of an unknown type the room up to the next tensor or the data's end."""
    if all(tensor.is_known for tensor in tensors):
        return tuple(tensors)
    starts = sorted({tensor.offset for tensor in tensors} | {data_bytes})
    after = dict(itertools.pairwise(starts))
    return tuple(
        tensor
        if tensor.is_known
        else dataclasses.replace(
            tensor, gap_bytes=max(0, after.get(tensor.offset, tensor.offset) - tensor.offset)
        )
        for tensor in tensors
    )
