"""TensorRT Edge-LLM: NVIDIA's server for Jetson, DGX Spark and single GPUs.

Flags, paths and the strictness of requests as in `tensorrt-edgellm` 0.11.0 (its server's argument
parser, routes and request model); the command is called `trtedge serve` since 0.11.1 and
`tensorrt-edgellm-serve` in 0.11.0:
https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/cli.html,
https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/support-matrix.html.

The first start for a checkpoint and its limits builds TensorRT engines, which takes minutes; they
are kept in its own cache and found again. It wants TensorRT's own Python bindings beside it.

Unproven: written from its documentation and its wheel's source; nothing has run it for us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.core.candidate import Build, Candidate, settings_of
from enginehouse.core.conditions import parts_of
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
from enginehouse.core.nvidia import CONTEXT_STEP, capability, needs_nvidia, needs_safetensors
from enginehouse.core.workload import Workload

LEAST_CAPABILITY = 8.0
"""The oldest GPU that the published wheels hold kernels for (`sm80`)."""
ORIN_CAPABILITY = 8.7
LEAST_L4T = (36,)
"""JetPack 6.2 is "compatible" up to 0.8's overview; official for Orin is JetPack 7.2 (L4T 39.2)."""
NO_FP8_METHODS = ("fp8", "nvfp4", "mxfp4", "mxfp8")
"""Precisions that Orin does not run (the support matrix: FP16, INT8 and INT4 only)."""
HOST_BYTES = Range(0.7 * 2.0**30, 1.5 * 2.0**30, 4.0 * 2.0**30)
"""Bounds of a Python process with TensorRT; not measured by this project."""
BUILD_SHARE = Range(0.0, 1.0, 3.0)
"""Of the weights, on top of them, while engines are built: nothing when they are found in the
cache, 3 to 4 times the parameters in all as reported in NVIDIA/TensorRT-Edge-LLM issue 30."""

TUNABLES = (
    Tunable("context", "tokens of one request, prompt and answer", "--max-kv-cache-capacity", 1),
    Tunable("slots", "requests that are decoded together", "--max-batch-size", 1),
    Tunable("input_tokens", "tokens of the longest prompt", "--max-input-len", 1),
    Tunable(
        "in_flight_batching", "let waiting requests join the running batch",
        "--enable-in-flight-batching", values=("on", "off"),
    ),
    Tunable(
        "context_reuse", "keep the KV cache of prompt prefixes", "--enable-context-reuse",
        values=("on", "off"),
    ),
)  # fmt: skip
NUMBERS = ("context", "slots", "input_tokens")
REQUEST_NAMES = dict.fromkeys(
    ("min_p", "typical_p", "repeat_penalty", "repeat_last_n", "n_keep", "mirostat",
     "mirostat_tau", "mirostat_eta", "chat_template_kwargs", "seed", "logprobs", "top_logprobs",
     "presence_penalty", "frequency_penalty"), ""
)  # fmt: skip
"""It forbids fields that it does not know; from its documentation."""


@dataclass(frozen=True)
class TensorRtEdgeLlm:
    """The TensorRT Edge-LLM server."""

    name: str = "tensorrt-edge-llm"
    status: str = UNPROVEN
    formats: tuple[str, ...] = ("safetensors",)
    unix_socket: bool = False
    honours_ignore_eos: bool = False
    stop_signal: str = "SIGTERM"
    request_names: Mapping[str, str] = field(default_factory=lambda: REQUEST_NAMES)
    tokens_api: str = ""
    quirks: Quirks = NO_QUIRKS
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/health/ready"

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv, in the server's own spelling; it would listen everywhere else."""
        candidate = launch.candidate
        argv = [*launch.build.command, launch.model.path]
        argv += ["--host", "127.0.0.1", "--port", str(launch.endpoint.port)]
        argv += ["--served-model-name", launch.model.name]
        for tunable in TUNABLES:
            value = candidate.get(tunable.name)
            if tunable.name in NUMBERS and value is not None:
                argv += [tunable.flag, str(value)]
            elif value == "on":
                argv.append(tunable.flag)
        return tuple(argv)

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Keep Hugging Face's libraries from asking the network: the model is on disk."""
        return (("HF_HUB_OFFLINE", "1"),)

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Nothing: the model is named on the command line."""
        return ()

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse other formats, other GPUs, too old a JetPack, and what Orin cannot compute in."""
        refusal = needs_safetensors("TensorRT Edge-LLM", model) or needs_nvidia(
            "TensorRT Edge-LLM", machine, LEAST_CAPABILITY
        )
        if refusal is not None:
            return refusal
        if machine.l4t and parts_of(machine.l4t) < LEAST_L4T:
            return Refusal(
                "driver.too_old",
                f"TensorRT Edge-LLM needs JetPack 7.2 (6.2 at least); this is L4T {machine.l4t}",
            )
        quantization = model.weight_quantization
        is_orin = any(capability(gpu.arch) == ORIN_CAPABILITY for gpu in machine.gpus)
        if is_orin and quantization and quantization.method in NO_FP8_METHODS:
            return Refusal(
                "gpu.dtype_unsupported",
                f"Orin computes in FP16, INT8 and INT4; the checkpoint is {quantization.method}",
            )
        return None

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse a prompt that is longer than the whole request."""
        tokens, context = candidate.get("input_tokens"), candidate.get("context")
        if tokens is not None and context is not None and int(tokens) > int(context):
            return Refusal("config.invalid_value", f"input_tokens {tokens} exceeds the context")
        return None

    def most_choices(self, candidate: Candidate) -> int:
        """One, since no other number is documented."""
        return 1

    def shared_slots(self, candidate: Candidate) -> int:
        """None: it has no slots to copy between."""
        return 0

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return one request at a time with just the context that the workload needs.

        Its own defaults (8192 tokens) would reserve more; each change of a limit is a new build.
        """
        context = -(-workload.context_tokens // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        settings = {"context": context, "slots": 1, "input_tokens": context}
        return Candidate(self.name, build.digest, settings_of(settings))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload: few, since each is a build of minutes."""
        levers = []
        if workload.streams > 1:
            counts = [n for n in (workload.streams, workload.streams // 2) if n > 1]
            steps = [settings_of({"slots": n, "in_flight_batching": "on"}) for n in counts]
            levers.append(Lever(tuple(steps), "several requests share one read of the weights"))
        if workload.shared_prefix_tokens >= CONTEXT_STEP:
            levers.append(lever("context_reuse", ("on",), "a shared prefix is computed once"))
        return tuple(levers)

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the parts while it serves, and what the first start's build takes besides.

        The KV cache is reserved for every slot at once.
        """
        context = int(candidate.get("context") or 8192)
        slots = int(candidate.get("slots") or 1)
        tokens = int(candidate.get("input_tokens") or 4096)
        shape = VllmSettings(context, sequences=slots, batched_tokens=tokens * slots)
        kv = kv_bytes_per_token(model, "auto") * context * slots
        build = BUILD_SHARE.times(model.weight_bytes)
        return MemoryEstimate(
            (
                MemoryPart("weights", within(model.weight_bytes, 0.1), is_on_device=True),
                MemoryPart("KV cache", exactly(kv), is_on_device=True),
                MemoryPart("activations", activation_bytes(model, shape), is_on_device=True),
                MemoryPart("CUDA context", CUDA_CONTEXT_BYTES, is_on_device=True),
                MemoryPart("engine build", build, note="at the first start only"),
                MemoryPart("run time", HOST_BYTES, note="on the host"),
                MemoryPart("file pages", exactly(model.weight_bytes), is_reclaimable=True),
            )
        )


ENGINE = TensorRtEdgeLlm()
