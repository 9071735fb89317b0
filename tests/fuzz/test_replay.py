"""The readers' fuzzing, in small: what was found before, and a few hundred inputs more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fuzz.strategies import inputs
from tests.fuzz.target import check, seeds

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


@settings(max_examples=400, deadline=1000)
@given(inputs)
def test_any_bytes_end_in_facts_or_in_our_error(data: bytes) -> None:
    """No reader raises anything else, and none takes a second."""
    check(data)
