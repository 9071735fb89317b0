"""The tensors that llama.cpp computes for one batch, layer by layer, as sizes.

Source: `src/llama-graph.cpp` (build_inp_embd, build_qkv, build_attn, build_attn_mha, build_ffn,
build_moe_ffn) and `src/models/<architecture>.cpp`, llama.cpp b11549. Views need no memory and are
left out: a reader of a view is a reader of the tensor below. Three layers stand for all of a kind,
since the allocator's state repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enginehouse.core.graph_memory import Graph, peak_bytes
from enginehouse.core.model import Block, Model

F32, F16, I32, I64 = 4, 2, 4, 8
TOKENS = 64
FUSED_QKV = ("phi3", "phi2", "gptneox", "gpt2", "falcon", "bloom", "mpt", "chatglm", "qwen", "glm4")
FUSED_GATE = ("phi3", "chatglm", "glm4", "modern-bert")
SOFT_CAPPED = ("gemma2",)


@dataclass(frozen=True)
class Batch:
    """What one batch computes: `cells` and `window_cells` are how far into the caches it looks.

    `has_rotation` tells that queries, keys and values are rotated for a quantized KV cache.
    """

    tokens: int
    outputs: int
    cells: int
    window_cells: int = 0
    flash: bool = True
    sequences: int = 1
    has_rotation: bool = False


def compute_buffer(model: Model, batch: Batch) -> int:
    """Return the bytes of the compute buffer for the batch."""
    return peak_bytes(_build(Graph(), model, batch).nodes)


def operation_count(model: Model) -> int:
    """Return how many operations one decoded token takes, all layers counted."""
    nodes = _build(Graph(), model, Batch(1, 1, 256, 256), is_whole=True).nodes
    return sum(not node.is_input for node in nodes)


def small_elements(model: Model) -> float:
    """Return how many elements the operations beside products and attention write for a token.

    Those are the ones that may overwrite what they read, and each feed-forward's gate.
    """
    nodes = _build(Graph(), model, Batch(TOKENS, TOKENS, 256, 256), is_whole=True).nodes
    written = sum(node.bytes for node in nodes if node.can_overwrite) / F32 / TOKENS
    gates = sum(block.feed_forward_length for block in model.blocks if not block.expert_bytes)
    experts = model.experts
    routed = experts.feed_forward_length * experts.used if experts else 0
    return written + gates + routed * sum(bool(block.expert_bytes) for block in model.blocks)


def _rotations(graph: Graph, model: Model, caches: int) -> int:
    """The matrices that spread outliers over a head before it is quantized (llama-kv-cache.cpp).

    K's is as large as divides the head's size (a power of 2 from 64 on), V's is 64 wide.
    """
    number = graph.input(0)
    for _ in range(caches):
        head = max((block.key_length for block in model.blocks), default=0)
        size = 64
        while head % (2 * size) == 0 and head:
            size *= 2
        number = graph.input(size * size * F32)
        graph.input(64 * 64 * F32)
    return number


@dataclass(frozen=True)
class _Inputs:
    mask: int
    window_mask: int
    keys: int
    values: int
    positions: int
    rotation: int
    states: int


def _build(graph: Graph, model: Model, batch: Batch, is_whole: bool = False) -> Graph:
    width = model.embedding_length * batch.tokens * F32
    tokens = graph.input(batch.tokens * I32)
    graph.input(width)
    given = graph.input(width)
    inputs = _inputs(graph, model, batch)
    outputs = graph.input(batch.outputs * I32)
    current = graph.new(width, tokens)
    other = graph.new(width, tokens)
    graph.new(width, given)
    graph.read(other)
    if model.architecture.startswith("gemma"):
        current = graph.over(width, current)
    blocks = tuple(block for block in model.blocks if not block.is_draft)
    blocks = blocks if is_whole else _representative(blocks)
    for number, block in enumerate(blocks):
        is_last = number == len(blocks) - 1
        current = _layer(graph, model, block, batch, inputs, current, outputs if is_last else None)
    last = model.embedding_length * batch.outputs * F32
    normed = graph.over(last, graph.over(last, current))
    graph.new(model.vocabulary_size * batch.outputs * F32, normed)
    return graph


def _representative(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return enough layers to reach the allocator's steady state: the first 12, and the last."""
    return blocks if len(blocks) <= 13 else (*blocks[:12], blocks[-1])


def _inputs(graph: Graph, model: Model, batch: Batch) -> _Inputs:
    mask_size = F16 if batch.flash else F32
    has_window = any(block.kind in ("sliding", "chunked") for block in model.blocks)
    has_full = any(block.kind == "full" for block in model.blocks)
    most_values = max((block.v_elements for block in model.blocks), default=0)
    value_rows = 1 if batch.flash else most_values
    positions = graph.input(batch.tokens * I32)
    keys = values = mask = window_mask = rotation = states = positions
    if has_full:
        keys = graph.input(batch.tokens * I64)
        values = graph.input(batch.tokens * value_rows * I64)
        mask = graph.input(batch.cells * batch.tokens * mask_size)
    if has_window:
        graph.input(batch.tokens * I64)
        window_values = graph.input(batch.tokens * value_rows * I64)
        keys = keys if has_full else window_values
        values = values if has_full else window_values
        window_mask = graph.input(batch.window_cells * batch.tokens * mask_size)
    if batch.has_rotation:
        rotation = _rotations(graph, model, int(has_full) + int(has_window))
    if any(block.state_bytes for block in model.blocks):
        states = graph.input(batch.sequences * I32)
    return _Inputs(mask, window_mask, keys, values, positions, rotation, states)


def _layer(
    graph: Graph, model: Model, block: Block, batch: Batch, inputs: _Inputs, current: int,
    outputs: int | None,
) -> int:  # fmt: skip
    size = model.embedding_length * batch.tokens * F32
    normed = graph.over(size, graph.over(size, current))
    mixers: dict[str, Callable[..., int]] = {"recurrent": _recurrent}
    if model.mla and model.mla.is_absorbed and block.kind == "full":
        mixed = _latent_attention(graph, model, block, batch, inputs, normed)
    else:
        mixer = mixers.get(block.kind, _attention)
        mixed = mixer(graph, model, block, batch, inputs, normed)
    has_feed_forward = block.feed_forward_length or block.expert_bytes
    if outputs is not None:
        size = model.embedding_length * batch.outputs * F32
        mixed = graph.new(size, mixed, outputs)
        current = graph.new(size, current, outputs)
    if model.architecture.startswith("gemma"):
        mixed = graph.over(size, graph.over(size, mixed))
    current = graph.over(size, mixed, current)
    if not has_feed_forward:
        return current
    rows = batch.tokens if outputs is None else batch.outputs
    normed = graph.over(size, graph.over(size, current))
    wide = (
        _experts(graph, model, block, rows, normed)
        if block.expert_bytes
        else _feed_forward(graph, model, block, rows, normed)
    )
    if model.architecture.startswith("gemma"):
        wide = graph.over(size, graph.over(size, wide))
    return graph.over(size, wide, current)


def _attention(
    graph: Graph, model: Model, block: Block, batch: Batch, inputs: _Inputs, normed: int
) -> int:
    tokens = batch.tokens * F32
    q_size = block.heads * block.key_length * tokens
    k_size = block.kv_heads * block.key_length * tokens
    v_size = block.kv_heads * block.value_length * tokens
    if model.architecture in FUSED_QKV:
        fused = graph.new(q_size + k_size + v_size, normed)
        q, k, v = graph.new(q_size, fused), -1, fused
        k = graph.new(k_size, fused)
    else:
        q = _projected(graph, q_size, normed, inputs.positions)
        v = graph.new(v_size, normed)
        k = _projected(graph, k_size, normed, inputs.positions)
    if batch.has_rotation:
        q = graph.new(q_size, q, inputs.rotation)
        v = graph.new(v_size, v, inputs.rotation)
        k = graph.new(k_size, k, inputs.rotation)
    graph.read(k, inputs.keys)
    graph.read(v, inputs.values)
    mixed = _attend(graph, block, batch, inputs, q, block.heads * block.value_length * tokens)
    if batch.has_rotation:
        mixed = graph.new(block.heads * block.value_length * tokens, mixed, inputs.rotation)
    return graph.new(model.embedding_length * tokens, mixed)


def _projected(graph: Graph, size: float, normed: int, positions: int) -> int:
    """A projection with what is done to it in place: bias, norm, rotary positions."""
    return graph.over(size, graph.new(size, normed), positions)


def _attend(
    graph: Graph, block: Block, batch: Batch, inputs: _Inputs, q: int, result: float
) -> int:
    is_window = block.kind in ("sliding", "chunked")
    mask = inputs.window_mask if is_window else inputs.mask
    if batch.flash:
        return graph.new(result, q, mask)
    cells = batch.window_cells if is_window else batch.cells
    scores_size = cells * batch.tokens * block.heads * F32
    scores = graph.over(scores_size, graph.new(scores_size, q), mask)
    return graph.new(result, graph.new(result, scores))


def _latent_attention(
    graph: Graph, model: Model, block: Block, batch: Batch, inputs: _Inputs, normed: int
) -> int:
    """MLA with the latent cached (`src/models/deepseek2.cpp`)."""
    mla = model.mla
    assert mla is not None
    tokens = batch.tokens * F32
    rope = block.k_elements - mla.kv_rank
    q_size = block.heads * mla.key_length * tokens
    q = normed
    if mla.q_rank:
        low = graph.new(mla.q_rank * tokens, normed)
        q = graph.over(mla.q_rank * tokens, graph.over(mla.q_rank * tokens, low))
    q = graph.new(q_size, q)
    rotated = graph.new(block.heads * rope * tokens, q)
    compressed = graph.new((mla.kv_rank + rope) * tokens, normed)
    k_rope = graph.new(rope * tokens, compressed)
    latent = graph.new(mla.kv_rank * tokens, compressed)
    latent = graph.over(mla.kv_rank * tokens, latent)
    absorbed = graph.new(block.heads * mla.kv_rank * tokens, q)
    q_all = graph.new(block.heads * block.k_elements * tokens, rotated, absorbed)
    k_all = graph.new(block.k_elements * tokens, k_rope, latent)
    graph.read(k_all, inputs.keys)
    mixed = _attend(graph, block, batch, inputs, q_all, block.heads * mla.kv_rank * tokens)
    value = block.heads * mla.value_length * tokens
    mixed = graph.new(value, mixed)
    mixed = graph.new(value, mixed)
    return graph.new(model.embedding_length * tokens, mixed)


def _recurrent(
    graph: Graph, model: Model, block: Block, batch: Batch, inputs: _Inputs, normed: int
) -> int:
    """A short convolution (lfm2) or a Mamba block; other kinds are taken as the latter."""
    tokens, n = batch.tokens * F32, model.embedding_length
    if model.architecture.startswith("lfm2"):
        chunks = graph.new(3 * n * tokens, normed)
        gated = graph.new(n * tokens, chunks)
        joined = graph.new(n * (tokens + 2 * F32), gated, inputs.states)
        convolved = graph.over(n * tokens, graph.new(n * tokens, joined), chunks)
        return graph.new(n * tokens, convolved)
    inner = 2 * n * tokens
    state = block.state_bytes * batch.sequences
    projected = graph.new(2 * inner, normed)
    joined = graph.new(inner + 3 * 2 * n * F32, projected, inputs.states)
    x = graph.over(inner, graph.over(inner, graph.new(inner, joined)))
    small = graph.new((n // 16 + 32) * tokens, x)
    rate = graph.over(inner, graph.new(inner, graph.new(n // 16 * tokens, small)))
    scanned = graph.new(inner + state, x, rate, small)
    skipped = graph.new(inner, x)
    summed = graph.over(inner, skipped, scanned)
    gate = graph.new(inner, projected)
    return graph.new(n * tokens, graph.new(inner, gate, summed))


def _feed_forward(graph: Graph, model: Model, block: Block, rows: int, normed: int) -> int:
    width = block.feed_forward_length * rows * F32
    if model.architecture in FUSED_GATE:
        gated = graph.new(width, graph.new(2 * width, normed))
    else:
        up = graph.new(width, normed)
        gated = graph.new(width, graph.new(width, normed), up)
    return graph.new(model.embedding_length * rows * F32, gated)


def _experts(graph: Graph, model: Model, block: Block, rows: int, normed: int) -> int:
    """Routed experts (build_moe_ffn): every token has `used` rows of each width."""
    experts = model.experts
    assert experts is not None
    size = model.embedding_length * rows * F32
    logits = experts.count * rows * F32
    chances = graph.over(logits, graph.new(logits, normed))
    chosen = graph.new(logits, chances)
    weights = graph.new(experts.used * rows * F32, chances, chosen)
    total = graph.new(rows * F32, weights)
    weights = graph.over(experts.used * rows * F32, weights, graph.over(rows * F32, total))
    width = experts.feed_forward_length * experts.used * rows * F32
    up = graph.new(width, normed, chosen)
    gate = graph.new(width, normed, chosen)
    gated = graph.new(width, gate, up)
    down = graph.new(size * experts.used, gated, chosen)
    down = graph.over(size * experts.used, down, weights)
    summed = graph.new(size, down)
    for _ in range(2, experts.used):
        summed = graph.over(size, summed, down)
    return summed
