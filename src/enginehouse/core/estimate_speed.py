"""How fast a model will decode and prefill: the roofline, and what is expected below it.

One decoded token reads every active weight once and the KV cache of its sequence, so the memory's
bandwidth bounds it. Where the engine's own matrix products were measured on this machine (`Rates`),
the expected figure is a sum of times: each tensor group at the rate of its type, the KV cache, and
a cost for each layer and token. Without them it is a share of the bound.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from enginehouse.core.estimate import Range, within
from enginehouse.core.estimate_llama import is_repacked
from enginehouse.core.model import Model, TensorGroup

USUAL_SHARE = Range(0.3, 0.6, 0.9)
"""Share of the bandwidth's bound that engines reach on memory that is the limit."""
PREFILL_SHARE = Range(0.2, 0.5, 0.9)
DECODE_SPREAD, PREFILL_SPREAD = 0.2, 0.3
LAYER_S, ENTRY_S, PREFILL_FACTOR = 3e-5, 5e-9, 0.85
"""Used until `./dev bench fit_speed` has fitted them to a few shapes on this machine."""
READ_CLASSES = ("output", "attention", "recurrent", "feed-forward", "experts", "norms", "other")


@dataclass(frozen=True)
class Rates:
    """What was measured here of an engine's build.

    `decode_bytes_per_s` and `prefill_flop_per_s` are those of a matrix product by the weights'
    type, ` repacked` appended where the engine copies the type into another layout.
    `layer_s` is the cost of a layer in one step beside its products, `entry_s` that of an entry of
    the vocabulary in choosing a token, `prefill_factor` what prompts reach of their products' rate.
    """

    decode_bytes_per_s: dict[str, float] = field(default_factory=dict)
    prefill_flop_per_s: dict[str, float] = field(default_factory=dict)
    bandwidth_bytes_per_s: float = 0.0
    layer_s: float = LAYER_S
    entry_s: float = ENTRY_S
    prefill_factor: float = PREFILL_FACTOR


@dataclass(frozen=True)
class Speed:
    """Predicted tok/s of one sequence; `bound` is the roofline of decode, `basis` where from."""

    decode: Range
    prefill: Range | None
    bound: float
    bytes_per_token: float
    bandwidth_bytes_per_s: float
    basis: str

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
    model: Model, rates: Rates, isa: Collection[str], kv_bytes: float = 0.0
) -> Speed | None:
    """Predict from measured rates; None where the rate of one of the model's types is missing."""
    products = product_seconds(model, rates, isa)
    if products is None or not rates.bandwidth_bytes_per_s:
        return None
    decode_s, prefill_s = products
    decode_s += kv_bytes / rates.bandwidth_bytes_per_s
    decode_s += model.layers * rates.layer_s + model.vocabulary_size * rates.entry_s
    read = model.bytes_per_token + kv_bytes
    return Speed(
        decode=within(1.0 / decode_s, DECODE_SPREAD),
        prefill=within(rates.prefill_factor / prefill_s, PREFILL_SPREAD),
        bound=rates.bandwidth_bytes_per_s / read,
        bytes_per_token=read,
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        basis="this build's matrix products, measured here",
    )


def product_seconds(model: Model, rates: Rates, isa: Collection[str]) -> tuple[float, float] | None:
    """Return the seconds that one decoded and one prefilled token spend in matrix products.

    None where the rate of one of the model's types is missing.
    """
    decode_s, prefill_s = 0.0, 0.0
    for group in model.groups:
        share = _active_share(model, group)
        if not share or group.type == "F32":
            continue
        name = rate_name(group, isa)
        if name not in rates.decode_bytes_per_s or name not in rates.prefill_flop_per_s:
            return None
        decode_s += group.bytes * share / rates.decode_bytes_per_s[name]
        is_head = group.tensor_class == "output" or _is_shared_table(model, group)
        if not is_head:
            prefill_s += 2.0 * group.elements * share / rates.prefill_flop_per_s[name]
    return (decode_s, prefill_s) if decode_s and prefill_s else None


def rate_name(group: TensorGroup, isa: Collection[str]) -> str:
    """Return the name under which a group's rate is kept."""
    return f"{group.type} repacked" if is_repacked(group, isa) else group.type


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
