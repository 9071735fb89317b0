"""Verdicts, the largest that fits, corrections, and speed below the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.correction import SETTLED, Observation, correction_from
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range, exactly
from enginehouse.core.estimate_speed import (
    Rates,
    cached_names,
    estimate_speed,
    rate_name,
    rate_names,
    shared_cells,
    speed_from_rates,
)
from enginehouse.core.fit import (
    FITS,
    NOT,
    TIGHT,
    Budget,
    FitRow,
    budget_of,
    judge,
    largest_context,
    most_sequences,
    rank,
)
from enginehouse.core.fit_model import FitRequest, fit_model
from enginehouse.core.llama_graph import operation_count, small_elements
from enginehouse.core.machine import Gpu
from enginehouse.core.model import Block, TensorGroup
from tests.unit.values import MACHINE, MODEL

GIB = 2**30
LLAMA = replace(
    MODEL,
    blocks=(Block("full", 9, 3, 64, 64, 0, 192, 192, feed_forward_length=1536),) * 30,
    groups=(
        TensorGroup("attention", "Q4_0", 120, 30_000_000, 16_875_000),
        TensorGroup("feed-forward", "Q4_0", 90, 80_000_000, 45_000_000),
        TensorGroup("token embedding", "Q8_0", 1, 28_311_552, 30_081_024),
    ),
    is_output_tied=True,
    feed_forward_length=1536,
)


def linear(context: int, sequences: int) -> MemoryEstimate:
    """1 GiB of weights, and a MiB a token."""
    kv = context * sequences * 2.0**20
    return MemoryEstimate((MemoryPart("weights", exactly(GIB)), MemoryPart("KV", exactly(kv))))


def row(estimate: MemoryEstimate, budget: Budget, most_context: int = 0) -> FitRow:
    """A row to be judged."""
    return FitRow("llama.cpp", "Q4_0", "f16", 1024, 1, estimate, budget, NOT, "", most_context)


def test_the_largest_context_fills_the_budget_and_no_more() -> None:
    """The largest context that is expected to fit, in steps of 256; one step more does not fit."""
    budget = Budget(3.0 * GIB)
    assert largest_context(linear, 1, 1 << 20, budget) == 2048
    assert not budget.holds(linear(2048 + 256, 1))
    assert largest_context(linear, 1, 1024, budget) == 1024
    assert largest_context(linear, 1, 1 << 20, Budget(0.5 * GIB)) == 0
    assert most_sequences(linear, 512, budget) == 4


def test_what_fits_at_its_highest_fits() -> None:
    """A verdict is `fits` only when even the high values stay within the budget."""
    wide = MemoryEstimate((MemoryPart("KV", exactly(GIB)), MemoryPart("x", Range(0, 1, 2 * GIB))))
    assert judge(row(wide, Budget(4 * GIB))).verdict == FITS
    tight = judge(row(wide, Budget(2 * GIB)))
    assert tight.verdict == TIGHT
    assert "x stays below its most" in tight.line
    assert judge(row(wide, Budget(0.5 * GIB))).verdict == NOT


def test_a_smaller_context_is_named_when_it_would_fit() -> None:
    """`fits if` names the largest context; `does not fit because` names the largest part."""
    smaller = judge(row(linear(4096, 1), Budget(3 * GIB), most_context=2048))
    assert smaller.line.startswith("fits if the context is at most 2,048")
    none = judge(row(linear(1024, 1), Budget(0.5 * GIB)))
    assert none.line.startswith("does not fit because it needs 2.0 GiB (weights 1.0 GiB)")


def test_pages_that_can_be_taken_back_are_not_needed() -> None:
    """Reclaimable file pages count in what is resident and not in what must be there."""
    estimate = MemoryEstimate(
        (MemoryPart("KV", exactly(10)), MemoryPart("file pages", exactly(5), is_reclaimable=True))
    )
    assert estimate.total.expected == 10
    assert estimate.resident.expected == 15
    assert estimate.corrected(2.0).total.expected == 25


def test_unified_memory_has_one_budget_and_a_card_its_own() -> None:
    """A GPU that shares the main memory adds nothing to it."""
    card = Gpu("RTX", "nvidia", 24 * GIB, 20 * GIB)
    assert budget_of(replace(MACHINE, gpus=(card,)), 0, True).device == 20 * GIB
    shared = replace(MACHINE, gpus=(replace(card, unified=True),))
    assert budget_of(shared, GIB, True) == Budget(11 * GIB, None, "memory shared with the GPU")
    assert budget_of(replace(MACHINE, gpus=(card,)), 0, False).device is None


def test_a_card_holds_what_lies_on_it_and_the_host_the_rest() -> None:
    """Both budgets must hold."""
    parts = (
        MemoryPart("weights", exactly(10 * GIB), is_on_device=True),
        MemoryPart("run time", exactly(GIB)),
    )
    estimate = MemoryEstimate(parts)
    assert Budget(2 * GIB, 11.0 * GIB).holds(estimate)
    assert not Budget(2 * GIB, 9.0 * GIB).holds(estimate)
    assert not Budget(0.5 * GIB, 11.0 * GIB).holds(estimate)


def seen(ratio: float) -> Observation:
    """A trial that was observed to hold `ratio` times what was predicted."""
    return Observation("m" * 16, "b" * 16, "llama", 100.0, 100.0 * ratio)


def test_a_correction_is_what_most_trials_agree_on() -> None:
    """One trial beside other work does not spoil it, and nonsense is not used at all."""
    assert correction_from([]) is None
    assert correction_from([seen(5.0)]) is None
    learnt = correction_from([seen(1.05), seen(1.07), seen(1.9), seen(7.0), seen(1.06), seen(1.08)])
    assert learnt is not None
    assert learnt.factor == pytest.approx(1.06)
    assert learnt.trials == 5


@given(st.lists(st.floats(0.8, 1.25), min_size=1, max_size=20))
def test_a_correction_makes_less_than_a_quarter_of_what_it_was_learnt_from_worse(
    ratios: list[float],
) -> None:
    """Noise around a good prediction corrects nothing, and no factor overshoots most trials."""
    learnt = correction_from([seen(ratio) for ratio in ratios])
    assert learnt is not None
    worse = [r for r in ratios if abs(r - learnt.factor) > abs(r - 1) + 1e-9]
    assert len(worse) <= len(ratios) / 4
    assert learnt.factor == 1.0 or abs(learnt.factor - 1) > SETTLED
    if min(ratios) <= 1 <= max(ratios) and len(ratios) < 5:
        assert learnt.factor == 1.0


def test_a_correction_hits_resident_memory_and_leaves_file_pages_alone() -> None:
    """What was learnt of resident memory is applied to resident memory."""
    parts = (MemoryPart("KV", exactly(100)), MemoryPart("file", exactly(300), is_reclaimable=True))
    better = MemoryEstimate(parts).corrected(1.05)
    assert better.resident.expected == pytest.approx(420)
    assert better.part("file") == exactly(300)
    assert better.total.expected == pytest.approx(120)


def test_a_quantized_kv_cache_is_offered_and_takes_less() -> None:
    """Every KV type is judged, and the smaller type needs less and reaches further."""
    machine = replace(MACHINE, memory_available_bytes=700 << 20)
    model = replace(LLAMA, context_length=1 << 17)
    rows = fit_model(model, machine, FitRequest(context=8192))
    assert [item.kv_type for item in rows] == ["f16", "q8_0", "q4_0"]
    assert rows[0].estimate.total.expected > rows[1].estimate.total.expected
    assert rows[0].most_context < rows[1].most_context < rows[2].most_context


def test_an_engine_that_cannot_read_the_model_says_why() -> None:
    """An engine that was asked for by name is refused with a reason, else left out."""
    asked = fit_model(replace(LLAMA, format="safetensors"), MACHINE, FitRequest(engine="llama.cpp"))
    assert asked[0].line == "does not fit because llama.cpp reads GGUF, not safetensors"
    assert [item.engine for item in fit_model(LLAMA, MACHINE, FitRequest(kv_type="f16"))] == [
        "llama.cpp"
    ]


def test_decode_never_exceeds_the_roofline_by_bandwidth() -> None:
    """Expected and high lie below bandwidth ÷ bytes a token; unknown bandwidth predicts nothing."""
    speed = estimate_speed(LLAMA, 10e9)
    assert speed is not None
    assert speed.bound == pytest.approx(10e9 / LLAMA.bytes_per_token)
    assert speed.decode.low < speed.decode.expected < speed.decode.high < speed.bound
    assert speed.share_of_bound(speed.bound / 4) == pytest.approx(0.25)
    assert estimate_speed(LLAMA, None) is None


RATES = Rates(
    {"Q4_0 repacked": 10e9, "Q8_0": 5e9, "attention 9x3x64": 2e9, "small": 1e6, "products": 1e5},
    {"Q4_0 repacked": 50e9, "Q8_0": 40e9, "attention 9x3x64": 4e9, "small": 1e9, "products": 1},
    20e9, threads=2,
)  # fmt: skip


def test_rates_add_up_the_time_of_each_group() -> None:
    """One token's time is the sum over tensor groups, attention, and waiting between operations."""
    speed = speed_from_rates(LLAMA, RATES, ("avx2",), kv_bytes=2e6, cells=100)
    starts = 120 + 90 + 1
    waits = starts / 1e5 + (operation_count(LLAMA) - starts) / 1e6
    attention = 30 * 9 * 128 * 100 / 2e9
    seconds = 61_875_000 / 10e9 + 30_081_024 / 5e9 + attention + waits
    assert speed is not None
    assert speed.decode.expected == pytest.approx(1 / seconds)
    assert speed.prefill is not None
    seconds = 2 * 110_000_000 / 50e9 + 30 * 9 * 128 * 128 / 4e9 + small_elements(LLAMA) / 1e9
    assert speed.prefill.expected == pytest.approx(1 / seconds)


@pytest.mark.parametrize(
    ("cells", "threads", "cost"), [(200, 2, 200), (300, 2, 512), (512, 2, 512), (300, 1, 300)]
)
def test_a_split_cache_costs_what_its_fullest_part_does(
    cells: int, threads: int, cost: int
) -> None:
    """Of 512 cells the first thread has 256: with 300 tokens in it the second has little to do."""
    assert shared_cells(LLAMA.blocks[0], cells, threads) == cost


@pytest.mark.parametrize("name", sorted(rate_names(LLAMA, ("avx2",))))
def test_without_one_of_its_rates_a_model_is_not_predicted_from_rates(name: str) -> None:
    """What was not measured is not guessed."""
    some = {key: value for key, value in RATES.decode.items() if key != name}
    assert speed_from_rates(LLAMA, replace(RATES, decode=some), ("avx2",)) is None


def test_the_products_are_a_roof_of_their_own() -> None:
    """Weights in cache at the rate of each type, beside memory's own."""
    near = {"Q4_0 repacked in cache": 20e9, "Q8_0 in cache": 10e9}
    known = replace(RATES, decode=RATES.decode | near)
    seconds = 61_875_000 / 20e9 + 30_081_024 / 10e9
    speed = speed_from_rates(LLAMA, known, ("avx2",))
    assert speed is not None
    assert speed.product_bound == pytest.approx(1 / seconds)
    assert speed.bound == pytest.approx(20e9 / LLAMA.bytes_per_token)


@pytest.mark.parametrize("name", sorted(cached_names(LLAMA, ("avx2",))))
def test_a_roof_of_products_needs_every_type(name: str) -> None:
    """With one rate missing, only memory's roof is known, and the prediction stays."""
    known = dict.fromkeys(cached_names(LLAMA, ("avx2",)) - {name}, 1000000000.0)
    speed = speed_from_rates(LLAMA, replace(RATES, decode=RATES.decode | known), ("avx2",))
    assert speed is not None
    assert speed.product_bound is None


def test_experts_have_a_rate_of_their_own() -> None:
    """A product that is routed gathers rows by expert, which costs more than a plain one."""
    group = TensorGroup("experts", "Q4_0", 3, 1, 1)
    assert rate_name(group, ("avx2",)) == "Q4_0 repacked experts"


def test_the_operations_of_a_model_grow_with_its_layers() -> None:
    """Every layer counts, not only those that stand for the others in the allocator's plan."""
    twice = replace(LLAMA, blocks=LLAMA.blocks * 2)
    one_layer = (operation_count(twice) - operation_count(LLAMA)) / 30
    assert 15 <= one_layer <= 25
    assert small_elements(twice) > 1.9 * small_elements(LLAMA)


def test_ranking_puts_what_fits_before_what_is_fast() -> None:
    """A fast model that does not fit is no use."""
    fast = replace(row(linear(1, 1), Budget(1)), verdict=NOT, speed=estimate_speed(LLAMA, 100e9))
    slow = replace(row(linear(1, 1), Budget(1)), verdict=FITS, speed=estimate_speed(LLAMA, 1e9))
    assert rank((fast, slow)) == (slow, fast)
