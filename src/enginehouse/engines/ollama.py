"""Ollama: a daemon of our own, on a port of ours, beside the one that the user may have.

Facts from Ollama's source at commit fb30760 (August 2026, llama.cpp b10488), by file: variables
from `envconfig/config.go`, a model's parameters and their defaults from `api/types.go`, the import
from `server/create.go` and `server/routes.go`; from `llm/llama_server.go` and `server/sched.go` the
`llama-server` that it starts as a child (since 0.30, ollama/ollama pull request 16031).

Unproven: no Ollama could be had where this was written; no daemon has answered it, real or fake.

The daemon gets a home of its own and a store of its own, so neither the user's daemon nor the
user's models are touched. The model's file is linked into the store under the name of its digest,
where `/api/create` looks for it: uploading it (`/api/blobs`) would copy it once more, and a daemon
that has it already answers before the upload is through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
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
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, Range, exactly
from enginehouse.core.estimate_llama import LlamaSettings, estimate_llama
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload

CONTEXT_STEP = 256
DEFAULT_CONTEXT = 4096
"""What Ollama takes on a machine with little GPU memory (`server/routes.go`)."""
DEFAULT_BATCH = 512
PROMPT_CACHE_BYTES = 8192 * 2.0**20
"""llama-server's own default for prompts of idle slots; Ollama does not change it."""
DAEMON_BYTES = Range(25 * 2.0**20, 60 * 2.0**20, 200 * 2.0**20)
"""Bounds of a Go program with an HTTP server; not measured by this project."""
UNQUANTIZED = ("f32", "f16", "bf16")
NAME = re.compile(r"(?:\w[\w-]{0,79}/)?\w[\w.-]{0,79}(?::\w[\w.-]{0,79})?", re.ASCII)
"""A model's name as `types/model/name.go` allows it."""
ONE_SLOT_ARCHITECTURES = (
    "mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe",
    "nemotron_h", "nemotron_h_moe", "nemotron_h_omni",
)  # fmt: skip
"""Families that Ollama serves one request at a time whatever is asked (`server/sched.go`)."""
START = (
    'mkdir -p "$OLLAMA_MODELS/blobs" && ln -sfn "$1" "$OLLAMA_MODELS/blobs/sha256-$2" '
    '&& exec "$0" serve'
)

TUNABLES = (
    Tunable("context", "tokens of context that one request gets", "OLLAMA_CONTEXT_LENGTH", 4),
    Tunable("slots", "requests that are decoded together", "OLLAMA_NUM_PARALLEL", 1),
    Tunable("batch", "tokens computed at once (both batches)", "num_batch", 1),
    Tunable("threads", "threads for decode and prefill", "num_thread", 1),
    Tunable("gpu_layers", "layers on the GPU, 0 for the CPU alone", "num_gpu", 0),
    Tunable(
        "kv_type", "type of the KV cache", "OLLAMA_KV_CACHE_TYPE",
        values=("f16", "q8_0", "q4_0"),
    ),
    Tunable(
        "flash_attention", "fused attention; auto where nothing is said", "OLLAMA_FLASH_ATTENTION",
        values=("on", "off"),
    ),
    Tunable("mmap", "map the weights instead of copying them", "use_mmap", values=("on", "off")),
)  # fmt: skip
PARAMETERS = (("batch", "num_batch"), ("threads", "num_thread"), ("gpu_layers", "num_gpu"))
REQUEST_NAMES = dict.fromkeys(
    ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "n_keep", "mirostat",
     "mirostat_tau", "mirostat_eta", "chat_template_kwargs"), ""
)  # fmt: skip
"""What its OpenAI routes do not take (openai/openai.go)."""


@dataclass(frozen=True)
class Ollama:
    """The Ollama daemon, started by us."""

    name: str = "ollama"
    status: str = UNPROVEN
    formats: tuple[str, ...] = ("gguf",)
    unix_socket: bool = False
    honours_ignore_eos: bool = False
    stop_signal: str = "SIGTERM"
    request_names: Mapping[str, str] = field(default_factory=lambda: REQUEST_NAMES)
    tokens_api: str = ""
    quirks: Quirks = NO_QUIRKS
    tunables: tuple[Tunable, ...] = TUNABLES
    ready_path: str = "/api/version"

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv: link the model into the store, then become `ollama serve`."""
        *before, program = launch.build.command
        model = launch.model
        return (*before, "/bin/sh", "-c", START, program, model.path, model.digest)

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Build the variables: where it listens and keeps things, and what it takes only this way.

        The store is the one that the build's command sets, else in the launch's own folder.
        """
        candidate = launch.candidate
        env = {
            "OLLAMA_HOST": f"127.0.0.1:{launch.endpoint.port}",
            "HOME": launch.scratch,
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_NUM_PARALLEL": str(_integer(candidate, "slots", 1)),
            "OLLAMA_CONTEXT_LENGTH": str(_integer(candidate, "context", DEFAULT_CONTEXT)),
        }
        if not any(word.startswith("OLLAMA_MODELS=") for word in launch.build.command):
            env["OLLAMA_MODELS"] = f"{launch.scratch}/models"
        if candidate.get("kv_type") is not None:
            env["OLLAMA_KV_CACHE_TYPE"] = str(candidate.get("kv_type"))
        if candidate.get("flash_attention") is not None:
            env["OLLAMA_FLASH_ATTENTION"] = str(int(candidate.get("flash_attention") == "on"))
        return tuple(env.items())

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Make the linked file a model of the daemon's, then have it loaded.

        A request without a prompt loads the model, so that the first token does not wait for it.
        """
        create = {
            "model": launch.model.name,
            "files": {"model.gguf": f"sha256:{launch.model.digest}"},
            "parameters": parameters_of(launch.candidate),
            "stream": False,
        }
        load = {"model": launch.model.name, "keep_alive": -1, "stream": False}
        return (
            Call("POST", "/api/create", json.dumps(create)),
            Call("POST", "/api/generate", json.dumps(load)),
        )

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Refuse what is no single GGUF file, what Ollama cannot name, and what cannot fit."""
        if model.format != "gguf":
            return Refusal("format.unsupported", f"Ollama reads GGUF, not {model.format}")
        if sum(part.role == "weights" for part in model.parts) > 1:
            return Refusal("format.unsupported", "a GGUF in several files is not imported yet")
        if not NAME.fullmatch(model.name):
            return Refusal("config.invalid_value", f"Ollama cannot call a model {model.name!r}")
        if model.weight_bytes > machine.memory_available_bytes:
            return Refusal(
                "memory.host.insufficient",
                f"the weights are {model.weight_bytes / 2**30:.1f} GiB, "
                f"{machine.memory_available_bytes / 2**30:.1f} GiB is available",
            )
        return None

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse a quantized V cache without flash attention, as its llama-server does."""
        kv_type = candidate.get("kv_type") or "f16"
        if kv_type not in UNQUANTIZED and candidate.get("flash_attention") == "off":
            return Refusal(
                "config.incompatible_flags",
                f"a KV cache of type {kv_type} needs flash attention",
                ("flash-attention-on", "full-kv"),
            )
        return None

    def most_choices(self, candidate: Candidate) -> int:
        """One: it passes `n` over in silence."""
        return 1

    def shared_slots(self, candidate: Candidate) -> int:
        """None: Ollama does not pass its child's slots on."""
        return 0

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return one slot with just the context that the workload needs, all else default."""
        context = -(-workload.context_tokens // CONTEXT_STEP) * CONTEXT_STEP
        if model.context_length:
            context = min(context, model.context_length)
        return Candidate(self.name, build.digest, settings_of({"context": context, "slots": 1}))

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""
        levers = []
        streams = workload.streams
        counts = [n for n in (streams, streams // 2, streams // 4) if n > 1]
        if counts and model.architecture not in ONE_SLOT_ARCHITECTURES:
            levers.append(lever("slots", counts, "several requests share one read of the weights"))
        levers.append(lever("flash_attention", ("off", "on"), "which is faster depends on the CPU"))
        levers.append(lever("kv_type", ("q8_0",), "half the KV cache to read"))
        if workload.shared_prefix_tokens + workload.prompt_tokens > DEFAULT_BATCH:
            levers.append(lever("batch", (1024,), "prefill in larger turns", (256,)))
        if machine.usable_cores > 1:
            counts = [machine.usable_cores, machine.usable_cores - 1]
            levers.append(lever("threads", (), "leave a core to the rest, or use them all", counts))
        return tuple(levers)

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the daemon and the llama-server it starts (`core/estimate_llama.py`).

        Without a GPU, Ollama has the weights read and not mapped: then all of them stay.
        """
        context = _integer(candidate, "context", DEFAULT_CONTEXT)
        slots = _integer(candidate, "slots", 1)
        has_gpu = bool(machine and machine.gpus) and candidate.get("gpu_layers") != 0
        child = estimate_llama(
            model,
            LlamaSettings(
                context=context,
                slots=slots,
                ubatch=min(_integer(candidate, "batch", DEFAULT_BATCH), context * slots),
                kv_type=str(candidate.get("kv_type") or "f16"),
                has_flash=candidate.get("flash_attention") != "off",
                prompt_cache_bytes=PROMPT_CACHE_BYTES,
                isa=machine.isa if machine else ("avx2",),
                has_gpu=has_gpu,
            ),
        )
        daemon = MemoryPart("daemon", DAEMON_BYTES, note="Ollama itself, beside its child")
        parts = child.parts if _maps_weights(candidate, has_gpu) else _read_whole(child.parts)
        return MemoryEstimate((*parts, daemon))


def parameters_of(candidate: Candidate) -> dict[str, Setting]:
    """Return what of a candidate is a parameter of the model (a Modelfile's PARAMETER)."""
    found = {flag: candidate.get(name) for name, flag in PARAMETERS}
    parameters = {flag: value for flag, value in found.items() if value is not None}
    if candidate.get("mmap") is not None:
        parameters["use_mmap"] = candidate.get("mmap") == "on"
    return parameters


def child_argv(
    program: str, model: Model, port: int, candidate: Candidate, has_gpu: bool = False
) -> tuple[str, ...]:
    """Return the command line that Ollama gives its child `llama-server`.

    As `startLlamaServer` in `llm/llama_server.go` builds it at the commit named above, for a text
    model with a template of its own: it is the baseline of a machine whose owner uses Ollama. An
    empty candidate gives Ollama's defaults on a machine without a GPU.
    """
    slots = _integer(candidate, "slots", 1)
    context = slots * _integer(candidate, "context", DEFAULT_CONTEXT)
    argv = [program, "--model", model.path, "--port", str(port), "--host", "127.0.0.1"]
    argv += ["--no-webui", "--offline", "-c", str(context), "-np", str(slots)]
    argv += ["--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps"]
    if not _maps_weights(candidate, has_gpu):
        argv += ["--load-mode", "none"]
    kv_type = candidate.get("kv_type")
    if kv_type is not None:
        argv += ["--cache-type-k", str(kv_type), "--cache-type-v", str(kv_type)]
    argv += ["--flash-attn", str(candidate.get("flash_attention") or "auto")]
    batch = str(_integer(candidate, "batch", DEFAULT_BATCH))
    argv += ["-b", batch, "-ub", batch]
    for name, flag in (("gpu_layers", "-ngl"), ("threads", "-t")):
        if candidate.get(name) is not None:
            argv += [flag, str(candidate.get(name))]
    return (*argv, "--context-shift", "--keep", "4")


def _maps_weights(candidate: Candidate, has_gpu: bool) -> bool:
    mmap = candidate.get("mmap")
    return mmap == "on" or (mmap is None and has_gpu)


def _read_whole(parts: tuple[MemoryPart, ...]) -> tuple[MemoryPart, ...]:
    """Return the parts when the file is read instead of mapped.

    Each tensor is then read straight into its own layout: there is one copy of all weights, and no
    page of the file in the process.
    """
    size = {part.name: part.bytes.expected for part in parts}
    copied = size.get("weights in the CPU's layout", 0.0) + size.get("weights in GPU memory", 0.0)
    left = max(size.get("weights", 0.0) + size.get("file pages", 0.0) - copied, 0.0)
    return tuple(
        replace(part, bytes=exactly(left), note="read, not mapped")
        if part.name == "weights"
        else part
        for part in parts
        if part.name != "file pages"
    )


def _integer(candidate: Candidate, name: str, default: int) -> int:
    value = candidate.get(name)
    return int(value) if value is not None else default


ENGINE = Ollama()
