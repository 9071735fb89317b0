"""What vLLM holds, and what its `--gpu-memory-utilization` leaves for the KV cache.

Source: vLLM 0.9, `vllm/v1/worker/gpu_worker.py` (init_device, determine_available_memory) and
`vllm/v1/core/kv_cache_utils.py` (check_enough_kv_cache_memory), with their pages in its
documentation. The budget is a share of the *total* memory. At the start that much must be free.
Weights, the activations of a profiling run and what else was allocated meanwhile come off it; the
KV cache takes all the rest, at once. CUDA graphs are captured after that, outside the budget.

On a GPU that shares the main memory, the host's processes and the page cache live in the same
memory as the budget; `cudaMemGetInfo` calls MemFree free there, so pages of files that were read
(the weights themselves) count as used. None of the ranges below was measured by this project; they
enclose what is published for Jetson boards (docs/fit.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range, exactly, within
from enginehouse.core.model import Model

MIB, GIB = 2.0**20, 2.0**30
BLOCK_TOKENS = 16
DEFAULT_BATCHED_TOKENS = 2048
CUDA_CONTEXT_BYTES = Range(0.25 * GIB, 0.5 * GIB, 0.9 * GIB)
"""The driver's context with cuBLAS's workspaces ("non-torch memory")."""
HOST_BYTES = Range(0.9 * GIB, 1.6 * GIB, 3.0 * GIB)
"""Two Python processes with torch: the API server and the engine."""
GRAPH_LAYER_BYTES = 0.35 * MIB
"""CUDA graph memory for one layer and one captured batch size, in the middle of what is seen."""
KV_ELEMENT_BYTES = {"auto": 2.0, "f16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class VllmSettings:
    """vLLM's flags that decide over memory; `context` is `--max-model-len`."""

    context: int
    sequences: int = 8
    utilization: float = 0.9
    kv_type: str = "auto"
    batched_tokens: int = DEFAULT_BATCHED_TOKENS
    has_graphs: bool = True


@dataclass(frozen=True)
class VllmPlan:
    """How vLLM divides its budget; bytes, `kv_tokens` in tokens.

    `device` is what the GPU side holds when it is up, the budget and the graphs; `host` the two
    processes; `file_pages` the weights' file in the page cache after it was read.
    """

    requested: float
    weights: float
    overhead: Range
    kv_available: Range
    kv_needed: float
    kv_per_token: float
    graphs: Range
    host: Range
    file_pages: float

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache will hold."""
        if not self.kv_per_token:
            return 0
        blocks = max(self.kv_available.expected, 0.0) // (self.kv_per_token * BLOCK_TOKENS)
        return int(blocks) * BLOCK_TOKENS

    @property
    def device(self) -> float:
        """What the GPU side comes to hold: the whole budget, and the graphs."""
        return self.requested + self.graphs.expected


def plan_vllm(model: Model, settings: VllmSettings, device_total_bytes: float) -> VllmPlan:
    """Divide the budget as vLLM does at its start."""
    requested = device_total_bytes * settings.utilization
    weights = float(model.weight_bytes)
    activations = activation_bytes(model, settings)
    overhead = Range(
        CUDA_CONTEXT_BYTES.low + activations.low,
        CUDA_CONTEXT_BYTES.expected + activations.expected,
        CUDA_CONTEXT_BYTES.high + activations.high,
    )
    left = requested - weights
    per_token = kv_bytes_per_token(model, settings.kv_type)
    return VllmPlan(
        requested=requested,
        weights=weights,
        overhead=overhead,
        kv_available=Range(left - overhead.high, left - overhead.expected, left - overhead.low),
        kv_needed=per_token * settings.context * settings.sequences,
        kv_per_token=per_token,
        graphs=graph_bytes(model, settings),
        host=HOST_BYTES,
        file_pages=weights,
    )


def estimate_vllm(model: Model, settings: VllmSettings) -> MemoryEstimate:
    """Predict what a vLLM needs that holds just these sequences at this context, part by part."""
    kv = kv_bytes_per_token(model, settings.kv_type) * settings.context * settings.sequences
    parts = (
        MemoryPart("weights", within(model.weight_bytes, 0.03), is_on_device=True),
        MemoryPart("KV cache", exactly(kv), is_on_device=True),
        MemoryPart(
            "activations",
            activation_bytes(model, settings),
            note="of the profiling run",
            is_on_device=True,
        ),
        MemoryPart("CUDA context", CUDA_CONTEXT_BYTES, is_on_device=True),
        MemoryPart("CUDA graphs", graph_bytes(model, settings), is_on_device=True),
        MemoryPart("run time", HOST_BYTES, note="two processes on the host"),
        MemoryPart("file pages", exactly(model.weight_bytes), is_reclaimable=True),
    )
    return MemoryEstimate(parts)


def kv_bytes_per_token(model: Model, kv_type: str) -> float:
    """Return the KV cache's bytes for one token, all layers as if they attended to everything."""
    elements = sum(block.k_elements + block.v_elements for block in model.blocks)
    elements = elements or model.k_elements_per_token + model.v_elements_per_token
    return elements * KV_ELEMENT_BYTES.get(kv_type, 2.0)


def activation_bytes(model: Model, settings: VllmSettings) -> Range:
    """Predict the peak of the profiling run: one full batch, and a sampling step.

    A layer's widest moment is gate, up and their product beside the hidden state and its residual
    (2 bytes each); sampling sorts f32 logits of every sequence, with copies.
    """
    wide = model.feed_forward_length or 4 * model.embedding_length
    hidden = (3 * wide + 4 * model.embedding_length) * 2.0 * settings.batched_tokens
    logits = model.vocabulary_size * 4.0 * settings.sequences * 3
    expected = hidden + logits
    return Range(0.5 * expected, expected, 3 * expected)


def graph_bytes(model: Model, settings: VllmSettings) -> Range:
    """Predict the CUDA graphs: one for each batch size 1, 2, 4, 8, 16, 24 … up to the sequences."""
    if not settings.has_graphs:
        return exactly(0.0)
    sizes = 1
    for size in (2, 4, *range(8, 513, 8)):
        sizes += settings.sequences >= size
    expected = sizes * max(model.layers, 1) * GRAPH_LAYER_BYTES + 50 * MIB
    return Range(0.3 * expected, expected, 4 * expected)
