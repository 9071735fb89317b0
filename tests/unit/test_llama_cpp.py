"""The llama.cpp descriptor: whole argv in a table, refusals, memory."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.builds_llama_cpp import parse_version
from enginehouse.engines import load_engines
from enginehouse.engines.llama_cpp import ENGINE
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL

SOCKET = Endpoint(socket_path="/run/e.sock")
PORT = Endpoint(port=4711)


@pytest.mark.parametrize(
    ("build", "settings", "endpoint", "expected"),
    [
        (
            WHEEL,
            {"context": 1024, "slots": 1},
            SOCKET,
            "python -m wheel_server --model /models/tiny.gguf --alias tiny --host /run/e.sock "
            "--parallel 1 --ctx-size 1024 --cache-ram 0 --fit off --metrics --no-webui",
        ),
        (
            BINARY,
            {"context": 1024, "slots": 16, "threads": 2, "batch": 512, "ubatch": 256},
            PORT,
            "/bin/llama-server --model /models/tiny.gguf --alias tiny --host 127.0.0.1 "
            "--port 4711 --parallel 16 --ctx-size 16384 --threads 2 --batch-size 512 "
            "--ubatch-size 256 --cache-ram 0 --metrics --no-webui",
        ),
        (
            BINARY,
            {
                "context": 2048,
                "slots": 2,
                "flash_attention": "on",
                "kv_type": "q8_0",
                "speculation": "ngram-mod",
                "prompt_cache_mib": 64,
            },
            SOCKET,
            "/bin/llama-server --model /models/tiny.gguf --alias tiny --host /run/e.sock "
            "--parallel 2 --ctx-size 4096 --flash-attn on --spec-type ngram-mod "
            "--cache-type-k q8_0 --cache-type-v q8_0 --cache-ram 64 --metrics --no-webui",
        ),
        (
            BINARY,
            {"context": 1024, "slots": 8, "prefix_sharing": "on"},
            SOCKET,
            "/bin/llama-server --model /models/tiny.gguf --alias tiny --host /run/e.sock "
            "--parallel 8 --ctx-size 8192 --cache-ram 0 --slot-save-path /run/e --metrics "
            "--no-webui",
        ),
    ],
)
def test_argv_is_whole_and_in_the_engines_own_spelling(
    build: Build, settings: dict[str, Setting], endpoint: Endpoint, expected: str
) -> None:
    """A candidate's argv is exactly this, flag by flag."""
    candidate = Candidate("llama.cpp", build.digest, settings_of(settings))
    assert " ".join(ENGINE.argv(Launch(build, candidate, MODEL, endpoint, "/run/e"))) == expected


def test_every_tunable_a_lever_names_is_declared() -> None:
    """A lever varies only settings that the descriptor declares."""
    declared = {tunable.name for tunable in ENGINE.tunables}
    for workload in WORKLOADS.values():
        levers = ENGINE.levers(MACHINE, MODEL, workload)
        assert levers
        assert {name for lever in levers for step in lever.steps for name, _ in step} <= declared


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"kv_type": "q8_0", "flash_attention": "off"}, "config.incompatible_flags"),
        ({"kv_type": "q8_0"}, None),
        ({"kv_type": "f16", "flash_attention": "off"}, None),
    ],
)
def test_settings_that_the_engine_refuses_are_not_tried(
    settings: dict[str, Setting], cause: str | None
) -> None:
    """A quantized V cache without flash attention is refused before it is tried."""
    refusal = ENGINE.refuse_settings(Candidate("llama.cpp", "d", settings_of(settings)))
    assert (refusal.cause if refusal else None) == cause


@pytest.mark.parametrize("name", WORKLOADS)
def test_minimal_candidate_holds_the_workload(name: str) -> None:
    """The minimal candidate's context holds one request of the workload."""
    minimal = ENGINE.minimal(WHEEL, MODEL, WORKLOADS[name])
    assert int(minimal.get("context") or 0) >= WORKLOADS[name].context_tokens
    assert minimal.get("slots") == 1


def test_memory_grows_with_slots_by_their_kv_cache() -> None:
    """Each slot more costs its context's KV cache, and nothing else is predicted to change."""
    one = ENGINE.minimal(WHEEL, MODEL, WORKLOADS["chat"])
    two = one.with_settings(slots=2)
    more = (
        ENGINE.estimate_memory(MODEL, two).part("KV cache").expected
        - ENGINE.estimate_memory(MODEL, one).part("KV cache").expected
    )
    assert more == 2.0 * 11520 * int(one.get("context") or 0)


def test_the_folder_lists_the_engines() -> None:
    """An engine is added by its file alone."""
    assert load_engines()["llama.cpp"] == ENGINE


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("version: 11434 (abc123)\nbuilt with GNU", "b11434 (abc123)"),
        ("version: 0.6.0-dev (build 11549, commit abc123)", "b11549 (abc123)"),
        ("version: 0.6.0-dev (build 11549, commit unknown)", "b11549"),
        ("version: 11434 (unknown)", "b11434"),
        ("usage: something else", None),
    ],
)
def test_a_servers_version_is_read_in_both_forms(printed: str, version: str | None) -> None:
    """Older ones give a number, newer ones a build; a commit that is not known is left out."""
    assert parse_version(printed) == version


def test_plain_attention_is_tried_with_the_slots_only_where_it_is_the_faster_one() -> None:
    """On AVX2 eight slots go with plain attention first; with AVX-512 flash attention stays."""
    assistant = WORKLOADS["assistant"]
    narrow = dataclasses.replace(MACHINE, isa=("avx2",))
    wide = dataclasses.replace(MACHINE, isa=("avx2", "avx512f"))
    first = dict(ENGINE.levers(narrow, MODEL, assistant)[0].steps[0])
    assert first == {"slots": 8, "prefix_sharing": "on", "flash_attention": "off"}
    first = dict(ENGINE.levers(wide, MODEL, assistant)[0].steps[0])
    assert first == {"slots": 8, "prefix_sharing": "on"}


def test_bfloat16_attention_is_tried_for_long_prompts_where_the_processor_multiplies_it() -> None:
    """It needs plain attention: fused attention over bfloat16 is slow on every processor."""

    def kv_types(name: str, *isa: str) -> list[dict[str, Setting]]:
        machine = dataclasses.replace(MACHINE, isa=isa, gpus=())
        levers = ENGINE.levers(machine, MODEL, WORKLOADS[name])
        return [dict(s) for one in levers for s in one.steps if dict(s).get("kv_type") == "bf16"]

    step = {"flash_attention": "off", "kv_type": "bf16", "ubatch": 128}
    assert kv_types("assistant", "avx2", "avx512f", "avx512_bf16") == [step]
    assert kv_types("rag", "amx_bf16") == [step]
    assert kv_types("chat", "avx512_bf16") == []
    assert kv_types("rag", "avx2", "avx512f") == []


def test_huge_pages_are_a_variable_and_tried_for_large_weights_only() -> None:
    """The C library asks for them, for what is not mapped; a small model fits into the caches."""
    large = dataclasses.replace(MODEL, weight_bytes=2 << 30)
    machine = dataclasses.replace(MACHINE, gpus=())
    steps = [
        [dict(s) for one in ENGINE.levers(machine, model, WORKLOADS["chat"]) for s in one.steps]
        for model in (MODEL, large)
    ]
    step = {"huge_pages": "on", "mmap": "off"}
    assert step not in steps[0]
    assert step in steps[1]
    candidate = Candidate("llama.cpp", BINARY.digest, settings_of({"huge_pages": "on"}))
    launch = Launch(BINARY, candidate, MODEL, SOCKET, "/run/e")
    assert dict(ENGINE.env(launch)) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    ("kind", "version", "settings", "flags"),
    [
        ("binary", "b11434 (abc)", {"mmap": "off"}, ["--no-mmap"]),
        ("binary", "b11434", {"mlock": "on"}, ["--mlock"]),
        ("native", "b11549", {"mmap": "off"}, ["--load-mode", "none"]),
        ("native", "b11549", {"mlock": "on"}, ["--load-mode", "mmap+mlock"]),
        ("native", "b12000", {"mlock": "on", "mmap": "off"}, ["--load-mode", "mlock"]),
        ("native", "b11549", {}, []),
        ("native", "g0a1b2c3", {"mmap": "off"}, ["--load-mode", "none"]),
        ("wheel", "2026.10.11549", {"mmap": "off"}, ["--no-mmap"]),
        ("container", "", {"mmap": "off"}, ["--no-mmap"]),
    ],
)
def test_weights_are_loaded_in_the_words_of_the_build(
    kind: str, version: str, settings: dict[str, Setting], flags: list[str]
) -> None:
    """b11549 ends with "invalid argument" at `--no-mmap` and `--mlock`, which b11434 knows."""
    build = dataclasses.replace(BINARY, kind=kind, version=version)
    candidate = Candidate("llama.cpp", build.digest, settings_of(settings))
    argv = list(ENGINE.argv(Launch(build, candidate, MODEL, SOCKET, "/run/e")))
    words = ("--no-mmap", "--mlock", "--load-mode", "none", "mlock", "mmap+mlock")
    assert [word for word in argv if word in words] == flags
