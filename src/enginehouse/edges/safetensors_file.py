"""Read safetensors headers: eight bytes and the JSON they announce, nothing of the weights.

Not with the `safetensors` package: it maps the whole file, reads no remote one, and adds a compiled
dependency for few lines (`docs/adr/0016`). A test holds the two against each other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import msgspec

from enginehouse.core.safetensors_header import HeaderError, SafeTensor, tensor_of
from enginehouse.edges.byte_sources import ByteSource, file_error

MOST_HEADER_BYTES = 16 << 20
"""The format allows 100 MB; 100,000 tensors of unfused experts take about 12 MB."""
MOST_MARKS = {b"{": 200_000, b"[": 400_000, b",": 2_000_000}
"""What may cost memory once parsed, counted before it is."""


class _Entry(msgspec.Struct):
    dtype: str = ""
    shape: list[int] = []
    data_offsets: list[int] = []


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors of one file, and the SHA-256 of its header and size."""

    tensors: tuple[SafeTensor, ...]
    file_bytes: int
    digest: str


def read_safetensors(source: ByteSource) -> SafetensorsHeader:
    """Read one file's header.

    Raises:
        UserError: `model.file.*`: empty, not_safetensors, damaged, truncated.
        MachineError: `network.unreachable`.
    """
    if source.size < 8:
        kind = "empty" if source.size == 0 else "not_safetensors"
        raise file_error(source.name, source.place, kind, f"it has {source.size} bytes")
    start = source.read_at(0, 8)
    length = int.from_bytes(start, "little")
    if length > MOST_HEADER_BYTES:
        what = f"it is not safetensors: a header of {length:,} bytes is announced"
        raise file_error(source.name, source.place, "not_safetensors", what)
    if 8 + length > source.size:
        what = f"its header of {length:,} bytes goes beyond its end"
        raise file_error(source.name, source.place, "truncated", what)
    text = source.read_at(8, length)
    digest = hashlib.sha256(start)
    digest.update(text)
    digest.update(source.size.to_bytes(8, "little"))
    data_bytes = source.size - 8 - length
    try:
        tensors = _tensors(text, data_bytes)
    except HeaderError as problem:
        what = f"its header is damaged: {problem}"
        raise file_error(source.name, source.place, "damaged", what) from problem
    return SafetensorsHeader(tensors, source.size, digest.hexdigest())


def _tensors(text: bytes, data_bytes: int) -> tuple[SafeTensor, ...]:
    entries = parse_json(text, dict[str, _Entry])
    entries.pop("__metadata__", None)
    return tuple(
        tensor_of(name, entry.dtype, entry.shape, entry.data_offsets, data_bytes)
        for name, entry in entries.items()
    )


def parse_json(text: bytes, form: Any) -> Any:
    """Parse JSON of bounded size and depth into a type that msgspec knows.

    NaN and Infinity, which some config.json files hold, become None.

    Raises:
        HeaderError: not JSON, not of that type, or larger than any model's file.
    """
    for mark, most in MOST_MARKS.items():
        if text.count(mark) > most:
            raise HeaderError(f"more than {most:,} {mark.decode()!r} in its JSON")
    try:
        return msgspec.json.decode(text, type=form)
    except msgspec.MsgspecError as problem:
        if b"NaN" not in text and b"Infinity" not in text:
            raise HeaderError(f"it is not the JSON of such a file: {str(problem)[:160]}") from None
    except UnicodeDecodeError:
        raise HeaderError("its text is not UTF-8") from None
    except RecursionError:
        raise HeaderError("its JSON is nested too deeply") from None
    try:
        return msgspec.convert(json.loads(text, parse_constant=lambda _: None), type=form)
    except (ValueError, RecursionError, msgspec.MsgspecError) as problem:
        raise HeaderError(f"it is not the JSON of such a file: {str(problem)[:160]}") from None
