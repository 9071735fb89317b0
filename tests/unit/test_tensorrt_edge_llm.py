"""The TensorRT Edge-LLM descriptor: whole argv in a table, refusals. Unproven on hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import UNPROVEN, Endpoint, Launch
from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.model import WeightQuantization
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.tensorrt_edge_llm import ENGINE
from tests.unit.values import MACHINE, MODEL

CHECKPOINT = replace(MODEL, path="/models/tiny", format="safetensors")
NEW = Build(
    "tensorrt-edge-llm", "environment", "0.11.1", "n" * 64, ("/env/bin/trtedge", "serve"), "/env"
)
OLD = replace(NEW, version="0.11.0", command=("/env/bin/tensorrt-edgellm-serve",))
ORIN = replace(
    MACHINE, l4t="39.2.0", kinds=("jetson",),
    gpus=(Gpu("Orin", "nvidia", unified=True, cuda="13.2", arch="8.7"),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("build", "settings", "expected"),
    [
        (
            NEW,
            {"context": 1024, "slots": 1, "input_tokens": 1024},
            "/env/bin/trtedge serve /models/tiny --host 127.0.0.1 --port 4711 --served-model-name "
            "tiny --max-kv-cache-capacity 1024 --max-batch-size 1 --max-input-len 1024",
        ),
        (
            OLD,
            {"context": 2048, "slots": 8, "in_flight_batching": "on", "context_reuse": "on"},
            "/env/bin/tensorrt-edgellm-serve /models/tiny --host 127.0.0.1 --port 4711 "
            "--served-model-name tiny --max-kv-cache-capacity 2048 --max-batch-size 8 "
            "--enable-in-flight-batching --enable-context-reuse",
        ),
    ],
)
def test_argv_is_whole_and_in_the_engines_own_spelling(
    build: Build, settings: dict[str, Setting], expected: str
) -> None:
    """A candidate's argv is exactly this, flag by flag, for both names of the command."""
    candidate = Candidate("tensorrt-edge-llm", build.digest, settings_of(settings))
    launch = Launch(build, candidate, CHECKPOINT, Endpoint(port=4711), "/run/e")
    assert " ".join(ENGINE.argv(launch)) == expected


@pytest.mark.parametrize(
    ("machine", "method", "cause"),
    [
        (ORIN, "awq", None),
        (ORIN, "fp8", "gpu.dtype_unsupported"),
        (replace(ORIN, l4t="36.4.3"), "none", None),
        (replace(ORIN, l4t="35.4.1"), "none", "driver.too_old"),
        (replace(ORIN, gpus=(Gpu("Xavier", "nvidia", unified=True, arch="7.2"),)), "none",
         "gpu.arch_unsupported"),
        (MACHINE, "none", "driver.device_not_visible"),
    ],
)  # fmt: skip
def test_it_is_refused_where_it_cannot_run(
    machine: Machine, method: str, cause: str | None
) -> None:
    """It needs a JetPack and a GPU that it was made for, and Orin computes no FP8."""
    model = replace(CHECKPOINT, weight_quantization=WeightQuantization(method))
    refusal = ENGINE.refuse(model, machine)
    assert (refusal.cause if refusal else None) == cause


def test_the_first_start_needs_more_than_serving() -> None:
    """Building the engines may take several times the weights, which the highest estimate holds."""
    candidate = ENGINE.minimal(NEW, CHECKPOINT, WORKLOADS["chat"])
    estimate = ENGINE.estimate_memory(CHECKPOINT, candidate, ORIN)
    assert estimate.part("engine build").high == 3 * CHECKPOINT.weight_bytes
    assert estimate.part("engine build").low == 0


def test_it_says_that_nothing_has_proven_it() -> None:
    """Until a trial on real hardware it is marked as unproven."""
    assert ENGINE.status == UNPROVEN
