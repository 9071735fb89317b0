"""TensorRT-LLM: `trtllm-serve`, for NVIDIA's GPUs in workstations and servers.

Flags as in version 1.2 (NVIDIA/TensorRT-LLM:tensorrt_llm/commands/serve.py, and
https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html); the server listens
once the model is loaded, so `/health` is readiness.

Unproven: written from that documentation and source, never run on a GPU by this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.core.candidate import Build, Candidate, settings_of
from enginehouse.core.engine import (
    NO_QUIRKS,
    UNPROVEN,
    Call,
    Launch,
    Lever,
    Quirks,
    Refusal,
    Tunable,
    lever,
)
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range, exactly, within
from enginehouse.core.estimate_vllm import (
    CUDA_CONTEXT_BYTES,
    VllmSettings,
    activation_bytes,
    kv_bytes_per_token,
)
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.nvidia import CONTEXT_STEP, needs_nvidia, needs_safetensors
from enginehouse.core.workload import Workload

LEAST_CAPABILITY = 8.0
"""Ampere, the oldest in https://nvidia.github.io/TensorRT-LLM/supported-hardware.html."""
DEFAULT_BATCHED_TOKENS = 8192
DEFAULT_FRACTION = 0.9
"""Of the memory that is free once the weights are loaded (`--free_gpu_memory_fraction`)."""
HOST_BYTES = Range(2.0 * 2.0**30, 4.0 * 2.0**30, 10.0 * 2.0**30)
"""Bounds of Python processes with torch and an MPI worker; not measured by this project."""

TUNABLES = (
    Tunable("context", "tokens of one request, prompt and answer", "--max_seq_len", 1),
    Tunable("slots", "requests that are decoded together", "--max_batch_size", 1),
    Tunable("batched_tokens", "prompt tokens computed at once", "--max_num_tokens", 1),
    Tunable(
        "kv_fraction", "share of the GPU's free memory for the KV cache, 0 to 1",
        "--free_gpu_memory_fraction",
    ),
    Tunable(
        "chunked_prefill", "prefill long prompts in pieces", "--enable_chunked_prefill",
        values=("on", "off"),
    ),
    Tunable("tensor_parallel_size", "GPUs that share each layer", "--tensor_parallel_size", 1),
    Tunable(
        "backend", "what runs the model", "--backend",
        values=("pytorch", "tensorrt", "_autodeploy"),
    ),
)  # fmt: skip
FLAGS = tuple((tunable.name, tunable.flag) for tunable in TUNABLES)
REQUEST_NAMES = {
    "repeat_penalty": "repetition_penalty", "repeat_last_n": "", "typical_p": "", "n_keep": "",
    "mirostat": "", "mirostat_tau": "", "mirostat_eta": "",
}  # fmt: skip
"""Its names (tensorrt_llm/serve/openai_protocol.py), from its documentation."""


@dataclass(frozen=True)
class TensorRtLlm:
    """The `trtllm-serve` server."""

    name: str = "tensorrt-llm"
    status: str = UNPROVEN
    formats: tuple[str, ...] = ("safetensors",)
    unix_socket: bool = False
    honours_ignore_eos: bool = True
    stop_signal: str = "SIGTERM"
    request_names: Mapping[str, str] = field(default_factory=lambda: REQUEST_NAMES)
    tokens_api: str = ""
    quirks: Quirks = NO_QUIRKS
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/health"

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv, in `trtllm-serve`'s own spelling."""
        argv = [*launch.build.command, launch.model.path]
        argv += ["--host", "127.0.0.1", "--port", str(launch.endpoint.port)]
        for name, flag in FLAGS:
            value = launch.candidate.get(name)
            if name == "chunked_prefill":
                argv += [flag] if value == "on" else []
            elif value is not None:
                argv += [flag, str(value)]
        return tuple(argv)

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Keep Hugging Face's libraries from asking the network: the model is on disk."""
        return (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"))

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Nothing: the model is named on the command line."""
        return ()

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse other formats, machines without a supported NVIDIA GPU, and Jetsons."""
        if machine.l4t or "jetson" in machine.kinds:
            return needs_safetensors("TensorRT-LLM", model) or Refusal(
                "gpu.arch_unsupported",
                "TensorRT-LLM stopped at v0.12.0-jetson for Jetsons "
                "(NVIDIA/TensorRT-LLM issue 9713); TensorRT Edge-LLM took its place",
            )
        return needs_safetensors("TensorRT-LLM", model) or needs_nvidia(
            "TensorRT-LLM", machine, LEAST_CAPABILITY
        )

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse a share of the free memory that is none."""
        fraction = candidate.get("kv_fraction")
        if fraction is not None and not 0 < float(fraction) < 1:
            return Refusal("config.invalid_value", "kv_fraction lies between 0 and 1")
        return None

    def most_choices(self, candidate: Candidate) -> int:
        """As many as are asked for."""
        return 0

    def shared_slots(self, candidate: Candidate) -> int:
        """None: it shares blocks of the KV cache between requests by itself."""
        return 0

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return one request at a time with just the context that the workload needs.

        A batch may hold one whole prompt, so that nothing has to be chunked.
        """
        context = -(-workload.context_tokens // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        settings = {"context": context, "slots": 1, "batched_tokens": context}
        return Candidate(self.name, build.digest, settings_of(settings))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""
        levers = []
        if workload.streams > 1:
            counts = [n for n in (workload.streams, workload.streams // 2) if n > 1]
            levers.append(lever("slots", counts, "several requests share one read of the weights"))
            sizes = (DEFAULT_BATCHED_TOKENS,)
            levers.append(lever("batched_tokens", sizes, "several prompts in one step", (2048,)))
            levers.append(lever("chunked_prefill", ("on",), "answers go on while a prompt is read"))
        gpus = len(machine.gpus)
        if gpus > 1:
            levers.append(lever("tensor_parallel_size", (gpus,), "every GPU reads its share"))
        levers.append(lever("backend", (), "another runtime", ("_autodeploy",)))
        return tuple(levers)

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the parts; the KV cache takes its share of whatever the GPU has left.

        At least it holds the sequences that were asked for.
        """
        context = int(candidate.get("context") or CONTEXT_STEP)
        slots = int(candidate.get("slots") or 1)
        batched = int(candidate.get("batched_tokens") or DEFAULT_BATCHED_TOKENS)
        shape = VllmSettings(context, sequences=slots, batched_tokens=batched)
        activations = activation_bytes(model, shape)
        needed = kv_bytes_per_token(model, "auto") * context * slots
        parts = (
            MemoryPart("weights", within(model.weight_bytes, 0.05), is_on_device=True),
            MemoryPart("activations", activations, is_on_device=True),
            MemoryPart("CUDA context", CUDA_CONTEXT_BYTES, is_on_device=True),
            MemoryPart("run time", HOST_BYTES, note="on the host"),
            MemoryPart("file pages", exactly(model.weight_bytes), is_reclaimable=True),
        )
        used = sum(part.bytes.expected for part in parts if part.is_on_device)
        gpu = machine.gpus[0] if machine and machine.gpus else None
        free = (gpu.memory_free_bytes or gpu.memory_total_bytes or 0) if gpu else 0
        fraction = float(candidate.get("kv_fraction") or DEFAULT_FRACTION)
        taken = max(needed, fraction * (free - used))
        note = f"{fraction:.0%} of what is left on the GPU"
        cache = MemoryPart("KV cache", Range(needed, taken, taken), note=note, is_on_device=True)
        return MemoryEstimate((parts[0], cache, *parts[1:]))


ENGINE = TensorRtLlm()
