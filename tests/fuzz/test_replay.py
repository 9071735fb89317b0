"""The readers' fuzzing, in small: what was found before, and a few hundred inputs more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.target import READERS, check, seeds

KEPT = Path(__file__).parents[1] / "fixtures" / "fuzz"


@pytest.mark.parametrize("path", sorted(KEPT.iterdir()), ids=lambda path: path.name)
def test_what_was_found_before_is_answered(path: Path) -> None:
    """Each kept input ends in facts or in our own error, within a second."""
    started = time.perf_counter()
    check(path.read_bytes())
    assert time.perf_counter() - started < 1.0


def test_the_seeds_are_read_as_facts() -> None:
    """The inputs that mutation starts from are good ones, so that it gets past the first checks."""
    assert {name: check(data) for name, data in seeds().items()} == dict.fromkeys(seeds(), "facts")


def _changed(data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(data)
    for at, piece in edits:
        place = at % len(content)
        content[place : place + len(piece)] = piece
    return bytes(content)


edits = st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=9)), max_size=6)
inputs = st.one_of(
    st.builds(_changed, st.sampled_from(sorted(seeds().values())), edits),
    st.builds(
        lambda reader, nothing, data: bytes([reader, nothing]) + data,
        st.integers(0, len(READERS) - 1), st.integers(0, 3), st.binary(max_size=300),
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=1000)
@given(inputs)
def test_any_bytes_end_in_facts_or_in_our_error(data: bytes) -> None:
    """No reader raises anything else, and none takes a second."""
    check(data)
