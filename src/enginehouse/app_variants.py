"""The quantizations that a search may try, made before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginehouse.core.errors import EnginehouseError
from enginehouse.core.model import Model
from enginehouse.edges.quantize import VariantStore, make_variant, weigh_here

if TYPE_CHECKING:
    from enginehouse.trials.contracts import Watch


def make_variants(
    model: Model, store: VariantStore, limit_s: float, watch: Watch
) -> dict[str, Model]:
    """Return the variants worth a trial, the most promising first, as far as time allows.

    What is not made, or cannot be, is said with its reason; nothing is raised for it.
    """
    made: dict[str, Model] = {}
    left_s = limit_s
    for variant in weigh_here(model, store):
        name = variant.quantization
        if variant.refusal:
            watch.on_step(f"{name} is not made: {variant.refusal}")
            continue
        if variant.make_s > left_s:
            watch.on_step(
                f"{name} is not made: it takes about {variant.make_s:.0f} s, and "
                f"{max(0.0, left_s):.0f} s are left for it; a longer --budget makes it"
            )
            continue
        if variant.make_s:
            watch.on_step(f"making {name} of {model.quantization}: {variant.reason}")
        try:
            made[name] = make_variant(model, name, store)
        except EnginehouseError as problem:
            watch.on_step(f"{name} could not be made: {problem.report.what}")
            continue
        left_s -= variant.make_s
    return made
