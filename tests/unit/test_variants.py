"""The laws of which quantizations are worth making."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.variants import (
    KeptVariant,
    Variant,
    Workshop,
    by_predicted_speed,
    choose_evictions,
    variants_of,
    weigh_variants,
)
from tests.unit.test_quant_types import llama
from tests.unit.values import MODEL

GIB = 1 << 30
WORKSHOP = Workshop("wheel", 20 * GIB, 100 * GIB, 2 * GIB, threads=2)


def weigh(kind: str, workshop: Workshop = WORKSHOP, width: int = 1024) -> dict[str, Variant]:
    """Weigh the variants of a llama whose matrices are of one type, by quantization."""
    head = llama(8, width, kind=kind)
    size = sum(tensor.bytes for tensor in head.tensors)
    model = dataclasses.replace(MODEL, quantization=kind, file_bytes=size)
    return {v.quantization: v for v in weigh_variants(model, head, workshop)}


def worth(kind: str, width: int = 1024) -> list[str]:
    """The quantizations worth making, in order."""
    return [name for name, variant in weigh(kind, width=width).items() if not variant.refusal]


def test_from_full_precision_every_format_is_worth_a_trial_the_fastest_first() -> None:
    """F16 is the best source; the slowest to make is tried last."""
    assert worth("F16") == ["Q4_0", "Q4_0-pure-v8", "Q4_K_M", "Q8_0", "Q6_K", "Q5_K_M", "IQ4_NL"]
    assert worth("Q8_0") == ["Q4_0", "Q4_0-pure-v8", "Q4_K_M", "Q6_K", "Q5_K_M", "IQ4_NL"]


def test_from_a_quantized_source_only_smaller_ones_and_q8_0_are() -> None:
    """What is lost stays lost: a larger format is worth it only for its speed."""
    assert worth("Q4_1") == ["Q4_0", "Q4_0-pure-v8", "Q4_K_M", "Q8_0", "IQ4_NL"]
    assert worth("Q4_1", width=576) == ["Q4_0", "Q4_0-pure-v8", "Q8_0", "IQ4_NL"]
    assert "larger than its source" in weigh("Q4_1")["Q6_K"].refusal
    assert "no multiple of 256" in weigh("Q4_1", width=576)["Q4_K_M"].refusal


def test_from_few_bits_nothing_is() -> None:
    """Every faster format than a 2-bit one is larger."""
    assert worth("Q2_K") == []
    assert all("any faster format would be larger" in v.refusal for v in weigh("Q2_K").values())


def test_what_the_source_is_already_is_not_made() -> None:
    """A Q4_0 file is not made into Q4_0."""
    assert "already" in weigh("Q4_0")["Q4_0"].refusal


@pytest.mark.parametrize(
    ("workshop", "words"),
    [
        (dataclasses.replace(WORKSHOP, means=""), "nothing here can quantize"),
        (dataclasses.replace(WORKSHOP, disk_budget_bytes=1000), "may be used for variants"),
        (dataclasses.replace(WORKSHOP, free_bytes=2 * GIB), "may be used for variants"),
    ],
)
def test_what_cannot_be_made_here_says_why(workshop: Workshop, words: str) -> None:
    """No means, no budget and no free space are reasons, not errors."""
    assert all(words in variant.refusal for variant in weigh("F16", workshop).values())


def test_what_is_kept_already_needs_no_room_and_no_time() -> None:
    """A variant from an earlier search is worth it on a full disk too."""
    full = dataclasses.replace(WORKSHOP, free_bytes=0, kept=frozenset({"Q4_0"}))
    found = weigh("F16", full)
    assert [name for name, v in found.items() if not v.refusal] == ["Q4_0"]
    assert found["Q4_0"].make_s == 0.0


def test_rules_that_only_upstream_knows_are_left_to_it() -> None:
    """An architecture with rules of its own needs llama-quantize."""
    head = llama(2, 1024, arch="falcon")
    assert variants_of(MODEL, head, WORKSHOP) == ()
    assert variants_of(MODEL, head, dataclasses.replace(WORKSHOP, means="llama-quantize"))


def test_only_gguf_models_are_quantized() -> None:
    """A checkpoint or a projector is not."""
    head = llama(2, 1024)
    checkpoint = dataclasses.replace(MODEL, format="safetensors")
    projector = dataclasses.replace(MODEL, role="projector")
    assert variants_of(checkpoint, head, WORKSHOP) == ()
    assert variants_of(projector, head, WORKSHOP) == ()


KEPT = st.lists(
    st.builds(KeptVariant, st.text("abc", min_size=1, max_size=3), st.integers(0, 100),
              st.floats(0, 9)),
    unique_by=lambda kept: kept.path, max_size=8,
)  # fmt: skip


@given(KEPT, st.integers(0, 200), st.integers(0, 400), st.frozensets(st.sampled_from("abc")))
def test_the_least_recently_used_goes_first_and_no_more_than_must(
    kept: list[KeptVariant], needed: int, budget: int, protected: frozenset[str]
) -> None:
    """Nothing protected goes; nothing goes while there is room; older ones go before newer."""
    removed = choose_evictions(kept, needed, budget, protected)
    assert not {v.path for v in removed} & protected
    stays = [v for v in kept if v not in removed and v.path not in protected]
    assert all(r.used_at <= s.used_at for r in removed for s in stays)
    total = sum(v.bytes for v in kept) + needed
    freed = [v.bytes for v in removed]
    assert sum(freed[:-1]) < total - budget or not removed
    assert not stays or total - sum(freed) <= budget


def test_what_is_predicted_faster_than_the_source_comes_first() -> None:
    """The fastest for the workload is tried first; what is slower, or not known, is sampled."""
    names = ("Q4_K_M", "Q4_0", "Q4_0-pure", "Q4_0-pure-v8", "Q5_K_M")
    fast, rest = by_predicted_speed(names, "Q4_1", 128, 96)
    assert fast == ("Q4_0-pure-v8", "Q4_0", "Q4_K_M")
    assert rest == ("Q4_0-pure", "Q5_K_M")
    assert by_predicted_speed(names, "Q4_1", 4096, 1)[0][0] == "Q4_0"


def test_of_a_source_that_is_the_fastest_already_nothing_is_climbed() -> None:
    """From Q4_0 no other format is worth a trial of the climb."""
    assert by_predicted_speed(("Q8_0", "Q4_0-pure"), "q4_0", 128, 96)[0] == ()


def test_a_source_of_unknown_speed_is_slower_than_any_known_one() -> None:
    """F16 is left for the fastest format first."""
    assert by_predicted_speed(("Q8_0", "Q4_0"), "F16", 128, 96)[0] == ("Q4_0", "Q8_0")
