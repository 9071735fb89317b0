"""Folders that hold a model's files: on this machine, or behind HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from enginehouse.core.errors import UserError
from enginehouse.edges.byte_sources import ByteSource, LocalFile, RemoteFile, file_error


class Folder(Protocol):
    """A folder whose files can be opened by name."""

    name: str
    place: str

    def names(self) -> tuple[str, ...]:
        """Return the names of its files; empty where they cannot be listed."""

    def open(self, name: str) -> ByteSource:
        """Open a file, or raise `model.file.missing`, `model.url.not_found`."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name, self.place = path.name, str(path)

    def names(self) -> tuple[str, ...]:
        """Return the names of the files directly in it."""
        try:
            return tuple(sorted(entry.name for entry in self._path.iterdir() if entry.is_file()))
        except OSError as problem:
            what = f"it cannot be read: {problem.strerror}"
            raise file_error(self.name, self.place, "unreadable", what) from problem

    def open(self, name: str) -> ByteSource:
        """Open a file of it."""
        return LocalFile(self._path / name)


class RemoteFolder:
    """A folder behind HTTP; `known` are its files where a listing told them."""

    def __init__(
        self,
        base: str,
        known: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        follow_hosts: bool = False,
    ) -> None:
        self._base = base.rstrip("/")
        self._known, self._headers, self._follow_hosts = known, headers, follow_hosts
        self.name, self.place = self._base.rsplit("/", 1)[-1], self._base

    def names(self) -> tuple[str, ...]:
        """Return the names that a listing told."""
        return self._known

    def open(self, name: str) -> ByteSource:
        """Open a file of it; only the ranges that are read travel."""
        return RemoteFile(f"{self._base}/{quote(name)}", self._headers, self._follow_hosts)


def read_small(folder: Folder, name: str, most: int) -> bytes:
    """Return the whole of a small file, b"" when the folder has none of that name.

    Raises:
        UserError: `model.file.damaged` when it has more than `most` bytes.
    """
    listed = folder.names()
    if listed and name not in listed:
        return b""
    try:
        source = folder.open(name)
    except UserError as problem:
        if problem.report.id in ("model.file.missing", "model.url.not_found", "model.file.empty"):
            return b""
        raise
    try:
        if source.size > most:
            what = f"it has {source.size:,} bytes, which no such file has"
            raise file_error(source.name, source.place, "damaged", what)
        return source.read_at(0, source.size)
    finally:
        source.close()
