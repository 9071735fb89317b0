"""What a cache weighs, per kind of attention."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.estimate_kv import (
    CacheShape,
    checkpoint_bytes,
    full_cache_bytes,
    state_bytes,
    window_cache_bytes,
)
from enginehouse.core.model import Block
from tests.unit.values import MODEL

FULL = Block("full", k_elements=512, v_elements=512)
SLIDING = Block("sliding", window=512, k_elements=256, v_elements=256)
LATENT = Block("full", k_elements=576, v_elements=0)
RECURRENT = Block("recurrent", state_bytes=8192)


@pytest.mark.parametrize(
    ("kv_type", "element"), [("f16", 2.0), ("q8_0", 34 / 32), ("q4_0", 18 / 32), ("f32", 4.0)]
)
def test_full_attention_keeps_a_row_of_each_for_every_cell(kv_type: str, element: float) -> None:
    """K and V of every layer, for every cell of every slot, in the cache's type."""
    model = replace(MODEL, blocks=(FULL,) * 3)
    shape = CacheShape(1024, 4, k_type=kv_type, v_type=kv_type)
    assert full_cache_bytes(model, shape) == 3 * 1024 * 4 * 1024 * element


def test_a_context_is_rounded_up_to_256_cells() -> None:
    """llama.cpp pads a slot's context."""
    model = replace(MODEL, blocks=(FULL,))
    assert full_cache_bytes(model, CacheShape(1000)) == full_cache_bytes(model, CacheShape(1024))


@pytest.mark.parametrize(
    ("context", "full", "cells"), [(4096, False, 1024), (768, False, 768), (4096, True, 4096)]
)
def test_a_window_keeps_itself_and_one_batch(context: int, full: bool, cells: int) -> None:
    """A sliding layer keeps window + ubatch cells, never more than the context; all on demand."""
    model = replace(MODEL, blocks=(FULL, SLIDING, SLIDING))
    shape = CacheShape(context, is_window_full=full)
    assert window_cache_bytes(model, shape) == 2 * 512 * 2.0 * cells


def test_a_latent_cache_has_no_v() -> None:
    """Absorbed MLA keeps one compressed row."""
    model = replace(MODEL, blocks=(LATENT,) * 2)
    assert full_cache_bytes(model, CacheShape(1024)) == 2 * 576 * 2 * 1024


def test_a_transposed_v_is_as_wide_as_the_widest_layer() -> None:
    """Without flash attention V is padded where layers differ."""
    narrow = replace(FULL, k_elements=256, v_elements=256)
    model = replace(MODEL, blocks=(FULL, narrow))
    plain = full_cache_bytes(model, CacheShape(256))
    padded = full_cache_bytes(model, CacheShape(256, is_transposed=True))
    assert padded - plain == 256 * 2.0 * 256


def test_a_state_does_not_grow_with_the_context() -> None:
    """A recurrent layer's state is one a sequence."""
    model = replace(MODEL, blocks=(RECURRENT,) * 4)
    assert state_bytes(model, 3) == 3 * 4 * 8192
    assert full_cache_bytes(model, CacheShape(8192)) == 0


def test_only_what_cannot_be_rolled_back_is_copied_into_checkpoints() -> None:
    """A checkpoint holds windows and states; plain attention makes none."""
    shape = CacheShape(4096)
    assert checkpoint_bytes(replace(MODEL, blocks=(FULL,)), shape, 2000) == 0
    mixed = replace(MODEL, blocks=(FULL, SLIDING, RECURRENT))
    assert checkpoint_bytes(mixed, shape, 300) == 512 * 2.0 * 300 + 8192
    assert checkpoint_bytes(mixed, shape, 4000) == 512 * 2.0 * 1024 + 8192
