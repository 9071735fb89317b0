"""A model in several GGUF files: their names, and one header out of all of theirs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from enginehouse.core.gguf_header import GgufHeader

MOST_PARTS = 1024
_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)$")


@dataclass(frozen=True)
class SplitName:
    """The parts' names that one part's name tells, as `llama-gguf-split` writes them, from 1."""

    stem: str
    number: int
    count: int
    end: str

    def part(self, number: int) -> str:
        """Return the name of a part."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.end}"

    @property
    def names(self) -> tuple[str, ...]:
        """All parts in order."""
        return tuple(self.part(number) for number in range(1, self.count + 1))


class SplitError(Exception):
    """Parts that do not make one model; the text says why."""


def split_name(file_name: str) -> SplitName | None:
    """Return what a part's name tells, None for the name of a whole file."""
    match = _NAME.match(file_name)
    if match is None or not 0 < int(match["number"]) <= int(match["count"]) <= MOST_PARTS:
        return None
    return SplitName(match["stem"], int(match["number"]), int(match["count"]), match["end"])


def check_split_claim(header: GgufHeader, file_name: str) -> None:
    """Check what one file's header claims about parts against its name.

    Raises:
        SplitError: the header says that there are others, the name does not say which.
    """
    claimed, name = header.integer("split.count"), split_name(file_name)
    if claimed > 1 and name is None:
        raise SplitError(
            f"it is part {header.integer('split.no') + 1} of {claimed}, but its name does not end "
            f"in -00001-of-{claimed:05d}.gguf, so the others cannot be found"
        )


def join_headers(headers: Sequence[GgufHeader], name: SplitName) -> GgufHeader:
    """Return one header with the first part's metadata and every part's tensors.

    Raises:
        SplitError: a wrong count or order, the same part twice, tensors twice or missing.
    """
    for number, header in enumerate(headers):
        claimed = header.integer("split.count")
        if claimed != len(headers):
            raise SplitError(
                f"{name.part(number + 1)} says that there are {claimed} parts, its name says "
                f"{len(headers)}"
            )
        if header.integer("split.no") != number:
            raise SplitError(f"{name.part(number + 1)} holds part {header.integer('split.no') + 1}")
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise SplitError("a tensor is in two parts")
    expected = headers[0].integer("split.tensors.count")
    if expected and expected != len(tensors):
        raise SplitError(f"the parts hold {len(tensors)} tensors, {expected} are announced")
    digest = hashlib.sha256("\n".join(header.digest for header in headers).encode()).hexdigest()
    return replace(
        headers[0],
        tensors=tensors,
        file_bytes=sum(header.file_bytes for header in headers),
        digest=digest,
    )
