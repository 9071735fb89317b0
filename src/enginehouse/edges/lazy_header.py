"""A GGUF file's own key-value pairs, read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from enginehouse.core.errors import EnginehouseError
from enginehouse.edges.gguf_file import read_gguf_header


class LazyHeader(Mapping[str, object]):
    """The metadata of one file; empty where the file cannot be read any more."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _pairs(self) -> dict[str, object]:
        try:
            header = read_gguf_header(self._path)
        except (EnginehouseError, OSError):
            return {}
        return {**header.metadata, **{key: list(items) for key, items in header.arrays.items()}}

    def __getitem__(self, key: str) -> object:
        return self._pairs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)
