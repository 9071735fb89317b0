"""llama.cpp: `llama-server`, as a program or inside the `xllamacpp` wheel.

Flags as in llama.cpp b11434 (`llama-server --help`). The context (`--ctx-size`) is divided by the
number of slots, so a candidate's `context` is what one request gets and is multiplied here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
from enginehouse.core.estimate import MemoryEstimate
from enginehouse.core.estimate_llama import DEFAULT_UBATCH, LlamaSettings, estimate_llama
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload

CONTEXT_STEP = 256
MINIMUM_CONTEXT = 1024
PROMPT_CACHE_MIB = 256
UNQUANTIZED = ("f32", "f16", "bf16")
AVX512 = "avx512f"
BF16_ISA = frozenset({"avx512_bf16", "amx_bf16"})
HUGE_FROM_BYTES = 512 * 2**20
"""Smaller weights gain nothing beyond noise by huge pages (docs/lab-log.md)."""

TUNABLES = (
    Tunable("context", "tokens of context that one request gets", "--ctx-size", 256),
    Tunable("slots", "requests that are decoded together", "--parallel", 1),
    Tunable("threads", "threads for decode and prefill", "--threads", 1),
    Tunable("batch", "logical batch: most tokens submitted at once", "--batch-size", 1),
    Tunable("ubatch", "physical batch: most tokens computed at once", "--ubatch-size", 1),
    Tunable("kv_type", "type of the KV cache: f16, bf16, q8_0, q4_0", "--cache-type-k"),
    Tunable("flash_attention", "fused attention", "--flash-attn", values=("auto", "on", "off")),
    Tunable("speculation", "draft by n-grams of the context: none, ngram-mod", "--spec-type"),
    Tunable(
        "prefix_sharing",
        "copy a shared prompt prefix between slots",
        "--slot-save-path",
        values=("on", "off"),
    ),
    Tunable("prompt_cache_mib", "host memory for prompts of idle slots, MiB", "--cache-ram", 0),
    Tunable("gpu_layers", "layers on the GPU", "--n-gpu-layers", 0),
    Tunable("mmap", "map the weights instead of copying them", "--no-mmap", values=("on", "off")),
    Tunable("mlock", "lock the weights in memory", "--mlock", values=("on", "off")),
    Tunable(
        "huge_pages",
        "ask the kernel for pages of 2 MiB for what is not mapped (glibc 2.35 and later)",
        "GLIBC_TUNABLES",
        values=("on", "off"),
    ),
    Tunable("jinja", "read the chat template with jinja", "--jinja", values=("on", "off")),
    Tunable("chat_template", "a built-in chat template", "--chat-template", values=("chatml",)),
    Tunable("leave_out", "flags that this build does not know, by spaces", ""),
)
LOAD_MODE_FROM = 11549
"""From this build on `--load-mode` is known, and `--no-mmap` and `--mlock` are errors; b11434 has
those two. What lies between was not seen: there an unknown flag is left out, as its diagnosis says.
"""
SWITCHES = {
    ("jinja", "on"): "--jinja",
    ("jinja", "off"): "--no-jinja",
}


@dataclass(frozen=True)
class LlamaCpp:
    """The llama.cpp server."""

    name: str = "llama.cpp"
    status: str = PROVEN
    formats: tuple[str, ...] = ("gguf",)
    unix_socket: bool = True
    honours_ignore_eos: bool = True
    stop_signal: str = "SIGTERM"
    request_names: Mapping[str, str] = field(default_factory=dict)
    tokens_api: str = "llama-server"
    quirks: Quirks = NO_QUIRKS
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/health"
    no_page: tuple[str, ...] = ("--no-webui",)

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
            ("gpu_layers", "--n-gpu-layers"),
            ("chat_template", "--chat-template"),
        ):
            value = candidate.get(name)
            if value is not None:
                argv += [flag, str(value)]
        kv_type = candidate.get("kv_type")
        if kv_type is not None:
            argv += ["--cache-type-k", str(kv_type), "--cache-type-v", str(kv_type)]
        argv += self.load_flags(launch.build, candidate)
        argv += ["--cache-ram", str(_integer(candidate, "prompt_cache_mib", 0))]
        if self.shared_slots(candidate):
            argv += ["--slot-save-path", launch.scratch]
        if launch.build.kind == "wheel":
            argv += ["--fit", "off"]
        if launch.model.can_embed:
            argv += ["--embedding"]
        argv += ["--metrics", *self.no_page]
        return without_flags(argv, str(candidate.get("leave_out") or "").split())

    def load_flags(self, build: Build, candidate: Candidate) -> list[str]:
        """Return how the weights and the chat template are read, in the build's own words."""
        switches = [flag for (name, on), flag in SWITCHES.items() if candidate.get(name) == on]
        return [*_load_flags(build, candidate), *switches]

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Add what is no flag: how the C library takes memory."""
        is_huge = launch.candidate.get("huge_pages") == "on"
        return (("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),) if is_huge else ()

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Nothing: the model is named on the command line."""
        return ()

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse what is not GGUF, and weights that cannot fit into the available memory."""
        if model.format != "gguf":
            return Refusal("format.unsupported", f"{self.name} reads GGUF, not {model.format}")
        if model.weight_bytes > machine.memory_available_bytes:
            return Refusal(
                "memory.host.insufficient",
                f"the weights are {model.weight_bytes / 2**30:.1f} GiB, "
                f"{machine.memory_available_bytes / 2**30:.1f} GiB is available",
            )
        return None

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse a quantized V cache without flash attention, as llama.cpp does at start."""
        kv_type = candidate.get("kv_type") or "f16"
        if kv_type not in UNQUANTIZED and candidate.get("flash_attention") == "off":
            return Refusal(
                "config.incompatible_flags",
                f"a KV cache of type {kv_type} needs flash attention",
                ("flash-attention-on", "full-kv"),
            )
        return None

    def most_choices(self, candidate: Candidate) -> int:
        """One a slot; a request that is given its slot has just that."""
        return 1 if self.shared_slots(candidate) else _integer(candidate, "slots", 1)

    def shared_slots(self, candidate: Candidate) -> int:
        """Return the slots when prefix sharing is on; one slot has nobody to share with."""
        slots = _integer(candidate, "slots", 1)
        return slots if slots > 1 and candidate.get("prefix_sharing") == "on" else 0

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return one slot with just the context that the workload needs, all else default.

        The host's prompt cache is small instead of the default 8 GiB, which would stand beside the
        weights in the same memory; without any, two conversations in turn lose each other's prompt.
        """
        wanted = max(MINIMUM_CONTEXT, workload.context_tokens)
        context = -(-wanted // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        settings = {"context": context, "slots": 1, "prompt_cache_mib": PROMPT_CACHE_MIB}
        return Candidate(self.name, build.digest, settings_of(settings))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""
        prompt_tokens = workload.shared_prefix_tokens + workload.prompt_tokens
        levers = []
        if workload.streams > 1:
            levers += _slots_levers(workload, machine)
        if workload.streams <= 2:
            levers.append(lever("speculation", ("ngram-mod",), "text that repeats drafts itself"))
        if prompt_tokens > 512 and BF16_ISA & set(machine.isa) and not machine.gpus:
            levers.append(_bf16_lever())
        levers.append(lever("flash_attention", ("off",), "plain attention is faster on some CPUs"))
        levers.append(lever("kv_type", ("q8_0",), "half the KV cache to read"))
        if prompt_tokens > 512:
            levers.append(lever("ubatch", (1024, 256), "prefill in other chunks"))
            levers.append(lever("batch", (), "prefill in smaller turns", (512,)))
        else:
            levers.append(lever("ubatch", (), "prefill in other chunks", (128,)))
        threads = machine.usable_cores
        if threads > 1:
            counts = (threads - 1,) if threads == machine.physical_cores else (threads,)
            levers.append(lever("threads", (), "leave a core to the rest, or use them all", counts))
        if model.weight_bytes >= HUGE_FROM_BYTES and not machine.gpus:
            levers.append(_huge_pages_lever())
        return tuple(levers)

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the memory the engine will hold, part by part (`core/estimate_llama.py`).

        Without a machine, one with AVX2 and no GPU is assumed.
        """
        return estimate_llama(model, memory_settings(candidate, machine))


def memory_settings(candidate: Candidate, machine: Machine | None = None) -> LlamaSettings:
    """Return what of a candidate (and the machine) decides over memory."""
    context = _integer(candidate, "context", MINIMUM_CONTEXT)
    slots = _integer(candidate, "slots", 1)
    return LlamaSettings(
        context=context,
        slots=slots,
        ubatch=min(_integer(candidate, "ubatch", DEFAULT_UBATCH), context * slots),
        kv_type=str(candidate.get("kv_type") or "f16"),
        has_flash=candidate.get("flash_attention") != "off",
        prompt_cache_bytes=_integer(candidate, "prompt_cache_mib", 0) * 2.0**20,
        isa=machine.isa if machine else ("avx2",),
        drafts_ngrams=candidate.get("speculation") == "ngram-mod",
    )


def _slots_levers(workload: Workload, machine: Machine) -> list[Lever]:
    """Slots, with prefix sharing where requests share a prefix: without it each slot computes it.

    Without flash attention too, since on a CPU with AVX2 long contexts decode faster so, and slower
    with AVX-512 (docs/lab-log.md); with it where that brings nothing.
    """
    counts = slot_counts(workload)
    if not has_shared_prefix(workload):
        why = "several requests share one read of the weights"
        return [lever("slots", counts[:1], why, counts[1:])]
    shared = [settings_of({"slots": count, "prefix_sharing": "on"}) for count in counts]
    plain = settings_of({"slots": counts[0], "prefix_sharing": "on", "flash_attention": "off"})
    why = "several requests share one read, and one prefix"
    flash = Lever(tuple(shared[:1]), why, tuple(shared[1:]))
    return [flash] if AVX512 in machine.isa else [Lever((plain,), why), flash]


def slot_counts(workload: Workload) -> list[int]:
    """Return the numbers of slots worth trying for several streams, the likeliest first."""
    return [n for n in (workload.streams, workload.streams // 2, workload.streams // 4) if n > 1]


def has_shared_prefix(workload: Workload) -> bool:
    """Return whether requests share a prefix that is long enough to be worth copying."""
    return workload.shared_prefix_tokens >= 256


def _bf16_lever() -> Lever:
    """Plain attention over a cache that the processor multiplies as it is, for long prompts.

    With AVX-512 BF16 eight streams over 900 shared tokens made 158 tok/s so, where fused attention
    over f16 made 138; one stream over 3,000 tokens as many as before (docs/lab-log.md). Fused
    attention has no such code: over bf16 prefill took three times as long.
    """
    plain: dict[str, Setting] = {"flash_attention": "off", "kv_type": "bf16"}
    small, large = settings_of({**plain, "ubatch": 128}), settings_of(plain)
    return Lever((small,), "this processor multiplies bfloat16", spare=(large,))


def _huge_pages_lever() -> Lever:
    """Pages of 2 MiB for all weights, for which they may not be mapped; else for what is copied."""
    why = "fewer page walks to read the weights"
    all_of_them = settings_of({"huge_pages": "on", "mmap": "off"})
    return Lever((all_of_them,), why, spare=(settings_of({"huge_pages": "on"}),))


def _load_flags(build: Build, candidate: Candidate) -> list[str]:
    """Return how the weights are loaded, in the build's own words (the wheel's server is ours)."""
    is_copied, is_locked = candidate.get("mmap") == "off", candidate.get("mlock") == "on"
    number = re.match(r"b(\d+)", build.version)
    # a native build without a number is of a checkout without tags, which is taken to be new
    unknown = LOAD_MODE_FROM if build.kind == "native" else 0
    if build.kind == "wheel" or (int(number[1]) if number else unknown) < LOAD_MODE_FROM:
        return [*(["--no-mmap"] if is_copied else []), *(["--mlock"] if is_locked else [])]
    if is_locked:
        return ["--load-mode", "mlock" if is_copied else "mmap+mlock"]
    return ["--load-mode", "none"] if is_copied else []


def _integer(candidate: Candidate, name: str, default: int) -> int:
    value = candidate.get(name)
    return int(value) if value is not None else default


ENGINE = LlamaCpp()
