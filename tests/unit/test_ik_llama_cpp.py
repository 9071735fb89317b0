"""The ik_llama.cpp descriptor: whole argv in a table, what it refuses, what it is tried with."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.machine import Machine
from enginehouse.core.model import TensorGroup
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.ik_llama_cpp import ENGINE
from enginehouse.knowledge.exam import load_exam
from tests.unit.values import MACHINE, MODEL

BUILD = Build("ik_llama.cpp", "native", "0.1.5", "c" * 64, ("/ik/llama-server",), "/ik")
START = "/ik/llama-server --model /models/tiny.gguf --alias tiny --host 127.0.0.1 --port 4711 "
END = " --metrics --webui none"
WIDE: Machine = dataclasses.replace(MACHINE, isa=("avx2", "avx512f", "avx512_bf16"))


def candidate(**settings: Setting) -> Candidate:
    return Candidate(ENGINE.name, BUILD.digest, settings_of(settings))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"context": 1024, "slots": 1},
            "--parallel 1 --ctx-size 1024 --jinja --no-context-shift --log-disable --cache-ram 0",
        ),
        (
            {"context": 1024, "slots": 8, "flash_attention": "off", "repack": "on", "threads": 2},
            "--parallel 8 --ctx-size 8192 --threads 2 --flash-attn off --run-time-repack --jinja "
            "--no-context-shift --log-disable --cache-ram 0",
        ),
        (
            {"context": 2048, "speculation": "ngram-mod", "kv_type": "q8_0", "jinja": "off"},
            "--parallel 1 --ctx-size 2048 --spec-type ngram-mod --cache-type-k q8_0 "
            "--cache-type-v q8_0 --no-context-shift --log-disable --cache-ram 0",
        ),
        (
            {"context": 1024, "mmap": "off", "mlock": "on", "huge_pages": "on", "ubatch": 256},
            "--parallel 1 --ctx-size 1024 --ubatch-size 256 --no-mmap --mlock --jinja "
            "--no-context-shift --log-disable --cache-ram 0",
        ),
        (
            {"context": 1024, "slots": 2, "flash_attention": "off", "prefix_sharing": "on"},
            "--parallel 2 --ctx-size 2048 --flash-attn off --jinja --no-context-shift "
            "--log-disable --cache-ram 0 --slot-save-path /run/e",
        ),
    ],
)
def test_argv_is_as_the_fork_reads_it(settings: dict[str, Setting], expected: str) -> None:
    """Every setting has the fork's flag; a template is read by jinja unless it is turned off."""
    launch = Launch(BUILD, candidate(**settings), MODEL, Endpoint(port=4711), "/run/e")
    assert " ".join(ENGINE.argv(launch)) == START + expected + END


def test_several_slots_are_refused_with_flash_attention() -> None:
    """They are computed with one another's mask; plain attention and one slot are sound."""
    for settings in ({"slots": 2}, {"slots": 2, "flash_attention": "on"}):
        refusal = ENGINE.refuse_settings(candidate(**settings))
        assert refusal is not None
        assert refusal.actions == ("flash-attention-off",)
    assert ENGINE.refuse_settings(candidate(slots=2, flash_attention="off")) is None
    assert ENGINE.refuse_settings(candidate(slots=1)) is None
    assert ENGINE.refuse_settings(candidate(kv_type="q8_0", flash_attention="off")) is not None
    assert ENGINE.refuse_settings(candidate(quantization="IQ4_NL", repack="on")) is not None
    assert ENGINE.refuse_settings(candidate(quantization="IQ4_NL")) is None


@pytest.mark.parametrize("machine", [MACHINE, WIDE], ids=["avx2", "avx512"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_nothing_is_proposed_that_is_refused(machine: Machine, name: str) -> None:
    """Each step alone, and all first steps together, are settings that the engine takes."""
    minimal = ENGINE.minimal(BUILD, MODEL, WORKLOADS[name])
    together = minimal
    for lever in ENGINE.levers(machine, MODEL, WORKLOADS[name]):
        for step in (*lever.steps, *lever.more, *lever.spare):
            assert ENGINE.refuse_settings(minimal.with_settings(**dict(step))) is None
        if lever.steps and set(dict(lever.steps[0])) != {"flash_attention"}:
            together = together.with_settings(**dict(lever.steps[0]))
    assert ENGINE.refuse_settings(together) is None
    assert together.get("repack") == "on"
    assert (int(together.get("slots") or 1) > 1) is (WORKLOADS[name].streams > 1)


def test_a_request_has_one_choice() -> None:
    """Its server refuses `n`, however many slots it has."""
    assert ENGINE.most_choices(candidate(slots=8, flash_attention="off")) == 1


def test_its_exam_is_answered_with_what_no_text_goes_on_with() -> None:
    """Else its prompt cache would lose a token where the answer is the text that follows."""
    sign = ENGINE.quirks.exam_fields["grammar"].split('"')[1]
    assert len(sign) == 1
    assert not any(sign in text.text for text in load_exam().texts)


def test_its_memory_is_llama_cpps_without_that_ones_own_copies() -> None:
    """Repacked at the start, weights are there once, and a tied table once more as the output."""
    tied = dataclasses.replace(
        MODEL,
        is_output_tied=True,
        groups=(
            TensorGroup("token embedding", "Q6_K", 1, 1 << 20, 860_160),
            TensorGroup("attention", "Q4_0", 4, 4 << 20, 2_359_296),
        ),
    )
    plain = ENGINE.estimate_memory(tied, candidate(), WIDE)
    repacked = ENGINE.estimate_memory(tied, candidate(repack="on"), WIDE)
    assert not [part for part in plain.parts if "layout" in part.name]
    assert repacked.resident.expected - plain.resident.expected == 860_160
    untied = dataclasses.replace(tied, is_output_tied=False)
    assert ENGINE.estimate_memory(untied, candidate(repack="on"), WIDE) == ENGINE.estimate_memory(
        untied, candidate(), WIDE
    )
