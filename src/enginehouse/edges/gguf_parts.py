"""Read a model from one GGUF file or from all of its parts, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from enginehouse.core.errors import UserError
from enginehouse.core.gguf_header import GgufHeader
from enginehouse.core.gguf_split import (
    SplitError,
    SplitName,
    check_split_claim,
    join_headers,
    split_name,
)
from enginehouse.core.model import Part
from enginehouse.edges.byte_sources import ByteSource, LocalFile, file_error
from enginehouse.edges.gguf_file import read_gguf

Open = Callable[[str], ByteSource]
"""Opens the file of this name beside the first one."""


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return the files of the model that a file belongs to, in order; they may be missing."""
    name = split_name(path.name)
    return (path,) if name is None else tuple(path.with_name(part) for part in name.names)


def read_model_header(path: Path) -> tuple[GgufHeader, tuple[Part, ...]]:
    """Read a local model's header and parts.

    Raises:
        UserError: `model.file.*`, `split` among them.
    """
    paths = {part.name: part for part in part_paths(path)}
    missing = [part.name for part in paths.values() if not part.exists()]
    if len(paths) > 1 and missing:
        raise _missing(path, missing, len(paths))
    return read_parts(path.name, lambda name: LocalFile(paths[name]))


def read_parts(file_name: str, open_part: Open) -> tuple[GgufHeader, tuple[Part, ...]]:
    """Read the header of a model whose parts `open_part` opens by name.

    Raises:
        UserError: `model.file.*`, `split` among them.
    """
    name = split_name(file_name)
    names = (file_name,) if name is None else name.names
    headers, parts = [], []
    for part_name in names:
        source = open_part(part_name)
        try:
            headers.append(read_gguf(source))
        finally:
            source.close()
        parts.append(Part(source.place, source.size))
    try:
        return _joined(headers, file_name, name), tuple(parts)
    except SplitError as problem:
        raise file_error(file_name, parts[0].path, "split", str(problem)) from problem


def _joined(headers: Sequence[GgufHeader], file_name: str, name: SplitName | None) -> GgufHeader:
    if name is None or (name.count == 1 and not headers[0].integer("split.count")):
        check_split_claim(headers[0], file_name)
        return headers[0]
    return join_headers(headers, name)


def _missing(path: Path, missing: Sequence[str], count: int) -> UserError:
    if len(missing) == count:
        return file_error(path.name, str(path), "missing", "there is no such file")
    shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    what = f"of its {count} parts {len(missing)} are missing: {shown}"
    return file_error(path.name, str(path), "split", what)
