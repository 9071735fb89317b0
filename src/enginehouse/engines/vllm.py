"""vLLM: its OpenAI server, in a Python environment of its own or in a container.

Flags and environment variables as in vLLM 0.32 (`api_server --help=all`, and `vllm/envs.py`); it
is started as a module, since the CPU distribution's `vllm serve` looks for metadata under a name
that it does not have. The allocator's variable was renamed by PyTorch 2.9; both names are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import (
    NO_QUIRKS,
    PROVEN,
    Call,
    Launch,
    Lever,
    Quirks,
    Refusal,
    Tunable,
    lever,
    without_flags,
)
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, exactly, within
from enginehouse.core.estimate_vllm import (
    VllmSettings,
    activation_bytes,
    estimate_vllm,
    kv_bytes_per_token,
)
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload

GIB = 2.0**30
MODULE = ("-m", "vllm.entrypoints.openai.api_server")
CONTEXT_STEP = 256
MINIMUM_CONTEXT = 1024
LEAST_CAPABILITY = 7.0
"""Compute capability that vLLM's CUDA kernels need (its installation page, GPU requirements)."""
X86_ISA = ("avx2", "avx512f")
CPU_ISA = (*X86_ISA, "asimd", "neon")
HALF = ("BF16", "F16")
"""Weights of 16 bits, which may be computed in another type."""
BF16_ISA = frozenset({"avx512_bf16", "amx_bf16", "asimd"})
"""Processors with instructions for bfloat16; torch on ARM has kernels of its own."""
FLOAT32_MOST_BYTES = 4 * GIB
"""Weights of 16 bits that are computed in float32 from the start: they take twice the memory.

Without such instructions torch 2.13 multiplied in bfloat16 at 9 GFLOP/s and in float32 at 67 (one
AVX2 core, 512 tokens): a batch of 2,048 prompt tokens of a 135M model took a minute.
"""
FEW_CORES = 8
CPU_RUN_TIME_BYTES = within(2.6 * GIB, 0.25)
"""Two Python processes with torch on the CPU: 2.1 to 3.1 GiB as seen here beside weights and KV."""

TUNABLES = (
    Tunable("context", "tokens of context that one request gets", "--max-model-len", 256),
    Tunable("max_num_seqs", "requests that are decoded together", "--max-num-seqs", 1),
    Tunable(
        "max_num_batched_tokens",
        "tokens that one step computes: prefill in chunks of it",
        "--max-num-batched-tokens",
        1,
    ),
    Tunable(
        "gpu_memory_utilization",
        "share of the device's total memory that vLLM takes (GPU only), for instance 0.7",
        "--gpu-memory-utilization",
    ),
    Tunable(
        "kv_space_gib", "memory of the KV cache in GiB (CPU only)", "VLLM_CPU_KVCACHE_SPACE", 1
    ),
    Tunable(
        "threads_bind", "cores of the OpenMP threads, or `auto` (CPU only)",
        "VLLM_CPU_OMP_THREADS_BIND",
    ),
    Tunable(
        "openmp", "threading library: Intel's own instead of the compiler's (x86 CPU only)",
        "LD_PRELOAD", values=("intel",),
    ),
    Tunable("kv_cache_dtype", "type of the KV cache: auto, fp8 …", "--kv-cache-dtype"),
    Tunable(
        "dtype", "type that is computed in", "--dtype",
        values=("auto", "bfloat16", "float16", "float32"),
    ),
    Tunable("quantization_method", "how the weights are quantized: awq …", "--quantization"),
    Tunable(
        "enforce_eager", "no compilation and no CUDA graphs: less memory, a faster start",
        "--enforce-eager", values=("on", "off"),
    ),
    Tunable(
        "custom_all_reduce", "vLLM's own reduction between GPUs, off where peer access fails",
        "--disable-custom-all-reduce", values=("on", "off"),
    ),
    Tunable("prefix_caching", "keep prompt prefixes", "--enable-prefix-caching",
            values=("on", "off")),
    Tunable("chunked_prefill", "mix prefill with decode", "--enable-chunked-prefill",
            values=("on", "off")),
    Tunable("block_size", "tokens in a block of the KV cache", "--block-size", 1),
    Tunable("swap_space", "host memory for swapped sequences, GiB (before 0.10)", "--swap-space",
            0),
    Tunable("cpu_offload_gb", "weights kept in host memory, GiB (GPU only)", "--cpu-offload-gb",
            0),
    Tunable(
        "alloc_conf", "how PyTorch's allocator works, for instance expandable_segments:True",
        "PYTORCH_ALLOC_CONF",
    ),
    Tunable("speculation", "draft by n-grams of the context: none, ngram", "--speculative-config",
            values=("none", "ngram")),
    Tunable("leave_out", "flags that this build does not know, by spaces", ""),
)  # fmt: skip
TELLS = ("--enable-prompt-tokens-details",)
"""Tell how many tokens of a prompt were cached, as OpenAI's API does: it costs nothing."""
VALUES = (
    ("context", "--max-model-len"),
    ("max_num_seqs", "--max-num-seqs"),
    ("max_num_batched_tokens", "--max-num-batched-tokens"),
    ("gpu_memory_utilization", "--gpu-memory-utilization"),
    ("kv_cache_dtype", "--kv-cache-dtype"),
    ("dtype", "--dtype"),
    ("quantization_method", "--quantization"),
    ("block_size", "--block-size"),
    ("swap_space", "--swap-space"),
    ("cpu_offload_gb", "--cpu-offload-gb"),
)
SWITCHES = {
    ("enforce_eager", "on"): "--enforce-eager",
    ("custom_all_reduce", "off"): "--disable-custom-all-reduce",
    ("prefix_caching", "on"): "--enable-prefix-caching",
    ("prefix_caching", "off"): "--no-enable-prefix-caching",
    ("chunked_prefill", "on"): "--enable-chunked-prefill",
    ("chunked_prefill", "off"): "--no-enable-chunked-prefill",
}
NGRAM = (
    '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, '
    '"prompt_lookup_min": 2}'
)
QUIET = (
    ("HF_HUB_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("DO_NOT_TRACK", "1"),
)
"""Nothing is asked of any hub and nothing is reported: the model is on disk."""
REQUEST_NAMES = {
    "repeat_penalty": "repetition_penalty", "repeat_last_n": "", "typical_p": "", "n_keep": "",
    "mirostat": "", "mirostat_tau": "", "mirostat_eta": "",
}  # fmt: skip
"""vLLM's names (vllm/sampling_params.py); what it lacks is said to the client."""


@dataclass(frozen=True)
class Vllm:
    """The vLLM server."""

    name: str = "vllm"
    status: str = PROVEN
    formats: tuple[str, ...] = ("safetensors",)
    unix_socket: bool = True
    honours_ignore_eos: bool = True
    stop_signal: str = "SIGTERM"
    request_names: Mapping[str, str] = field(default_factory=lambda: REQUEST_NAMES)
    tokens_api: str = "vllm"
    quirks: Quirks = NO_QUIRKS
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/health"

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv, in the server's own spelling."""
        candidate = launch.candidate
        argv = [*launch.build.command, "--model", launch.model.path]
        argv += ["--served-model-name", launch.model.name, *TELLS]
        if launch.endpoint.socket_path:
            argv += ["--uds", launch.endpoint.socket_path]
        else:
            argv += ["--host", "127.0.0.1", "--port", str(launch.endpoint.port)]
        for name, flag in VALUES:
            value = candidate.get(name)
            if value is not None:
                argv += [flag, str(value)]
        argv += [flag for (name, on), flag in SWITCHES.items() if candidate.get(name) == on]
        if candidate.get("speculation") == "ngram":
            argv += ["--speculative-config", NGRAM]
        return without_flags(argv, str(candidate.get("leave_out") or "").split())

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Build the variables: offline, no reports, and what vLLM takes only this way."""
        candidate = launch.candidate
        env = list(QUIET)
        if candidate.get("kv_space_gib") is not None:
            env.append(("VLLM_CPU_KVCACHE_SPACE", str(candidate.get("kv_space_gib"))))
        if candidate.get("threads_bind") is not None:
            env.append(("VLLM_CPU_OMP_THREADS_BIND", str(candidate.get("threads_bind"))))
        if candidate.get("openmp") == "intel":
            env.append(("LD_PRELOAD", intel_openmp(launch.build)))
        if candidate.get("alloc_conf") is not None:
            for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
                env.append((variable, str(candidate.get("alloc_conf"))))
        return tuple(env)

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Nothing: the model is named on the command line."""
        return ()

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse what is no safetensors checkpoint, and processors that vLLM has no kernels for."""
        if model.format not in self.formats:
            return Refusal("format.unsupported", f"vLLM reads safetensors, not {model.format}")
        old = [gpu for gpu in machine.gpus if 0 < _capability(gpu.arch) < LEAST_CAPABILITY]
        if machine.gpus and len(old) == len(machine.gpus):
            return Refusal(
                "gpu.arch_unsupported",
                f"vLLM needs compute capability {LEAST_CAPABILITY}, {old[0].name} has "
                f"{old[0].arch}",
            )
        if not machine.gpus and machine.isa and not set(machine.isa) & set(CPU_ISA):
            return Refusal("cpu.isa_unsupported", "vLLM on a CPU needs AVX2 or NEON")
        return None

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse a batch smaller than the sequences or a whole prompt, as vLLM's start does."""
        batch, sequences = candidate.get("max_num_batched_tokens"), candidate.get("max_num_seqs")
        if batch is not None and sequences is not None and int(batch) < int(sequences):
            return Refusal(
                "config.incompatible_flags",
                f"max_num_batched_tokens {batch} is smaller than max_num_seqs {sequences}",
            )
        context = candidate.get("context")
        is_whole = candidate.get("chunked_prefill") == "off"
        if is_whole and batch is not None and context is not None and int(batch) < int(context):
            return Refusal(
                "config.incompatible_flags",
                f"without chunked prefill max_num_batched_tokens {batch} must hold the context, "
                f"{context}",
            )
        return None

    def most_choices(self, candidate: Candidate) -> int:
        """As many as are asked for."""
        return 0

    def shared_slots(self, candidate: Candidate) -> int:
        """None: vLLM shares prefixes between its requests by itself."""
        return 0

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return just the context and the sequences of the workload, eager, all else default.

        On a CPU the KV cache is as large as that needs; vLLM's own default is a share of all the
        memory there is. There small models are computed in float32, which every CPU does well, and
        prompts are not cut into chunks: vLLM 0.32 ends with "CPU Generator does not use offset"
        (gpu_model_runner.py, _bookkeeping_sync) once a request with a seed is.
        """
        wanted = max(MINIMUM_CONTEXT, workload.context_tokens)
        context = -(-wanted // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        settings: dict[str, str | int] = {
            "context": context,
            "max_num_seqs": workload.streams,
            "enforce_eager": "on",
        }
        if build.version.endswith("+cpu"):
            settings["chunked_prefill"] = "off"
            kv = kv_bytes_per_token(model, "auto") * context * (workload.streams + 1)
            if model.quantization in HALF and model.weight_bytes <= FLOAT32_MOST_BYTES:
                settings["dtype"] = "float32"
                kv *= 2
            settings["kv_space_gib"] = max(1, math.ceil(kv / GIB))
        return Candidate(self.name, build.digest, settings_of(settings))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""
        eager = lever("enforce_eager", ("off",), "compiled code is faster, its start is slower")
        # on a CPU it compiles for a minute or more: what starts sooner is tried before
        levers = [eager] if machine.gpus else [*_cpu_levers(machine, model), eager]
        prompt_tokens = workload.shared_prefix_tokens + workload.prompt_tokens
        if prompt_tokens > 512:
            sizes = (4096, 1024)
            levers.append(lever("max_num_batched_tokens", sizes[:1], "prefill in one step", sizes))
        if workload.streams <= 2:
            levers.append(lever("speculation", (), "text that repeats drafts itself", ("ngram",)))
        if machine.gpus:
            levers.append(lever("kv_cache_dtype", (), "half the KV cache", ("fp8",)))
        return tuple(levers)

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the memory the engine will hold, part by part; on a CPU without a GPU's parts."""
        settings = memory_settings(candidate)
        if machine is not None and machine.gpus:
            return estimate_vllm(model, settings)
        kv = GIB * float(candidate.get("kv_space_gib") or 4)
        is_wide = candidate.get("dtype") == "float32" and model.quantization in HALF
        weights = model.weight_bytes * (2 if is_wide else 1)
        return MemoryEstimate(
            (
                MemoryPart("weights", within(weights, 0.05)),
                MemoryPart("KV cache", exactly(kv), note="allocated whole at the start"),
                MemoryPart("activations", activation_bytes(model, settings)),
                MemoryPart("run time", CPU_RUN_TIME_BYTES, note="two processes with torch"),
            )
        )


def _cpu_levers(machine: Machine, model: Model) -> list[Lever]:
    """Return one step of what a processor alone has, since each takes a start of a minute to try.

    All its cores, of which vLLM keeps one free of its threads; the type that it computes best; and
    Intel's OpenMP, which vLLM's CPU page advises and its distribution brings along. With two cores
    and AVX-512 BF16, 303 tok/s of a crowd became 414 and then 449 (docs/lab-log.md).
    """
    step: dict[str, Setting] = {}
    cores = machine.usable_cores
    if 1 < cores <= FEW_CORES:
        step["threads_bind"] = f"0-{cores - 1}"
    if set(X86_ISA) & set(machine.isa):
        step["openmp"] = "intel"
    if model.quantization in HALF:
        if BF16_ISA & set(machine.isa):
            step["dtype"] = "bfloat16"
        elif model.weight_bytes > FLOAT32_MOST_BYTES:
            step["dtype"] = "float32"
    why = "all cores, the type that this processor computes best, a faster threading library"
    singles = tuple(settings_of({name: value}) for name, value in step.items())
    return [Lever((settings_of(step),), why, spare=singles)] if step else []


def intel_openmp(build: Build) -> str:
    """Return where an environment has Intel's OpenMP (the `intel-openmp` wheel puts it there)."""
    return str(PurePosixPath(build.command[0]).parent.parent / "lib" / "libiomp5.so")


def memory_settings(candidate: Candidate) -> VllmSettings:
    """Return what of a candidate decides over memory."""
    settings = VllmSettings(int(candidate.get("context") or MINIMUM_CONTEXT))
    return replace(
        settings,
        sequences=int(candidate.get("max_num_seqs") or settings.sequences),
        utilization=float(candidate.get("gpu_memory_utilization") or settings.utilization),
        kv_type=str(candidate.get("kv_cache_dtype") or settings.kv_type),
        batched_tokens=int(candidate.get("max_num_batched_tokens") or settings.batched_tokens),
        has_graphs=candidate.get("enforce_eager") != "on",
    )


def _capability(arch: str) -> float:
    try:
        return float(arch)
    except ValueError:
        return 0.0


ENGINE = Vllm()
