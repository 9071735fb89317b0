"""The whole argv of vLLM, its environment, refusals and memory."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.machine import Gpu
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.vllm import ENGINE, MODULE, NGRAM
from tests.unit.values import MACHINE, MODEL

CPU = Build(
    "vllm", "environment", "0.32.0+cpu", "v" * 64, ("/env/bin/python", *MODULE), "/env/bin/python"
)
CHECKPOINT = dataclasses.replace(MODEL, path="/models/tiny", format="safetensors")
HEAD = (
    *CPU.command, "--model", "/models/tiny", "--served-model-name", "tiny",
    "--enable-prompt-tokens-details", "--uds", "/run/x",
)  # fmt: skip
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}  # fmt: skip


def launch(**settings: Setting) -> Launch:
    candidate = Candidate("vllm", CPU.digest, tuple(sorted(settings.items())))
    return Launch(CPU, candidate, CHECKPOINT, Endpoint(socket_path="/run/x"))


@pytest.mark.parametrize(
    ("settings", "argv", "env"),
    [
        ({}, (), {}),
        (
            {"context": 2048, "max_num_seqs": 8, "enforce_eager": "on", "kv_space_gib": 2},
            ("--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager"),
            {"VLLM_CPU_KVCACHE_SPACE": "2"},
        ),
        (
            {"gpu_memory_utilization": "0.7", "custom_all_reduce": "off", "swap_space": 0},
            (
                "--gpu-memory-utilization", "0.7", "--swap-space", "0",
                "--disable-custom-all-reduce",
            ),
            {},
        ),
        (
            {"alloc_conf": "expandable_segments:True"},
            (),
            {
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            },
        ),
        (
            {"kv_cache_dtype": "fp8", "dtype": "bfloat16", "max_num_batched_tokens": 4096},
            (
                "--max-num-batched-tokens", "4096", "--kv-cache-dtype", "fp8", "--dtype",
                "bfloat16",
            ),
            {},
        ),
        (
            {"prefix_caching": "off", "chunked_prefill": "on", "speculation": "ngram"},
            (
                "--no-enable-prefix-caching", "--enable-chunked-prefill", "--speculative-config",
                NGRAM,
            ),
            {},
        ),
        (
            {"threads_bind": "0-1", "openmp": "intel"},
            (),
            {
                "VLLM_CPU_OMP_THREADS_BIND": "0-1",
                "LD_PRELOAD": "/env/lib/libiomp5.so",
            },
        ),
        ({"block_size": 32, "leave_out": "--block-size"}, (), {}),
    ],
)  # fmt: skip
def test_the_whole_command(
    settings: dict[str, Setting], argv: tuple[str, ...], env: dict[str, str]
) -> None:
    """Every lever that the founding case tried is a flag or a variable, and nothing else is."""
    assert ENGINE.argv(launch(**settings)) == (*HEAD, *argv)
    assert dict(ENGINE.env(launch(**settings))) == {**OFFLINE, **env}


def test_what_it_cannot_load_is_refused() -> None:
    """GGUF files, processors without its kernels, and GPUs that are too old."""
    assert ENGINE.refuse(MODEL, MACHINE) is not None
    assert ENGINE.refuse(CHECKPOINT, MACHINE) is None
    assert ENGINE.refuse(CHECKPOINT, dataclasses.replace(MACHINE, isa=("sse4_2",))) is not None
    old = dataclasses.replace(MACHINE, gpus=(Gpu("Tesla P4", "nvidia", arch="6.1"),))
    refusal = ENGINE.refuse(CHECKPOINT, old)
    assert refusal is not None
    assert refusal.cause == "gpu.arch_unsupported"


def test_a_batch_that_is_too_small_is_refused() -> None:
    """vLLM stops at its start on that."""
    bad = launch(max_num_batched_tokens=4, max_num_seqs=8).candidate
    assert ENGINE.refuse_settings(bad) is not None
    assert ENGINE.refuse_settings(launch(max_num_seqs=8).candidate) is None
    whole = launch(chunked_prefill="off", context=2048, max_num_batched_tokens=1024).candidate
    assert ENGINE.refuse_settings(whole) is not None
    assert ENGINE.refuse_settings(whole.with_settings(chunked_prefill="on")) is None


def test_the_minimal_candidate_holds_the_workload_and_no_more() -> None:
    """On a CPU its KV cache is what the streams need; vLLM's default is a share of all memory."""
    minimal = ENGINE.minimal(CPU, CHECKPOINT, WORKLOADS["crowd"])
    assert dict(minimal.settings) == {
        "context": 1024, "enforce_eager": "on", "kv_space_gib": 1, "max_num_seqs": 16,
        "chunked_prefill": "off",
    }  # fmt: skip
    estimate = ENGINE.estimate_memory(CHECKPOINT, minimal, MACHINE)
    assert estimate.part("KV cache").expected == 2**30


def test_a_small_model_is_computed_in_float32_on_a_cpu() -> None:
    """Torch emulates bfloat16 on most processors; the memory is predicted, a lever undoes it."""
    half = dataclasses.replace(CHECKPOINT, quantization="BF16", weight_bytes=int(3e8))
    minimal = ENGINE.minimal(CPU, half, WORKLOADS["chat"])
    assert minimal.get("dtype") == "float32"
    plain = minimal.with_settings(dtype=None)
    weights = [ENGINE.estimate_memory(half, c, MACHINE).part("weights") for c in (minimal, plain)]
    assert weights[0].expected == 2 * weights[1].expected
    large = dataclasses.replace(half, weight_bytes=int(16e9))
    assert ENGINE.minimal(CPU, large, WORKLOADS["chat"]).get("dtype") is None
    for model, isa, steps in (
        (half, ("avx2",), []),
        (half, ("avx512_bf16",), ["bfloat16"]),
        (large, ("avx2",), ["float32"]),
    ):
        machine = dataclasses.replace(MACHINE, isa=isa, gpus=())
        levers = ENGINE.levers(machine, model, WORKLOADS["chat"])
        tried = [
            dict(step)["dtype"] for one in levers for step in one.steps if "dtype" in dict(step)
        ]
        assert tried == steps


def test_what_a_processor_has_is_tried_in_one_step() -> None:
    """All cores, bfloat16 and Intel's OpenMP cost one start together; alone when that is slower."""
    half = dataclasses.replace(CHECKPOINT, quantization="BF16", weight_bytes=int(3e8))
    machine = dataclasses.replace(MACHINE, isa=("avx2", "avx512f", "avx512_bf16"), gpus=())
    first = ENGINE.levers(machine, half, WORKLOADS["chat"])[0]
    last = machine.usable_cores - 1
    together = {"threads_bind": f"0-{last}", "openmp": "intel", "dtype": "bfloat16"}
    assert [dict(step) for step in first.steps] == [together]
    assert [dict(step) for step in first.spare] == [{n: v} for n, v in together.items()]
    arm = dataclasses.replace(machine, isa=("asimd",))
    step = dict(ENGINE.levers(arm, half, WORKLOADS["chat"])[0].steps[0])
    assert "openmp" not in step
