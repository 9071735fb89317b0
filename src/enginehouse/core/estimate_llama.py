"""What llama.cpp's server holds, part by part.

Sources are llama.cpp b11549 by file and function. Four figures are measured and not derived: the
run time's own memory, the program's code, mapped and running, and bytes per token and merge of a
tokenizer
(docs/fit.md tells how; `./dev bench fit_accuracy` measures them again).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range, exactly, within
from enginehouse.core.estimate_kv import (
    MOST_CHECKPOINTS,
    CacheShape,
    checkpoint_bytes,
    full_cache_bytes,
    largest_window,
    padded,
    state_bytes,
    window_cache_bytes,
    window_cells,
)
from enginehouse.core.llama_graph import F16, F32, Batch, compute_buffer
from enginehouse.core.model import Model, TensorGroup

MIB = 2.0**20
RUNTIME_BYTES = Range(5 * MIB, 18.6 * MIB, 40 * MIB)
CODE_BYTES, IDLE_CODE_BYTES = Range(4 * MIB, 9.9 * MIB, 30 * MIB), 10.2 * MIB
"""Measured with the wheel (a Python interpreter and its library); a bare program has less. What of
the code is mapped by the start and not touched by serving is idle."""
TOKEN_BYTES, MERGE_BYTES = 173, 189
"""Measured: id_to_token, token_to_id, cache_token_to_piece and bpe_ranks of `llama-vocab.cpp`."""
CUDA_CONTEXT_BYTES = Range(150 * MIB, 350 * MIB, 600 * MIB)
REPACKED = {
    "x86": ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"),
    "arm-i8mm": ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"),
}
"""Types that the CPU backend copies into another layout (`ggml_repack_get_optimal_repack_type` in
`ggml/src/ggml-cpu/repack.cpp`); on ARM those for i8mm or dotprod."""
REPACKED_CLASSES = ("attention", "feed-forward", "experts", "output", "recurrent")
NGRAM_BYTES = 16 * MIB
DEFAULT_UBATCH = 512


@dataclass(frozen=True)
class LlamaSettings:
    """What of a candidate decides over memory; sizes in tokens, `context` is one slot's.

    `prompt_tokens` is the longest prompt expected in a slot, 0 for the whole context. `isa` holds
    the machine's instruction sets, `has_gpu` tells that all layers are offloaded.
    """

    context: int
    slots: int = 1
    ubatch: int = DEFAULT_UBATCH
    kv_type: str = "f16"
    has_flash: bool = True
    prompt_cache_bytes: float = 0.0
    prompt_tokens: int = 0
    isa: Collection[str] = ("avx2",)
    has_gpu: bool = False
    drafts_ngrams: bool = False

    @property
    def cache(self) -> CacheShape:
        """The caches' shape."""
        return CacheShape(
            self.context, self.slots, self.ubatch, self.kv_type, self.kv_type,
            is_transposed=not self.has_flash,
        )  # fmt: skip

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt expected in one slot."""
        return min(self.prompt_tokens or self.context, self.context)


def estimate_llama(model: Model, settings: LlamaSettings) -> MemoryEstimate:
    """Predict the memory of llama.cpp's server, part by part."""
    parts = (
        *_weights(model, settings),
        *_caches(model, settings),
        *_compute(model, settings),
        *_run_time(model, settings),
    )
    return MemoryEstimate(tuple(part for part in parts if part.bytes.high > 0))


def repacked_bytes(model: Model, isa: Collection[str]) -> float:
    """Return the bytes of the weights that exist a second time, in the CPU's own layout."""
    return sum(group.bytes for group in model.groups if is_repacked(group, isa)) - _unpackable(
        model, isa
    )


def is_repacked(group: TensorGroup, isa: Collection[str]) -> bool:
    """Whether the CPU backend copies a group's tensors into a layout of its own."""
    if group.tensor_class not in REPACKED_CLASSES:
        return False
    if "avx2" in isa:
        return group.type in REPACKED["x86"] or (group.type == "Q2_K" and "avx512f" in isa)
    is_arm = bool({"i8mm", "dotprod", "asimddp"} & set(isa))
    return is_arm and group.type in REPACKED["arm-i8mm"]


def _unpackable(model: Model, isa: Collection[str]) -> float:
    """MLA's per-head matrices have three dimensions, which repacking leaves alone."""
    mla = model.mla
    if mla is None or not mla.is_absorbed:
        return 0
    group = max(
        (group for group in model.groups if group.tensor_class == "attention"),
        key=lambda group: group.bytes,
    )
    if not is_repacked(group, isa):
        return 0
    blocks = [block for block in model.blocks if block.kind == "full"]
    rope = blocks[0].k_elements - mla.kv_rank if blocks else 0
    per_head = mla.kv_rank * (mla.key_length - rope + mla.value_length)
    elements = sum(block.heads for block in blocks) * per_head
    return int(elements * group.bytes / group.elements)


def _weights(model: Model, settings: LlamaSettings) -> tuple[MemoryPart, ...]:
    """Weights where they live (`llama-model-loader.cpp`, `llama-mmap.cpp`).

    The file is mapped and read in as a whole. What is computed from it in place stays in use; what
    was copied (repacked, offloaded) and rows of an embedding table that no prompt names are not.
    """
    projector = model.projector_bytes
    mapped = model.weight_bytes - model.bytes_of("projector")
    copied = mapped if settings.has_gpu else repacked_bytes(model, settings.isa)
    table = 0 if model.is_output_tied else model.bytes_of("token embedding")
    rows = _embedding_rows(model, settings)
    in_place = max(mapped - copied - table, 0) + min(rows, table)
    place = "in GPU memory" if settings.has_gpu else "in the CPU's layout"
    return (
        MemoryPart("weights", exactly(in_place), note="read from the mapped file"),
        MemoryPart(
            f"weights {place}", exactly(copied), note="a copy", is_on_device=settings.has_gpu
        ),
        MemoryPart("file pages", exactly(mapped - in_place), is_reclaimable=True),
        MemoryPart("projector", exactly(projector)),
    )


def _embedding_rows(model: Model, settings: LlamaSettings) -> float:
    """Rows of the embedding table that prompts touch, at least a page each."""
    table = model.bytes_of("token embedding")
    row = table / model.vocabulary_size if model.vocabulary_size else 0.0
    tokens = min(settings.longest_prompt * settings.slots, 4096)
    return tokens * max(row, 4096.0)


def _caches(model: Model, settings: LlamaSettings) -> tuple[MemoryPart, ...]:
    shape, on_device = settings.cache, settings.has_gpu
    first = max(settings.longest_prompt - settings.ubatch, 0)
    one = checkpoint_bytes(model, shape, settings.longest_prompt) * settings.slots
    both = one + (checkpoint_bytes(model, shape, first) * settings.slots if first else 0.0)
    cache = settings.prompt_cache_bytes
    return (
        MemoryPart("KV cache", exactly(full_cache_bytes(model, shape)), is_on_device=on_device),
        MemoryPart(
            "window cache", exactly(window_cache_bytes(model, shape)), is_on_device=on_device
        ),
        MemoryPart(
            "recurrent state", exactly(state_bytes(model, settings.slots)), is_on_device=on_device
        ),
        MemoryPart(
            "checkpoints",
            Range(0.0, both, MOST_CHECKPOINTS * one),
            note="copies of what cannot be rolled back, on the host",
        ),
        MemoryPart("prompt cache", Range(0.0, 0.0, cache), note="fills as conversations change"),
    )


def _compute(model: Model, settings: LlamaSettings) -> tuple[MemoryPart, ...]:
    """Compute buffer and the scratch that matrix products convert their input into.

    The buffer is reserved for a full batch at the end of the context (`sched_reserve`); a page of
    it exists once a batch has used it. What prompts of the expected length use is expected; two
    inputs for embeddings given from outside (build_inp_embd) have room and are never written.
    """
    reserved = compute_buffer(model, _batch(model, settings, settings.context, settings.ubatch))
    tokens = settings.longest_prompt
    rows = min(settings.ubatch, tokens * settings.slots)
    used = min(compute_buffer(model, _batch(model, settings, tokens, rows)), reserved)
    used -= 2 * model.embedding_length * rows * F32
    outputs = settings.slots * model.vocabulary_size * F32
    low = used * 0.95
    return (
        MemoryPart(
            "compute buffers", Range(low, used, max(reserved, used)), is_on_device=settings.has_gpu
        ),
        MemoryPart("output buffer", exactly(outputs)),
        MemoryPart("work buffer", within(work_bytes(model, settings, rows), 0.2)),
    )


def _batch(model: Model, settings: LlamaSettings, tokens: int, rows: int) -> Batch:
    shape = settings.cache
    window = largest_window(model)
    cells = min(padded(tokens), shape.cells)
    return Batch(
        tokens=min(rows, shape.cells * settings.slots),
        outputs=settings.slots,
        cells=cells,
        window_cells=min(cells, window_cells(window, shape)) if window else 0,
        flash=settings.has_flash,
        sequences=settings.slots,
        has_rotation=settings.kv_type not in ("f32", "f16", "bf16"),
    )


def work_bytes(model: Model, settings: LlamaSettings, rows: int) -> float:
    """Return the scratch for the widest matrix product (`ggml_graph_plan` in `ggml-cpu.c`).

    Its input, f32, is converted to Q8 (34 bytes for 32 values) or, for F16 weights, to F16.
    """
    if settings.has_gpu:
        return 0.0
    widths = [model.feed_forward_length, model.embedding_length, 2 * model.embedding_length]
    if model.experts:
        widths.append(model.experts.feed_forward_length * model.experts.used)
    biggest = max(model.groups, key=lambda group: group.bytes, default=None)
    is_half = biggest is not None and biggest.type in ("F16", "BF16")
    return max(widths) * rows * (F16 if is_half else 34 / 32)


def _run_time(model: Model, settings: LlamaSettings) -> tuple[MemoryPart, ...]:
    tokenizer = model.tokenizer
    tokens = tokenizer.tokens if tokenizer else model.vocabulary_size
    merges = tokenizer.merges if tokenizer else tokens
    vocabulary = tokens * TOKEN_BYTES + merges * MERGE_BYTES
    context = CUDA_CONTEXT_BYTES if settings.has_gpu else exactly(0)
    draft = NGRAM_BYTES if settings.drafts_ngrams else 0.0
    return (
        MemoryPart("tokenizer", within(vocabulary, 0.15)),
        MemoryPart("draft", exactly(draft), note="table of n-grams"),
        MemoryPart("run time", RUNTIME_BYTES),
        MemoryPart("program", CODE_BYTES, note="code that serving runs"),
        MemoryPart("idle program", exactly(IDLE_CODE_BYTES), is_reclaimable=True),
        MemoryPart("CUDA context", context, is_on_device=True),
    )
