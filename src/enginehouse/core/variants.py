"""Which quantizations of a model are worth making here from the file at hand, and which are not.

A quantization can only take away: a variant is measured against its source, never against the
original that the source was made of. So from a file that is quantized already nothing is made that
is larger, but Q8_0: it keeps the source's values nearly exactly, and some engines compute faster
with it than with the source's type.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from enginehouse.core.gguf_header import GgufHeader
from enginehouse.core.model import Model
from enginehouse.core.quant_types import (
    FORMATS,
    UNKNOWN_RULES,
    Target,
    may_quantize,
    predict_file_bytes,
    target_types,
)

SLACK = 1.02
"""A variant of a quantized source may be this much larger and still count as no larger."""

WORTH: dict[str, str] = {
    "Q4_0": "the fastest 4-bit type to compute on a CPU, which rearranges its weights at load",
    "Q4_0-pure-v8": "as Q4_0, the token table too, which every token reads whole; the value "
    "matrices in Q8_0 pay for it",
    "Q4_K_M": "the best answers at about 4.8 bits a weight",
    "Q8_0": "nearly the source's answers, and cheap to compute",
    "Q6_K": "nearly the source's answers in 6.6 bits a weight",
    "Q5_K_M": "better answers than 4 bits, for 5.7 bits a weight",
    "IQ4_NL": "4.5 bits a weight with better answers than Q4_0, rearranged at load as well",
}
"""Formats worth a trial, in the order that they are tried, and why."""

_BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K": 5.5, "Q5_1": 6.0,
    "Q5_0": 5.5, "Q4_1": 5.0, "Q4_K": 4.5, "Q4_0": 4.5, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "MXFP4": 4.25, "NVFP4": 4.5,
}  # fmt: skip


_WEIGHTS_PER_S = {
    "wheel": {"Q4_K": 11e6, "Q5_K": 13e6, "Q6_K": 20e6, "IQ4_NL": 1.5e6, "": 100e6},
    "llama-quantize": {"Q4_K": 14e6, "Q5_K": 16e6, "Q6_K": 26e6, "IQ4_NL": 4e6, "": 150e6},
}
"""Weights a second and core, by means and type; measured on one AVX2 machine (docs/quality.md)."""


_SPEEDS = {
    "Q4_0-pure-v8": (577.0, 209.0), "Q4_0": (597.0, 195.0), "IQ4_NL": (544.0, 158.0),
    "Q4_1": (285.0, 156.0), "Q4_K_M": (415.0, 138.0), "Q8_0": (504.0, 126.0),
    "Q5_K_M": (258.0, 115.0),
}  # fmt: skip
"""Prefill and decode by `llama-bench` on one AVX2 machine, tok/s (docs/lab-log.md): what counts is
how they compare. Of `Q4_0-pure-v8` they are pure's, less what its larger matrices take to read."""


@dataclass(frozen=True)
class Variant:
    """A quantization of a model: what it will take, and why it is worth a trial, or not.

    `make_s` is about how long making it takes. `refusal` is empty when it is worth making.
    """

    quantization: str
    file_bytes: int
    make_s: float
    reason: str
    refusal: str = ""


@dataclass(frozen=True)
class Workshop:
    """What variants are made with, and the room there is; sizes in bytes.

    `kept` are the quantizations of this source that are there already. `means` is how they are
    made (`llama-quantize`, `wheel`), empty where they cannot be.
    """

    means: str
    disk_budget_bytes: int
    free_bytes: int
    free_reserve_bytes: int
    threads: int = 1
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True)
class KeptVariant:
    """A variant on disk: where, its bytes, and when it was last used (any clock that goes on)."""

    path: str
    bytes: int
    used_at: float


def variants_of(model: Model, header: GgufHeader, workshop: Workshop) -> tuple[Variant, ...]:
    """Return the quantizations worth making, the most promising first."""
    return tuple(v for v in weigh_variants(model, header, workshop) if not v.refusal)


def weigh_variants(model: Model, header: GgufHeader, workshop: Workshop) -> tuple[Variant, ...]:
    """Return every quantization of `WORTH`, with the reason for each or the reason against."""
    against = _refuse_all(model, header, workshop)
    room = min(
        workshop.disk_budget_bytes, max(0, workshop.free_bytes - workshop.free_reserve_bytes)
    )
    weighed = []
    for name, reason in WORTH.items():
        targets = target_types(header, name)
        size = predict_file_bytes(header, targets)
        refusal = against or _refuse(name, model, size, targets)
        if not refusal and name not in workshop.kept:
            if size > room:
                refusal = f"it would take {_show(size)}, and {_show(room)} may be used for variants"
            else:
                room -= size
        seconds = 0.0 if name in workshop.kept else predict_seconds(targets, workshop)
        weighed.append(Variant(name, size, seconds, f"{reason}{_note(targets, name)}", refusal))
    return tuple(weighed)


def by_predicted_speed(
    names: Sequence[str], source: str, prompt_tokens: int, output_tokens: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the formats predicted faster than the source, the fastest first, and the others.

    A format whose token table is quantized too is among the others: it costs answers most.
    """

    def seconds(name: str) -> float | None:
        speeds = _SPEEDS.get(name)
        return prompt_tokens / speeds[0] + output_tokens / speeds[1] if speeds else None

    own = seconds(source.upper())
    known = {name: s for name in names if (s := seconds(name)) is not None}
    fast = tuple(
        sorted((n for n in known if own is None or known[n] < own), key=lambda n: known[n])
    )
    return fast, tuple(name for name in names if name not in fast)


def predict_seconds(targets: Sequence[Target], workshop: Workshop) -> float:
    """Predict how long making a variant takes, right within a factor of two or so."""
    rates = _WEIGHTS_PER_S.get(workshop.means, _WEIGHTS_PER_S["wheel"])
    work = sum(
        target.tensor.elements / rates.get(target.type_name, rates[""])
        for target in targets
        if not target.is_copied
    )
    return 0.5 + work / max(1, workshop.threads)


def choose_evictions(
    kept: Sequence[KeptVariant], needed_bytes: int, budget_bytes: int, protected: Collection[str]
) -> tuple[KeptVariant, ...]:
    """Return the variants to remove, least recently used first, so that `needed_bytes` fit.

    Protected paths stay. The result may be too few: the caller checks what is left.
    """
    over = sum(variant.bytes for variant in kept) + needed_bytes - budget_bytes
    removed = []
    for variant in sorted(kept, key=lambda variant: (variant.used_at, variant.path)):
        if over <= 0:
            break
        if variant.path not in protected:
            removed.append(variant)
            over -= variant.bytes
    return tuple(removed)


def _refuse_all(model: Model, header: GgufHeader, workshop: Workshop) -> str:
    if not workshop.means:
        return "nothing here can quantize: neither llama-quantize nor the wheel's own routines"
    if model.format != "gguf" or model.role != "model":
        return f"only a GGUF model can be quantized, not a {model.format} {model.role}"
    architecture = header.text("general.architecture")
    if workshop.means == "wheel" and architecture in UNKNOWN_RULES:
        return f"{architecture} has rules of its own that only llama-quantize knows"
    if any(not tensor.is_known for tensor in header.tensors):
        return "the file holds tensors of a type that is not known"
    return ""


def _refuse(name: str, model: Model, size: int, targets: tuple[Target, ...]) -> str:
    """Say why one format is not worth it from this source, or ""."""
    source = model.quantization.upper()
    base = FORMATS[name].base
    changed = [target for target in targets if not target.is_copied]
    if name == source or not changed:
        return f"the source is {name} already"
    held = _main_type(targets)
    bits = _BITS.get(held, 0.0)
    if bits < 4:
        return f"the source is {held or 'of an unknown type'}: any faster format would be larger"
    if bits >= 8 or base == "Q8_0":
        return ""
    if size > SLACK * model.file_bytes:
        return (
            f"it would be larger than its source ({_show(size)} against "
            f"{_show(model.file_bytes)}), which is {held}, and no better{_note(targets, name)}"
        )
    return ""


def _main_type(targets: tuple[Target, ...]) -> str:
    """Return the type that most of the layers' weights have now."""
    counts: dict[str, int] = {}
    for target in targets:
        if may_quantize(target.tensor):
            name, weight = target.tensor.type_name, target.tensor.elements
            is_table = target.tensor.name in ("token_embd.weight", "output.weight")
            counts[name] = counts.get(name, 0) + (0 if is_table else weight)
    return max(counts, key=lambda name: counts[name], default="")


def _note(targets: tuple[Target, ...], name: str) -> str:
    """Say how much of a format is not what its name says, where rows do not fit its blocks."""
    base = FORMATS[name].base
    weights = [target for target in targets if not target.is_copied or target.type_name == base]
    total = sum(target.tensor.elements for target in weights) or 1
    others: dict[str, int] = {}
    for target in weights:
        if target.type_name in ("Q5_0", "Q5_1", "Q4_0", "F16") and target.type_name != base:
            others[target.type_name] = others.get(target.type_name, 0) + target.tensor.elements
    if not others:
        return ""
    most = max(others, key=lambda other: others[other])
    share = sum(others.values()) / total
    return f"; its rows are no multiple of 256, so {share:.0%} of it is {most} and the like"


def _show(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
