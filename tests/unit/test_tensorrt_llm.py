"""The TensorRT-LLM descriptor: whole argv in a table, refusals, memory. Unproven on hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import UNPROVEN, Endpoint, Launch
from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.tensorrt_llm import ENGINE
from tests.unit.values import MACHINE, MODEL

CHECKPOINT = replace(MODEL, path="/models/tiny", format="safetensors")
BUILD = Build(
    "tensorrt-llm", "environment", "1.2.1", "t" * 64, ("/env/bin/trtllm-serve",), "/env/bin"
)
ADA = Gpu("an RTX 4090", "nvidia", 24 << 30, 22 << 30, driver="580.82", cuda="13.0", arch="8.9")
WITH_ADA = replace(MACHINE, gpus=(ADA,))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"context": 1024, "slots": 1, "batched_tokens": 1024},
            "/env/bin/trtllm-serve /models/tiny --host 127.0.0.1 --port 4711 --max_seq_len 1024 "
            "--max_batch_size 1 --max_num_tokens 1024",
        ),
        (
            {"context": 2048, "slots": 16, "kv_fraction": 0.8, "chunked_prefill": "on"},
            "/env/bin/trtllm-serve /models/tiny --host 127.0.0.1 --port 4711 --max_seq_len 2048 "
            "--max_batch_size 16 --free_gpu_memory_fraction 0.8 --enable_chunked_prefill",
        ),
        (
            {"tensor_parallel_size": 2, "backend": "tensorrt", "chunked_prefill": "off"},
            "/env/bin/trtllm-serve /models/tiny --host 127.0.0.1 --port 4711 "
            "--tensor_parallel_size 2 --backend tensorrt",
        ),
    ],
)
def test_argv_is_whole_and_in_the_engines_own_spelling(
    settings: dict[str, Setting], expected: str
) -> None:
    """A candidate's argv for version 1.2 is exactly this, flag by flag."""
    candidate = Candidate("tensorrt-llm", BUILD.digest, settings_of(settings))
    launch = Launch(BUILD, candidate, CHECKPOINT, Endpoint(port=4711), "/run/e")
    assert " ".join(ENGINE.argv(launch)) == expected


@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        (WITH_ADA, None),
        (MACHINE, "driver.device_not_visible"),
        (replace(MACHINE, gpus=(replace(ADA, vendor="amd", arch="gfx1151"),)),
         "driver.device_not_visible"),
        (replace(MACHINE, gpus=(replace(ADA, arch="7.5"),)), "gpu.arch_unsupported"),
        (replace(MACHINE, gpus=(replace(ADA, arch=""),)), None),
        (replace(WITH_ADA, l4t="36.4.3", kinds=("jetson",)), "gpu.arch_unsupported"),
    ],
)  # fmt: skip
def test_it_is_refused_where_it_cannot_run(machine: Machine, cause: str | None) -> None:
    """It needs an NVIDIA GPU from Ampere on, and is not for Jetsons; what is unknown is tried."""
    refusal = ENGINE.refuse(CHECKPOINT, machine)
    assert (refusal.cause if refusal else None) == cause


def test_the_kv_cache_takes_its_share_of_what_is_left() -> None:
    """On a GPU the cache is a share of the free memory, and never less than what was asked for."""
    candidate = ENGINE.minimal(BUILD, CHECKPOINT, WORKLOADS["chat"])
    half = ENGINE.estimate_memory(CHECKPOINT, candidate.with_settings(kv_fraction=0.5), WITH_ADA)
    most = ENGINE.estimate_memory(CHECKPOINT, candidate.with_settings(kv_fraction=0.9), WITH_ADA)
    assert half.part("KV cache").expected < most.part("KV cache").expected < 22 << 30
    unknown = ENGINE.estimate_memory(CHECKPOINT, candidate)
    assert unknown.part("KV cache").expected == 2.0 * 11520 * int(candidate.get("context") or 0)


def test_a_share_outside_its_range_is_refused() -> None:
    """A share of the memory lies between 0 and 1."""
    candidate = Candidate("tensorrt-llm", "d", settings_of({"kv_fraction": 1.5}))
    refusal = ENGINE.refuse_settings(candidate)
    assert refusal is not None
    assert refusal.cause == "config.invalid_value"


def test_it_says_that_nothing_has_proven_it() -> None:
    """Until a trial on real hardware it is marked as unproven."""
    assert ENGINE.status == UNPROVEN
