"""The register of blocks: what is in force on a machine, and what lifts it."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest

from enginehouse.core.block import (
    BUILD_DIGESTS,
    Block,
    State,
    blocked,
    blocks_of,
    facts_by_engine,
    standing_of,
)
from enginehouse.core.facts import Fact, Facts
from enginehouse.core.trial import Diagnosis, Evidence, Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.examination import examine_recording
from enginehouse.engines.llama_cpp import ENGINE
from enginehouse.knowledge.blocks import block_of, load_blocks
from tests.unit.values import MACHINE, MODEL, WHEEL, trial

MACHINES = Path(__file__).parents[1] / "fixtures" / "machines"
MINIMAL = ENGINE.minimal(WHEEL, MODEL, WORKLOADS["chat"])
GOOD = {
    "id": "x", "engine": "vllm", "cause": "driver.too_old", "what": "w", "evidence": "e",
    "again": "a", "status": "reported", "sources": ["https://example.org/x"],
    "applies": [{"fact": "jetson.l4t", "known": True}],
    "lifted": [{"says": "s", "when": [{"fact": "jetson.l4t", "version_from": "39.2"}]}],
}  # fmt: skip


def block(id: str) -> Block:
    return next(block for block in load_blocks() if block.id == id)


def state(id: str, machine: str) -> State:
    facts = facts_by_engine(examine_recording(MACHINES / machine).facts)
    return standing_of(block(id), facts).state


@pytest.mark.parametrize(
    ("id", "machine", "expected"),
    [
        ("any.jetson.large_blocks", "orin-nx-16gb-l4t-36.4.3", State.ELSEWHERE),
        ("any.jetson.large_blocks", "orin-nx-16gb-l4t-36.4.7", State.IN_FORCE),
        ("any.jetson.large_blocks", "orin-nx-16gb-l4t-39.2", State.LIFTED),
        ("any.jetson.large_blocks", "x86-one-rtx-3090", State.ELSEWHERE),
        ("vllm.jetson.image_needs_newer_driver", "orin-nx-16gb-l4t-36.4.3", State.IN_FORCE),
        ("vllm.jetson.image_needs_newer_driver", "orin-nx-16gb-l4t-39.2", State.LIFTED),
        ("vllm.jetson.allocator_assert", "orin-nx-16gb-l4t-36.4.3", State.IN_FORCE),
        ("vllm.jetson.allocator_assert", "x86-two-rtx-4090", State.ELSEWHERE),
        ("any.jetson.memory_kept_after_exit", "orin-nx-16gb-l4t-36.4.7", State.IN_FORCE),
        ("any.jetson.memory_kept_after_exit", "orin-nx-16gb-l4t-39.2", State.LIFTED),
        ("tensorrt-llm.jetson.not_maintained", "agx-orin-64gb", State.IN_FORCE),
        ("any.minimal_first", "container-2-cores-4gb", State.IN_FORCE),
    ],
)
def test_where_a_known_block_stands(id: str, machine: str, expected: State) -> None:
    """The founding archive's rules and the known blocks answer differently for each machine."""
    assert state(id, machine) is expected


def test_the_allocator_block_lifts_with_the_torch_that_has_the_fix() -> None:
    """A trigger on an engine's torch sees the environment that was found, whatever its number."""
    jetson = Fact("jetson.l4t", "36.5", "file")
    for torch, expected in (("2.13.1", State.IN_FORCE), ("2.14.0", State.LIFTED)):
        engine = (
            Fact("engine.python0.name", "vLLM", "x"),
            Fact("engine.python0.torch", torch, "x"),
        )
        facts = facts_by_engine(Facts((jetson, *engine)))
        assert standing_of(block("vllm.jetson.allocator_assert"), facts).state is expected


def test_a_known_block_refuses_only_its_engine() -> None:
    """What is in force for vLLM is no reason not to try llama.cpp, and a rule refuses nobody."""
    facts = examine_recording(MACHINES / "orin-nx-16gb-l4t-36.4.3").facts
    standings = [standing_of(block, facts) for block in load_blocks()]
    refusal = blocked(standings, "tensorrt-llm")
    assert refusal is not None
    assert refusal.cause == "dependency.platform_unsupported"
    assert blocked(standings, "llama.cpp") is None


def failed(cause: str, confidence: str = "certain") -> Trial:
    diagnosis = Diagnosis(cause, "it broke", (Evidence(3, "line"),), confidence=confidence)
    record = trial(MINIMAL, None, Outcome.EXITED)
    return dataclasses.replace(record, id=4, diagnosis=diagnosis, machine_before=MACHINE)


def test_a_build_that_never_served_a_model_is_a_block_of_the_users_own() -> None:
    """It lifts when another build is installed; a measured trial, or doubt, makes no block."""
    (own,) = blocks_of([failed("cpu.isa_unsupported")])
    installed = Facts((Fact(BUILD_DIGESTS, (WHEEL.digest,), "x"),))
    assert standing_of(own, installed).state is State.IN_FORCE
    assert standing_of(own, Facts((Fact(BUILD_DIGESTS, ("n",), "x"),))).state is State.LIFTED
    assert blocked([standing_of(own, installed)], "llama.cpp") is None
    assert blocks_of([trial(MINIMAL, 5.0), failed("cpu.isa_unsupported")]) == ()
    assert blocks_of([failed("engine.bug", "low")]) == ()


def test_a_block_for_want_of_memory_lifts_when_more_is_available() -> None:
    """The trigger is a tenth more than was available when it failed."""
    (own,) = blocks_of([failed("memory.host.insufficient")])
    for available, expected in ((12 << 30, State.IN_FORCE), (14 << 30, State.LIFTED)):
        facts = Facts((
            Fact("memory.available_bytes", available, "file"),
            Fact(BUILD_DIGESTS, (WHEEL.digest,), "x"),
        ))  # fmt: skip
        assert standing_of(own, facts).state is expected


@pytest.mark.parametrize(
    "change",
    [
        {"cause": "no.such"}, {"sources": []}, {"lifted": []}, {"rule": True}, {"typo": 1},
        {"checked": "today"}, {"status": "believed"},
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused(change: dict[str, object]) -> None:
    """A block has a known cause, a source, a date and a trigger."""
    entry = {**GOOD, "checked": datetime.date(2026, 11, 25)}
    assert block_of(entry).lifted_by
    with pytest.raises((KeyError, TypeError, ValueError)):
        block_of({**entry, **change})
