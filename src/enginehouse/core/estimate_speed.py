"""How fast a model will decode and prefill: the roofline, and what is expected below it.

One decoded token reads every active weight once and the KV cache of its sequence, so the memory's
bandwidth bounds it. The other roof is the processor's: how fast the engine's products multiply
weights that no memory has to deliver. Where the engine's own operations were measured on this
machine (`Rates`), the expected figure is a sum of times: each tensor group at the rate of its type,
attention at the rate of its heads' size, and the small operations between them. Without them it is
a share of the bound.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from enginehouse.core.estimate import Range, within
from enginehouse.core.estimate_kv import padded
from enginehouse.core.estimate_llama import is_repacked
from enginehouse.core.llama_graph import operation_count, small_elements
from enginehouse.core.model import Block, Model, TensorGroup

USUAL_SHARE = Range(0.3, 0.6, 0.9)
"""Share of the bandwidth's bound that engines reach on memory that is the limit."""
PREFILL_SHARE = Range(0.2, 0.5, 0.9)
DECODE_SPREAD, PREFILL_SPREAD = 0.2, 0.3
PROMPT_TOKENS = 256
"""The length of prompt that a prefill rate is told for, where nobody says another."""
ATTENDING = ("full", "sliding", "chunked")
REPACKED, EXPERTS, CACHED = " repacked", " experts", " in cache"
ATTENTION, SMALL_OPERATIONS, PRODUCTS = "attention ", "small", "products"
SPLIT_CELLS = 512
"""From so many cells on the engine splits one token's cache among its threads, each an equal run of
cells (`ggml_compute_forward_flash_attn_ext_f16` in `ggml/src/ggml-cpu/ops.cpp`)."""
READ_CLASSES = ("output", "attention", "recurrent", "feed-forward", "experts", "norms", "other")


@dataclass(frozen=True)
class Rates:
    """What was measured here of an engine's build, by the names that `rate_names` gives.

    A product's name is its weights' type, ` repacked` appended where the engine copies the type
    into another layout and ` experts` where it is routed; its rates are bytes/s of weights for one
    token, and operations/s for a batch's tokens. With ` in cache` appended it is the rate of one
    token where the weights already lie in the processor's caches, twice. Those of `attention
    HEADSxKVxSIZE` are multiplications/s; those of `small` are operations/s on a vector for one
    token, and elements/s; `products` is how many products could start in a second, if they had no
    weights to read.
    """

    decode: dict[str, float] = field(default_factory=dict)
    prefill: dict[str, float] = field(default_factory=dict)
    bandwidth_bytes_per_s: float = 0.0
    threads: int = 1


@dataclass(frozen=True)
class Speed:
    """Predicted tok/s of one sequence; `bound` is the memory's roofline of decode.

    `basis` says where the prediction is from; `product_bound` is what the engine's products would
    decode if memory cost nothing, None where it was not measured.
    """

    decode: Range
    prefill: Range | None
    bound: float
    bytes_per_token: float
    bandwidth_bytes_per_s: float
    basis: str
    product_bound: float | None = None

    def share_of_bound(self, observed_tok_per_s: float) -> float:
        """Return what share of the roofline an observed decode rate is."""
        return observed_tok_per_s / self.bound


def estimate_speed(
    model: Model, bandwidth_bytes_per_s: float | None, kv_bytes: float = 0.0,
    compute_flop_per_s: float | None = None,
) -> Speed | None:  # fmt: skip
    """Predict from the bandwidth (and the compute) alone; None where the former is not known.

    `kv_bytes` is what the KV cache holds of the sequence when the token is decoded.
    """
    read = model.bytes_per_token + kv_bytes
    if not (model.bytes_per_token and bandwidth_bytes_per_s):
        return None
    bound = bandwidth_bytes_per_s / read
    prefill = None
    if compute_flop_per_s and (active := model.active_parameters or model.parameters):
        prefill = PREFILL_SHARE.times(compute_flop_per_s / (2.0 * active))
    basis = "bandwidth only"
    return Speed(USUAL_SHARE.times(bound), prefill, bound, read, bandwidth_bytes_per_s, basis)


def speed_from_rates(
    model: Model, rates: Rates, isa: Collection[str], kv_bytes: float = 0.0, cells: int = 0,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Speed | None:  # fmt: skip
    """Predict from measured rates; None where one that the model needs is missing.

    `cells` is how many tokens the sequence has when the token is decoded.
    """
    wanted = rate_names(model, isa)
    if not (rates.bandwidth_bytes_per_s and wanted <= rates.decode.keys() & rates.prefill.keys()):
        return None
    read = model.bytes_per_token + kv_bytes
    return Speed(
        decode=within(1.0 / decode_seconds(model, rates, isa, cells), DECODE_SPREAD),
        prefill=within(1.0 / prefill_seconds(model, rates, isa, prompt_tokens), PREFILL_SPREAD),
        bound=rates.bandwidth_bytes_per_s / read,
        bytes_per_token=read,
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        basis="this build's operations, measured here",
        product_bound=product_bound(model, rates, isa),
    )


def product_bound(model: Model, rates: Rates, isa: Collection[str]) -> float | None:
    """Return the tok/s of the products alone on weights in cache, None where one is not known."""
    groups = _active_groups(model)
    if not (groups and cached_names(model, isa) <= rates.decode.keys()):
        return None
    return 1.0 / sum(
        group.bytes * share / rates.decode[_cached_name(group, isa)] for group, share in groups
    )


def decode_seconds(model: Model, rates: Rates, isa: Collection[str], cells: int) -> float:
    """Return what one decoded token takes: products, attention, and what lies between.

    The engine's threads wait for each other after every operation (`ggml_barrier`), and a product
    starts by fetching what no cache holds: that is what small operations and small weights cost.
    """
    groups = _active_groups(model)
    products = sum(group.bytes * s / rates.decode[rate_name(group, isa)] for group, s in groups)
    starts = sum(group.tensors for group, _ in groups)
    attention = sum(
        _attended(block, shared_cells(block, cells, rates.threads)) / rates.decode[_name(block)]
        for block in _attending(model)
    )
    return (
        products + attention
        + starts / rates.decode[PRODUCTS]
        + (operation_count(model) - starts) / rates.decode[SMALL_OPERATIONS]
    )  # fmt: skip


def shared_cells(block: Block, cells: int, threads: int) -> int:
    """Return the cells that a layer's attention costs time for.

    In a cache that is split the cells after the last token are empty, so that the thread with the
    first run has the most to do and the others wait.
    """
    seen = min(cells, block.window) if block.window else cells
    span = padded(seen)
    return seen if span < SPLIT_CELLS else min(seen, -(-span // threads)) * threads


def prefill_seconds(model: Model, rates: Rates, isa: Collection[str], tokens: int) -> float:
    """Return what a token of a prompt of some tokens takes on average."""
    products = sum(
        2.0 * group.elements * share / rates.prefill[rate_name(group, isa)]
        for group, share in _active_groups(model)
        if not (group.tensor_class == "output" or _is_shared_table(model, group))
    )
    attention = sum(
        _attended(block, min((tokens + 1) // 2, block.window or tokens))
        / rates.prefill[_name(block)]
        for block in _attending(model)
    )
    small = small_elements(model) / rates.prefill[SMALL_OPERATIONS]
    return products + attention + small


def rate_names(model: Model, isa: Collection[str]) -> set[str]:
    """Return the names of the rates that a model's speed is made of."""
    products = {rate_name(group, isa) for group, _ in _active_groups(model)}
    attention = {_name(block) for block in _attending(model)}
    return products | attention | {SMALL_OPERATIONS, PRODUCTS}


def cached_names(model: Model, isa: Collection[str]) -> set[str]:
    """Return the names of the rates that the products' own roof is made of."""
    return {_cached_name(group, isa) for group, _ in _active_groups(model)}


def _cached_name(group: TensorGroup, isa: Collection[str]) -> str:
    return rate_name(group, isa).removesuffix(EXPERTS) + CACHED


def rate_name(group: TensorGroup, isa: Collection[str]) -> str:
    """Return the name under which a group's rate is kept."""
    layout = REPACKED if is_repacked(group, isa) else ""
    return f"{group.type}{layout}{EXPERTS if group.tensor_class == 'experts' else ''}"


def _name(block: Block) -> str:
    return f"{ATTENTION}{block.heads}x{max(block.kv_heads, 1)}x{block.key_length}"


def _attending(model: Model) -> list[Block]:
    return [block for block in model.blocks if block.heads and block.kind in ATTENDING]


def _attended(block: Block, cells: int) -> int:
    """Return the multiplications of one token's attention over some cells."""
    return cells * block.heads * (block.key_length + block.value_length)


def _active_groups(model: Model) -> list[tuple[TensorGroup, float]]:
    """Return the groups that are multiplied with, and the share of each that a token reads."""
    shares = [(group, _active_share(model, group)) for group in model.groups]
    return [(group, share) for group, share in shares if share and group.type != "F32"]


def _active_share(model: Model, group: TensorGroup) -> float:
    """Return the share of a group that one token reads (of a table one row, which is nothing)."""
    if _is_shared_table(model, group):
        return 1.0
    if group.tensor_class not in READ_CLASSES:
        return 0.0
    if group.tensor_class == "experts" and model.experts and model.experts.count:
        return model.experts.used / model.experts.count
    return 1.0


def _is_shared_table(model: Model, group: TensorGroup) -> bool:
    return model.is_output_tied and group.tensor_class == "token embedding"
