"""llama.cpp: `llama-server`, as a program or inside the `xllamacpp` wheel.

Flags as in llama.cpp b11434 (`llama-server --help`). The context (`--ctx-size`) is divided by the
number of slots, so a candidate's `context` is what one request gets and is multiplied here.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.candidate import Build, Candidate, settings_of
from enginehouse.core.engine import Launch, Lever, Refusal, Tunable
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload

CONTEXT_STEP = 256
MINIMUM_CONTEXT = 1024
KV_BYTES_PER_ELEMENT = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""ggml block layouts: q8_0 holds 32 values in 34 bytes, q4_0 in 18."""

TUNABLES = (
    Tunable("context", "tokens of context that one request gets", "--ctx-size"),
    Tunable("slots", "requests that are decoded together", "--parallel"),
    Tunable("threads", "threads for decode and prefill", "--threads"),
    Tunable("batch", "logical batch: most tokens submitted at once", "--batch-size"),
    Tunable("ubatch", "physical batch: most tokens computed at once", "--ubatch-size"),
    Tunable("kv_type", "type of the KV cache: f16, q8_0, q4_0", "--cache-type-k"),
    Tunable("flash_attention", "fused attention: auto, on, off", "--flash-attn"),
    Tunable("speculation", "draft by n-grams of the context: none, ngram-mod", "--spec-type"),
    Tunable("prompt_cache_mib", "host memory for prompts of idle slots, MiB", "--cache-ram"),
)


@dataclass(frozen=True)
class LlamaCpp:
    """The llama.cpp server."""

    name: str = "llama.cpp"
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/health"

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv, in `llama-server`'s own spelling."""
        candidate = launch.candidate
        slots = _integer(candidate, "slots", 1)
        argv = [*launch.build.command, "--model", launch.model.path, "--alias", launch.model.name]
        if launch.endpoint.socket_path:
            argv += ["--host", launch.endpoint.socket_path]
        else:
            argv += ["--host", "127.0.0.1", "--port", str(launch.endpoint.port)]
        argv += ["--parallel", str(slots)]
        argv += ["--ctx-size", str(slots * _integer(candidate, "context", MINIMUM_CONTEXT))]
        for name, flag in (
            ("threads", "--threads"),
            ("batch", "--batch-size"),
            ("ubatch", "--ubatch-size"),
            ("flash_attention", "--flash-attn"),
            ("speculation", "--spec-type"),
        ):
            value = candidate.get(name)
            if value is not None:
                argv += [flag, str(value)]
        kv_type = candidate.get("kv_type")
        if kv_type is not None:
            argv += ["--cache-type-k", str(kv_type), "--cache-type-v", str(kv_type)]
        argv += ["--cache-ram", str(_integer(candidate, "prompt_cache_mib", 0))]
        if launch.build.kind == "wheel":
            argv += ["--fit", "off"]
        if launch.model.can_embed:
            argv += ["--embedding"]
        return (*argv, "--metrics", "--no-webui")

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Add nothing: every setting is a flag."""
        return ()

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse what is not GGUF, and weights that cannot fit into the available memory."""
        if model.format != "gguf":
            return Refusal("format.unsupported", f"llama.cpp reads GGUF, not {model.format}")
        if model.weight_bytes > machine.memory_available_bytes:
            return Refusal(
                "memory.host.insufficient",
                f"the weights are {model.weight_bytes / 2**30:.1f} GiB, "
                f"{machine.memory_available_bytes / 2**30:.1f} GiB is available",
            )
        return None

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return one slot with just the context that the workload needs, all else default."""
        wanted = max(MINIMUM_CONTEXT, workload.context_tokens)
        context = -(-wanted // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        return Candidate(self.name, build.digest, settings_of({"context": context, "slots": 1}))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""
        levers = []
        if workload.streams > 1:
            levers.append(
                Lever("slots", _slot_steps(workload.streams), "several requests share one read")
            )
        if workload.streams <= 2:
            levers.append(
                Lever("speculation", ("ngram-mod",), "a draft costs nothing when text repeats")
            )
        levers.append(Lever("flash_attention", ("off", "on"), "which is faster depends on the CPU"))
        levers.append(Lever("kv_type", ("q8_0",), "half the KV cache to read"))
        if workload.shared_prefix_tokens + workload.prompt_tokens > 512:
            levers.append(Lever("ubatch", (1024, 256), "prefill in other chunks"))
        threads = machine.usable_cores
        if threads > 1:
            levers.append(Lever("threads", (threads, threads - 1), "leave a core to the rest"))
        return tuple(levers)

    def estimate_memory(self, model: Model, candidate: Candidate) -> MemoryEstimate:
        """Predict weights, KV cache, compute buffers and the server itself, in bytes.

        Compute buffers: the logits of one micro-batch row per slot and about 12 activations of
        f32 per token of the micro-batch; a bound, to be corrected by what is observed.
        """
        slots = _integer(candidate, "slots", 1)
        context = _integer(candidate, "context", MINIMUM_CONTEXT)
        ubatch = min(_integer(candidate, "ubatch", 512), context)
        element = KV_BYTES_PER_ELEMENT.get(str(candidate.get("kv_type") or "f16"), 2.0)
        elements = model.k_elements_per_token + model.v_elements_per_token
        kv = element * elements * context * slots
        compute = 4.0 * ubatch * (model.vocabulary_size + 12 * model.embedding_length)
        server = 80 * 2.0**20
        cache = _integer(candidate, "prompt_cache_mib", 0) * 2.0**20
        return MemoryEstimate(
            (
                MemoryPart("weights", Range(model.weight_bytes, model.weight_bytes, _up(model))),
                MemoryPart("KV cache", Range(kv, kv, kv)),
                MemoryPart("compute buffers", Range(0.2 * compute, 0.6 * compute, compute)),
                MemoryPart("server", Range(0.5 * server, server, 2 * server)),
                MemoryPart("prompt cache", Range(0.0, cache / 2, cache)),
            )
        )


def _up(model: Model) -> float:
    """Weights that llama.cpp repacks for the CPU exist twice when the file is memory-mapped."""
    return 2.0 * model.weight_bytes


def _slot_steps(streams: int) -> tuple[int, ...]:
    steps = [streams, streams // 2, streams // 4]
    return tuple(step for step in steps if step > 1)


def _integer(candidate: Candidate, name: str, default: int) -> int:
    value = candidate.get(name)
    return int(value) if value is not None else default


ENGINE = LlamaCpp()
