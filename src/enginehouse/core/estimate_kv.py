"""What a KV cache weighs, per kind of attention, as llama.cpp allocates it.

Source: llama.cpp b11549, `src/llama-context.cpp` (llama_context: contexts are padded to 256),
`src/llama-kv-cache.cpp` (one K and one V row a cell; V padded to the widest layer when it is kept
transposed, without flash attention), `src/llama-kv-cache-iswa.cpp` (a sliding-window layer keeps
window + ubatch cells, padded to 256), `src/llama-memory-recurrent.cpp` (one state a sequence, f32),
`tools/server/server-context.cpp` (create_checkpoint).
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.ggml_types import GGML_TYPES
from enginehouse.core.model import Model

CELL_STEP = 256
WINDOWED = ("sliding", "chunked")
BYTES_PER_ELEMENT = {name.lower(): size / block for name, block, size in GGML_TYPES.values()}
"""A ggml type's name → bytes an element takes."""
MOST_CHECKPOINTS = 32
"""llama-server keeps copies of what cannot be rolled back: at a prompt's end and a batch before it,
32 a slot at most."""


@dataclass(frozen=True)
class CacheShape:
    """How much the caches hold: a slot's `context` and what one batch computes at most."""

    context: int
    slots: int = 1
    ubatch: int = 512
    k_type: str = "f16"
    v_type: str = "f16"
    is_transposed: bool = False
    is_window_full: bool = False

    @property
    def cells(self) -> int:
        """Cells of a slot in a layer with full attention."""
        return padded(self.context)


def padded(cells: int) -> int:
    """Round up to the step in which caches are allocated."""
    return -(-cells // CELL_STEP) * CELL_STEP


def window_cells(window: int, shape: CacheShape) -> int:
    """Return a slot's cells in a layer with a sliding window."""
    if shape.is_window_full or not window:
        return shape.cells
    return padded(min(shape.cells, window + shape.ubatch))


def full_cache_bytes(model: Model, shape: CacheShape) -> float:
    """Return the bytes of all layers with full attention (MLA: the latent only)."""
    elements = _elements(model, ("full",), shape)
    index = sum(block.index_elements for block in model.blocks) * 2.0
    return (elements + index) * shape.cells * shape.slots


def window_cache_bytes(model: Model, shape: CacheShape) -> float:
    """Return the bytes of all layers with a sliding or chunked window."""
    window = largest_window(model)
    return _elements(model, WINDOWED, shape) * window_cells(window, shape) * shape.slots


def state_bytes(model: Model, slots: int) -> int:
    """Return the bytes of the recurrent states."""
    return model.state_bytes * slots


def checkpoint_bytes(model: Model, shape: CacheShape, tokens: int) -> float:
    """Return what one checkpoint of a slot weighs after `tokens`; 0 where none is made."""
    window = largest_window(model)
    kept = min(tokens, window_cells(window, shape)) if window else 0
    return _elements(model, WINDOWED, shape) * kept + model.state_bytes


def largest_window(model: Model) -> int:
    """Return the widest window, 0 without any."""
    return max((block.window for block in model.blocks if block.kind in WINDOWED), default=0)


def _elements(model: Model, kinds: tuple[str, ...], shape: CacheShape) -> float:
    """Return the bytes of one cell over all layers of some kinds."""
    blocks = [block for block in model.blocks if block.kind in kinds and block.k_elements]
    if not model.blocks and "full" in kinds:
        k, v = float(model.k_elements_per_token), float(model.v_elements_per_token)
    else:
        k = float(sum(block.k_elements for block in blocks))
        v = float(sum(block.v_elements for block in blocks))
    widest = max((block.v_elements for block in model.blocks), default=0)
    if shape.is_transposed and any(0 < block.v_elements < widest for block in blocks):
        v = float(widest * len(blocks))
    return k * BYTES_PER_ELEMENT.get(shape.k_type, 2.0) + v * BYTES_PER_ELEMENT.get(
        shape.v_type, 2.0
    )
