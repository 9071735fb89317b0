"""Remedies that act: each is a pure function from a candidate that failed to one worth trying.

A signature names remedies as actions. Three kinds: those that change the candidate (`CHANGES`),
those that try the same candidate once more under other conditions (`RETRIES`), and those that are
not a candidate's to take (`ELSEWHERE`), with who takes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Candidate, Setting
from enginehouse.core.engine import Tunable

ACTIONS: dict[str, str] = {
    "shorter-context": "use less context",
    "longer-context": "use more context for each request",
    "fewer-sequences": "serve fewer requests at once",
    "smaller-batch": "use a smaller batch and micro-batch",
    "quantized-kv": "keep the KV cache in q8_0 or fp8: half the bytes",
    "full-kv": "keep the KV cache in f16",
    "flash-attention-on": "turn flash attention on",
    "flash-attention-off": "turn flash attention off",
    "fewer-gpu-layers": "put fewer layers on the GPU",
    "cpu-only": "run on the CPU",
    "no-mmap": "read the weights instead of mapping them",
    "use-mmap": "map the weights instead of copying them",
    "no-mlock": "do not lock the weights in memory",
    "no-prompt-cache": "turn the host's prompt cache and context checkpoints off",
    "no-speculation": "turn speculation off",
    "default-threads": "let the engine choose its number of threads",
    "lower-gpu-share": "give the engine a smaller share of the GPU's memory",
    "higher-gpu-share": "give the engine a larger share of the GPU's memory",
    "eager-mode": "run without CUDA graphs and without compiling",
    "half-dtype": "use float16 instead of bfloat16",
    "whole-prefill": "do not cut prompts into chunks",
    "single-gpu": "use one GPU (tensor parallel size 1)",
    "drop-option": "leave out the option that this build refuses",
    "drop-environment": "take the variable named out of the environment",
    "trust-remote-code": "let the model's own code run (only if you trust its source)",
    "jinja-on": "turn the template engine on",
    "other-template": "give a chat template that this engine can read",
    "free-port": "listen on a port that is free",
    "longer-deadline": "wait longer for the engine",
    "smaller-quantization": "use a smaller quantization of the model",
    "other-quantization": "use a quantization that this machine can run",
    "fetch-again": "fetch the model again and compare its SHA-256 with the source's",
    "newer-build": "use a newer build of the engine",
    "older-build": "use an older build of the engine",
    "other-build": "use a build that is made for this machine",
    "other-image": "use a container image that is made for this machine",
    "other-engine": "use another engine",
    "drop-page-cache": "empty the page cache before the start (needs your consent)",
}
"""Every action that a signature may name, in words."""

CONTEXT_STEP = 256
LEAST_UBATCH = 32
DEFAULT_UBATCH = 512
SHARE_STEP = 0.1
LEAST_SHARE, MOST_SHARE, DEFAULT_SHARE = 0.3, 0.95, 0.9
UNKNOWN_GPU_LAYERS = 32
"""Where to start from when the engine's own default, all that fit, was too much."""
MOST_PATIENCE = 4


@dataclass(frozen=True)
class Situation:
    """What a remedy may look at besides the candidate that failed.

    `least_context` and `most_context` are tokens: what the workload needs, and what the model was
    made for (0 when unknown). `said` is the failure's decisive text.
    """

    tunables: Sequence[Tunable]
    least_context: int
    most_context: int
    said: str = ""
    may_drop_page_cache: bool = False
    has_gpu: bool = True

    def has(self, name: str) -> bool:
        """Whether this engine's candidates may hold a setting."""
        return any(tunable.name == name for tunable in self.tunables)


Change = Callable[[Candidate, Situation], Candidate | None]
"""Returns the candidate to try instead, None when the remedy does not apply to this one."""


def remedied(
    candidate: Candidate, actions: Sequence[str], situation: Situation
) -> Iterator[tuple[str, Candidate]]:
    """Yield what the actions make of a candidate, in their order: the action, the new candidate.

    An action that retries yields the candidate itself. One that is not the candidate's, or that
    changes nothing here, yields nothing.
    """
    for action in actions:
        if action in RETRIES:
            if action != "drop-page-cache" or situation.may_drop_page_cache:
                yield action, candidate
        elif action in CHANGES:
            changed = CHANGES[action](candidate, situation)
            if changed is not None and changed.id != candidate.id:
                yield action, changed


def describe_remedy(action: str, before: Candidate, after: Candidate) -> str:
    """Say in one line what an action did: `use less context: context 4096`."""
    difference = after.describe_difference(before)
    return f"{ACTIONS[action]}: {difference}" if difference else ACTIONS[action]


def _shorter_context(candidate: Candidate, situation: Situation) -> Candidate | None:
    context = _number(candidate, "context") or situation.most_context
    shorter = max(situation.least_context, context // 2 // CONTEXT_STEP * CONTEXT_STEP)
    return candidate.with_settings(context=shorter) if shorter < context else None


def _longer_context(candidate: Candidate, situation: Situation) -> Candidate | None:
    context = _number(candidate, "context")
    longer = max(2 * context, situation.least_context)
    if situation.most_context:
        longer = min(longer, situation.most_context)
    return candidate.with_settings(context=longer) if 0 < context < longer else None


def _fewer_sequences(candidate: Candidate, _: Situation) -> Candidate | None:
    slots = _number(candidate, "slots")
    return candidate.with_settings(slots=slots // 2) if slots > 1 else None


def _smaller_batch(candidate: Candidate, situation: Situation) -> Candidate | None:
    if not situation.has("ubatch"):
        return None
    ubatch = _number(candidate, "ubatch") or DEFAULT_UBATCH
    smaller = max(LEAST_UBATCH, ubatch // 2)
    return candidate.with_settings(ubatch=smaller, batch=smaller) if smaller < ubatch else None


def _quantized_kv(candidate: Candidate, situation: Situation) -> Candidate | None:
    """A quantized V cache needs flash attention in llama.cpp, so it must not stay off."""
    if not situation.has("kv_type") or str(candidate.get("kv_type") or "f16") != "f16":
        return None
    flash = candidate.get("flash_attention")
    return candidate.with_settings(
        kv_type="q8_0", flash_attention=None if flash == "off" else flash
    )


def _flash_attention_off(candidate: Candidate, situation: Situation) -> Candidate | None:
    if not situation.has("flash_attention"):
        return None
    return candidate.with_settings(flash_attention="off", kv_type=None)


def _fewer_gpu_layers(candidate: Candidate, situation: Situation) -> Candidate | None:
    if not situation.has("gpu_layers") or not situation.has_gpu:
        return None
    layers = candidate.get("gpu_layers")
    fewer = UNKNOWN_GPU_LAYERS if layers is None else int(layers) // 2
    return candidate.with_settings(gpu_layers=fewer)


def _cpu_only(candidate: Candidate, situation: Situation) -> Candidate | None:
    return _set("gpu_layers", 0)(candidate, situation) if situation.has_gpu else None


def _other_share(step: float) -> Change:
    def change(candidate: Candidate, situation: Situation) -> Candidate | None:
        if not situation.has("gpu_memory_utilization"):
            return None
        share = float(candidate.get("gpu_memory_utilization") or DEFAULT_SHARE)
        other = round(min(MOST_SHARE, max(LEAST_SHARE, share + step)), 2)
        return candidate.with_settings(gpu_memory_utilization=other) if other != share else None

    return change


def _drop_option(candidate: Candidate, situation: Situation) -> Candidate | None:
    """Drop the settings whose flag or value the failure names; of other flags, leave them out."""
    flags = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", situation.said))
    own = {tunable.flag: tunable.name for tunable in situation.tunables if tunable.flag}
    held = dict(candidate.settings)
    dropped: dict[str, Setting | None] = {
        own[flag]: None for flag in flags if flag in own and own[flag] in held
    }
    if not dropped:
        words = set(re.findall(r"[\w.+-]+", situation.said))
        dropped = {
            name: None
            for name, value in held.items()
            if isinstance(value, str) and value in words and situation.has(name)
        }
    if dropped:
        return candidate.with_settings(**dropped)
    if flags and situation.has("leave_out"):
        before = str(candidate.get("leave_out") or "").split()
        return candidate.with_settings(leave_out=" ".join(sorted({*before, *flags})))
    return None


def _set(name: str, value: Setting | None) -> Change:
    """Return the change that sets (or, with None, drops) one setting of engines that have it."""

    def change(candidate: Candidate, situation: Situation) -> Candidate | None:
        return candidate.with_settings(**{name: value}) if situation.has(name) else None

    return change


def _no_prompt_cache(candidate: Candidate, situation: Situation) -> Candidate | None:
    return _set("prompt_cache_mib", 0)(candidate, situation)


def _longer_deadline(candidate: Candidate, _: Situation) -> Candidate | None:
    patience = 2 * (_number(candidate, "patience") or 1)
    return candidate.with_settings(patience=patience) if patience <= MOST_PATIENCE else None


def _number(candidate: Candidate, name: str) -> int:
    value = candidate.get(name)
    return int(value) if value is not None else 0


CHANGES: dict[str, Change] = {
    "shorter-context": _shorter_context,
    "longer-context": _longer_context,
    "fewer-sequences": _fewer_sequences,
    "smaller-batch": _smaller_batch,
    "quantized-kv": _quantized_kv,
    "full-kv": _set("kv_type", None),
    "flash-attention-on": _set("flash_attention", "on"),
    "flash-attention-off": _flash_attention_off,
    "fewer-gpu-layers": _fewer_gpu_layers,
    "cpu-only": _cpu_only,
    "no-mmap": _set("mmap", "off"),
    "use-mmap": _set("mmap", None),
    "no-mlock": _set("mlock", None),
    "no-prompt-cache": _no_prompt_cache,
    "no-speculation": _set("speculation", None),
    "default-threads": _set("threads", None),
    "lower-gpu-share": _other_share(-SHARE_STEP),
    "higher-gpu-share": _other_share(SHARE_STEP),
    "eager-mode": _set("enforce_eager", "on"),
    "half-dtype": _set("dtype", "float16"),
    "whole-prefill": _set("chunked_prefill", "off"),
    "single-gpu": _set("tensor_parallel_size", 1),
    "drop-option": _drop_option,
    "jinja-on": _set("jinja", "on"),
    "other-template": _set("chat_template", "chatml"),
    "longer-deadline": _longer_deadline,
}
"""Actions that change the candidate."""

RETRIES = {
    "free-port": "every trial gets an endpoint of its own",
    "drop-page-cache": "with trials.may_drop_page_cache the cache is emptied before it",
}
"""Actions that try the same candidate once more, and what is then different."""

ELSEWHERE = {
    "other-build": "the search goes on with the next build that is installed",
    "newer-build": "the search goes on with the next build that is installed",
    "older-build": "the search goes on with the next build that is installed",
    "other-engine": "the search goes on with the next engine that is installed",
    "other-image": "needs a container run time, which the search does not use yet",
    "smaller-quantization": "needs another file of the model: yours to choose",
    "other-quantization": "needs another file of the model: yours to choose",
    "fetch-again": "`enginehouse models remove` and `add` fetch and check it",
    "trust-remote-code": "runs code of the model's author: only you can allow that",
    "drop-environment": "the variable comes from your shell or service",
}
"""Actions that are not a candidate's to take, and who takes them."""
NEXT_BUILD = ("other-build", "newer-build", "older-build", "other-engine")
