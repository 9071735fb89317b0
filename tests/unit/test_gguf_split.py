"""Names and headers of parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.gguf_header import GgufHeader, TensorInfo
from enginehouse.core.gguf_split import (
    SplitError,
    SplitName,
    check_split_claim,
    join_headers,
    split_name,
)
from tests.unit.headers import header

NAME = SplitName("m", 1, 2, ".gguf")


def part(number: int, count: int = 2, name: str = "", total: int = 2) -> GgufHeader:
    tensor = TensorInfo(name or f"t{number}", (32,), 0, 0)
    metadata = {"/split.no": number, "/split.count": count, "/split.tensors.count": total}
    return replace(header("llama", dict(metadata), (tensor,)), file_bytes=100, digest=str(number))


def test_names_of_parts() -> None:
    """Any part's name tells all of them; other names tell none."""
    found = split_name("m-00002-of-00003.gguf")
    assert found is not None
    assert found.names == tuple(f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    for other in ("m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-2.gguf",
                  "m-00001-of-99999.gguf"):  # fmt: skip
        assert split_name(other) is None


def test_parts_become_one_header() -> None:
    """Tensors and bytes are those of all parts, the metadata the first one's."""
    joined = join_headers((part(0), part(1)), NAME)
    assert [tensor.name for tensor in joined.tensors] == ["t0", "t1"]
    assert joined.file_bytes == 200


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((part(0), part(0)), "m-00002-of-00002.gguf holds part 1"),
        ((part(1), part(0)), "m-00001-of-00002.gguf holds part 2"),
        ((part(0, 3), part(1)), "says that there are 3 parts"),
        ((part(0, name="same"), part(1, name="same")), "a tensor is in two parts"),
        ((part(0, total=9), part(1)), "hold 2 tensors, 9 are announced"),
    ],
)
def test_parts_that_do_not_fit_are_told(parts: tuple[GgufHeader, ...], words: str) -> None:
    """The same part twice (a cycle), a wrong order or count, tensors twice or missing."""
    with pytest.raises(SplitError, match=words):
        join_headers(parts, NAME)


def test_a_renamed_part_is_told() -> None:
    """A part whose name does not say which cannot be completed."""
    with pytest.raises(SplitError, match="part 1 of 2"):
        check_split_claim(part(0), "renamed.gguf")
