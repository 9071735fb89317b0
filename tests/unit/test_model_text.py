"""How a model looks in the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.cli_model_text import attention_words, clean, layers_text, mib, model_text
from enginehouse.core.model import Block, Model, TensorGroup
from tests.unit.test_serving import GGUF

FULL, SLIDING, STATE = Block("full"), Block("sliding", window=1024), Block("recurrent")


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ((FULL,) * 26, "26 full"),
        ((SLIDING,) * 5 + (FULL,), "5 sliding 1,024, 1 full"),
        (
            ((SLIDING,) * 5 + (FULL,)) * 4 + (SLIDING,) * 2,
            "22 sliding 1,024, 4 full (5 sliding 1,024, 1 full, repeated)",
        ),
        ((FULL, STATE, FULL), "2 full, 1 recurrent (1 full, 1 recurrent, repeated)"),
        (
            (FULL, STATE, FULL, FULL, STATE),
            "3 full, 2 recurrent (in order 1 full, 1 recurrent, 2 full, 1 recurrent)",
        ),
        ((FULL, replace(FULL, is_draft=True)), "1 full, 1 draft head"),
        ((replace(FULL, state_bytes=9),), "1 full with recurrent state"),
        ((), ""),
    ],
)
def test_layers_are_told_in_one_line(blocks: tuple[Block, ...], words: str) -> None:
    """Counts first; then the pattern where it repeats, else the order."""
    assert attention_words(blocks) == words


def test_a_files_own_words_cannot_steer_the_terminal() -> None:
    """Control characters of a title or a name are shown as what they are not."""
    assert clean("a\x1b[31mb\n\u202ec") == "a�[31mb��c"
    shown = model_text(replace(GGUF, title="\x1b[2J", architecture="\r\n"))
    assert "\x1b" not in shown
    assert "\r" not in shown


def test_every_fact_has_its_line() -> None:
    """Weights by class with their share, what a token reads, context, and who can serve it."""
    groups = (TensorGroup("feed-forward", "Q4_K", 10, 3 << 20, 3 << 20),
              TensorGroup("norms", "F32", 5, 1 << 20, 1 << 20))  # fmt: skip
    model = replace(
        GGUF, groups=groups, weight_bytes=4 << 20, bytes_per_token=4 << 20, context_length=4096,
        blocks=(replace(FULL, k_elements=512, v_elements=512),) * 2, k_elements_per_token=1024,
        v_elements_per_token=1024,
    )  # fmt: skip
    lines = model_text(model).splitlines()
    for words in (
        "feed-forward       3.0 MiB   75%  ██████████████████        Q4_K",
        "read            4.0 MiB for each decoded token",
        "KV cache        4.0 KiB a token in f16; 16.0 MiB for 4,096 tokens",
        "served by       llama.cpp  yes  GGUF of an architecture it knows",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert len(layers_text(model).splitlines()) == 3


@pytest.mark.parametrize(
    ("size", "words"), [(1, "0.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(size: int, words: str) -> None:
    """Sizes have the unit that fits."""
    assert mib(size) == words


def test_a_model_of_nothing_is_shown() -> None:
    """No facts at all still make a page."""
    empty = Model("x", "", "", "gguf", "", 0, "", "", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert "not stated" in model_text(empty)
