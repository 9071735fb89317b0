"""Quantize a GGUF model with the wheel's own routines, tensor by tensor, into a draft file.

    python -m enginehouse.edges.quantize_child LIBRARY SOURCE QUANTIZATION DRAFT THREADS

A process of its own: it may be killed at any time, and a failed assertion of ggml ends only it.
Beside the draft a journal grows, one checksum a finished tensor; the next run checks what is there
against it and goes on behind it. Memory: a few MiB of rows a thread, whatever the tensor's size.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.quant_types import FORMATS, Target, target_types
from enginehouse.edges.ggml_library import GgmlLibrary
from enginehouse.edges.gguf_copy import Place, build_header, tensor_places
from enginehouse.edges.gguf_parts import read_model_header

SLAB_ELEMENTS = 1 << 20
COPIED_BYTES = 4 << 20


def write_draft(
    library: GgmlLibrary, source: Path, quantization: str, draft: Path, threads: int
) -> None:
    """Write the whole quantized file, or what an earlier run has left of it to write.

    Raises:
        OSError: the source cannot be read or the draft not written.
        ValueError: a tensor holds values that are not finite.
    """
    header, _ = read_model_header(source)
    targets = target_types(header, quantization)
    alignment = header.integer("general.alignment") or 32
    head = build_header(source, targets, FORMATS[quantization].file_type, alignment)
    places = tensor_places(source)
    journal = draft.with_suffix(".journal")
    plan = hashlib.sha256(head + header.digest.encode()).hexdigest()
    done = _resume(draft, journal, plan, head, [_padded(t.bytes, alignment) for t in targets])
    with (
        draft.open("r+b") as output,
        journal.open("a") as notes,
        ThreadPoolExecutor(threads) as pool,
    ):
        output.seek(0, os.SEEK_END)
        for target in targets[done:]:
            checksum = _write_tensor(library, pool, threads, target, places, output)
            padding = bytes(-target.bytes % alignment)
            output.write(padding)
            output.flush()
            notes.write(f"{zlib.crc32(padding, checksum):08x}\n")
            notes.flush()
        os.fsync(output.fileno())


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _resume(draft: Path, journal: Path, plan: str, head: bytes, sizes: list[int]) -> int:
    """Return how many tensors of an earlier run are whole; what is behind them is cut off."""
    try:
        lines = journal.read_text().splitlines()
        with draft.open("r+b") as file:
            if lines[:1] == [plan] and file.read(len(head)) == head:
                done = _count_whole(file, lines[1:], sizes)
                file.truncate(len(head) + sum(sizes[:done]))
                journal.write_text("".join(f"{line}\n" for line in lines[: done + 1]))
                return done
    except OSError:
        pass
    draft.write_bytes(head)
    journal.write_text(f"{plan}\n")
    return 0


def _count_whole(file: BinaryIO, checksums: Iterable[str], sizes: list[int]) -> int:
    done = 0
    for wanted, size in zip(checksums, sizes, strict=False):
        checksum, left = 0, size
        while left > 0 and (data := file.read(min(left, COPIED_BYTES))):
            checksum, left = zlib.crc32(data, checksum), left - len(data)
        if left or f"{checksum:08x}" != wanted:
            break
        done += 1
    return done


def _write_tensor(
    library: GgmlLibrary, pool: ThreadPoolExecutor, threads: int, target: Target,
    places: dict[str, Place], output: BinaryIO,
) -> int:  # fmt: skip
    """Write one tensor's bytes in order and return their checksum."""
    row = target.tensor.shape[0]
    kind = target.tensor.type_name
    waiting: deque[Future[bytes]] = deque()
    checksum = 0

    def put(data: bytes) -> None:
        nonlocal checksum
        output.write(data)
        checksum = zlib.crc32(data, checksum)

    for data in _slabs(target, places[target.tensor.name]):
        if target.is_copied:
            put(data)
            continue
        waiting.append(pool.submit(library.requantize, data, kind, target.type_name, row))
        if len(waiting) > threads:
            put(waiting.popleft().result())
    while waiting:
        put(waiting.popleft().result())
    return checksum


def _slabs(target: Target, place: Place) -> Iterator[bytes]:
    """Yield a tensor's bytes, whole rows at a time where they are to be computed with."""
    step = COPIED_BYTES
    if not target.is_copied:
        row = target.tensor.shape[0]
        _, block, size = GGML_TYPES[target.tensor.type_id]
        step = max(1, SLAB_ELEMENTS // row) * (row // block * size)
    left = target.tensor.bytes
    with place.path.open("rb") as file:
        file.seek(place.offset)
        while left:
            data = file.read(min(step, left))
            if not data:
                raise OSError(f"{place.path} ends within {target.tensor.name}")
            left -= len(data)
            yield data


def main() -> None:
    """Write the draft that the arguments ask for; exit code 1 and one line when it fails."""
    library, source, quantization, draft, threads = sys.argv[1:6]
    try:
        write_draft(
            GgmlLibrary(Path(library)), Path(source), quantization, Path(draft), int(threads)
        )
    except (OSError, ValueError, AttributeError) as problem:
        sys.exit(f"quantize: {type(problem).__name__}: {problem}")


if __name__ == "__main__":
    main()
