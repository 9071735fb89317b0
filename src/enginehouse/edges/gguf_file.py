"""Read a GGUF header: bounded in time and memory, whatever the file claims.

Our own reader, since the `gguf` package maps the file and builds an array for every one of a
vocabulary's tokens; `docs/adr/0002` tells. A test holds the two against each other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from enginehouse.core.errors import EnginehouseError, UserError
from enginehouse.core.gguf_header import GgufHeader, Scalar, TensorInfo

SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
MOST_METADATA, MOST_TENSORS, MOST_DIMENSIONS = 65_536, 1_000_000, 8
MOST_STRING_BYTES, MOST_ARRAY_ITEMS, KEPT_ITEMS = 16 << 20, 10_000_000, 4096
MOST_HEADER_BYTES = 256 << 20
OTHER_FORMATS = {
    b"vers": "a Git LFS pointer, not the file it points to",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"PK\x03\x04": "a zip archive, as PyTorch checkpoints are",
    b"ggjt": "the old GGJT format, from before GGUF",
    b"ggml": "the old GGML format, from before GGUF",
    b"FUGG": "a big-endian GGUF file",
}


class _DamagedError(Exception):
    pass


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header (versions 2 and 3, little-endian).

    Raises:
        UserError: `model.file.*`: missing, unreadable, empty, not_gguf, old_version, damaged,
            truncated.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = _Reader(file, file_bytes).read(path)
    except FileNotFoundError:
        raise _error(path, "missing", "there is no such file") from None
    except OSError as problem:
        raise _error(path, "unreadable", f"it cannot be read: {problem.strerror}") from problem
    except (_DamagedError, struct.error, UnicodeDecodeError, OverflowError) as problem:
        raise _error(path, "damaged", f"its header is damaged: {problem}") from problem
    end = max((header.data_offset + t.offset + t.bytes for t in header.tensors), default=0)
    if end > file_bytes:
        raise _error(
            path,
            "truncated",
            f"it ends too early: {file_bytes:,} bytes of {end:,} that its header announces",
        )
    return header


def _error(path: Path, kind: str, what: str) -> EnginehouseError:
    remedies = {
        "missing": ("check the path", "enginehouse models list"),
        "unreadable": ("check the file's permissions",),
    }.get(kind, ("fetch the file again and compare its SHA-256 with the source's",))
    return UserError(
        f"model.file.{kind}", f"{path.name} cannot be used: {what}",
        evidence=(str(path),), remedies=remedies,
    )  # fmt: skip


class _Reader:
    """Reads forward only; every length is checked against the file before it is believed."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._position = 0

    def read(self, path: Path) -> GgufHeader:
        if self._file_bytes == 0:
            raise _error(path, "empty", "it has no bytes")
        magic = self._file.read(4)
        self._position = 4
        if magic != b"GGUF":
            known = OTHER_FORMATS.get(magic, f"it begins with {magic!r}, GGUF with b'GGUF'")
            raise _error(path, "not_gguf", f"it is not GGUF but {known}")
        version = self._number("<I")
        if version not in (2, 3):
            raise _error(path, "old_version", f"its GGUF version is {version}, not 2 or 3")
        tensor_count = self._count("<Q", MOST_TENSORS, "tensors")
        metadata_count = self._count("<Q", MOST_METADATA, "metadata entries")
        metadata: dict[str, Scalar] = {}
        arrays: dict[str, tuple[Scalar, ...]] = {}
        lengths: dict[str, int] = {}
        for _ in range(metadata_count):
            key = self._string()
            kind = self._number("<I")
            if kind == ARRAY:
                lengths[key], arrays[key] = self._array()
            else:
                metadata[key] = self._scalar(kind)
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _DamagedError(f"an alignment of {alignment}")
        data_offset = -(-self._position // alignment) * alignment
        return GgufHeader(
            version, metadata, {k: v for k, v in arrays.items() if v}, lengths, tensors,
            data_offset, self._file_bytes, {}, {},
        )  # fmt: skip

    def _take(self, count: int) -> bytes:
        if count > self._file_bytes - self._position:
            raise _DamagedError(f"{count:,} bytes announced at {self._position:,}, beyond its end")
        if self._position + count > MOST_HEADER_BYTES:
            raise _DamagedError("the header is larger than 256 MiB")
        data = self._file.read(count)
        if len(data) != count:
            raise _DamagedError("it became shorter while it was read")
        self._position += count
        return data

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _count(self, form: str, most: int, what: str) -> int:
        count = self._number(form)
        if count > most:
            raise _DamagedError(f"{count:,} {what}")
        return count

    def _string(self) -> str:
        return self._take(self._count("<Q", MOST_STRING_BYTES, "bytes of text")).decode(
            errors="replace"
        )

    def _scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self._string()
        if kind not in SCALARS:
            raise _DamagedError(f"a value of the unknown type {kind}")
        form = SCALARS[kind]
        value: Scalar = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _array(self) -> tuple[int, tuple[Scalar, ...]]:
        kind = self._number("<I")
        count = self._count("<Q", MOST_ARRAY_ITEMS, "items in an array")
        if kind == STRING:
            for _ in range(count):
                self._take(self._count("<Q", MOST_STRING_BYTES, "bytes of text"))
            return count, ()
        if kind not in SCALARS:
            raise _DamagedError(f"an array of the unknown type {kind}")
        size = struct.calcsize(SCALARS[kind])
        data = self._take(count * size)
        if count > KEPT_ITEMS:
            return count, ()
        return count, struct.unpack(f"<{count}{SCALARS[kind][1]}", data)

    def _tensor(self) -> TensorInfo:
        name = self._string()
        dimensions = self._count("<I", MOST_DIMENSIONS, "dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        type_id, offset = self._number("<I"), self._number("<Q")
        if any(size == 0 or size > 1 << 48 for size in shape):
            raise _DamagedError(f"tensor {name!r} has the shape {shape}")
        return TensorInfo(name, shape, type_id, offset)
