"""ik_llama.cpp: the fork of llama.cpp whose CPU kernels are faster, with its own `llama-server`.

Flags as in the source inside ik-llama-cpp-python 0.1.5 (`common/common.cpp`). It is llama.cpp's
descriptor but for what the fork does otherwise: it listens on a port only, reads chat templates
only when told so, has no `--load-mode`, repacks weights at the start when asked, answers one choice
a request, and computes several slots wrongly with flash attention (`refuse_settings`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from enginehouse.core.candidate import Build, Candidate, settings_of
from enginehouse.core.engine import Lever, Quirks, Refusal, Tunable, lever
from enginehouse.core.estimate import MemoryEstimate, MemoryPart, exactly
from enginehouse.core.estimate_llama import estimate_llama
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload
from enginehouse.engines.llama_cpp import (
    TUNABLES,
    LlamaCpp,
    has_shared_prefix,
    memory_settings,
    slot_counts,
)

REPACK = Tunable(
    "repack",
    "lay the weights out for this processor's vector units at the start",
    "--run-time-repack",
    values=("on", "off"),
)

QUIRKS = Quirks({"grammar": 'root ::= "~"'}, tells_length=False)
"""A prompt that is all in the cache, but in other tokens (a token that was answered, then the same
text as prompt), loses its last one before it is computed, and the next token is another's. So what
the exam is answered is a sign that no prompt goes on with; likelihoods are told without regard to
the grammar. And `finish_reason` is "stop" for every answer (`res->stop = true; // to do`)."""
ALWAYS = ("--no-context-shift", "--log-disable")
"""Else the middle is cut out of what is too long, without a word, and `llama.log` is written into
the folder that the server was started in."""
MISPACKED = ("IQ4_NL",)
"""Quantizations whose repacked form gives no numbers; others of this kind were not tried."""
FORK_BELOW = 8000
"""The fork counts its builds on from b3600; one with a higher number is not asked for its flags."""
OF_ONE_SLOT = ({"flash_attention"}, {"kv_type"})
OF_LLAMA_CPP = ({"speculation"}, {"ubatch"}, {"batch"}, {"threads"}, {"huge_pages", "mmap"})
"""Which of llama.cpp's levers hold here too, by what they set."""


def is_fork(version: str, help_of: Callable[[], str]) -> bool:
    """Return whether a `llama-server` of a version, as `b3912 (…)`, is ik_llama.cpp's.

    Both say their name alike; what tells is a flag in the help that only the fork has.
    """
    number = re.match(r"b(\d+)", version)
    return number is not None and int(number[1]) < FORK_BELOW and REPACK.flag in help_of()


@dataclass(frozen=True)
class IkLlamaCpp(LlamaCpp):
    """The fork's server."""

    name: str = "ik_llama.cpp"
    unix_socket: bool = False
    tunables: tuple[Tunable, ...] = (*TUNABLES, REPACK)
    quirks: Quirks = QUIRKS
    no_page: tuple[str, ...] = ("--webui", "none")

    def load_flags(self, build: Build, candidate: Candidate) -> list[str]:
        """Return how weights, templates and long prompts are read; `--jinja` reads any template."""
        wanted = {
            "--no-mmap": candidate.get("mmap") == "off",
            "--mlock": candidate.get("mlock") == "on",
            "--run-time-repack": candidate.get("repack") == "on",
            "--jinja": candidate.get("jinja") != "off",
        }
        return [*(flag for flag, is_wanted in wanted.items() if is_wanted), *ALWAYS]

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Refuse several slots with flash attention: they are computed with one another's mask.

        The server then ends with `GGML_ASSERT(S > 0) failed` in iqk_fa_templates.h, or answers
        wrongly (ik_llama.cpp's issues 1655 and 1910; mended by its pull request 1880, of June 2026,
        which no version of ik-llama-cpp-python has yet). Seen with 0.1.5 at the second request. And
        formats that cannot be repacked: the server ends with the same words at its first.
        """
        if int(candidate.get("slots") or 1) > 1 and candidate.get("flash_attention") != "off":
            return Refusal(
                "config.incompatible_flags",
                "flash attention mixes up the slots of this engine",
                ("flash-attention-off",),
            )
        is_repacked = candidate.get("repack") == "on"
        if is_repacked and candidate.get("quantization") in MISPACKED:
            return Refusal("config.incompatible_flags", "this format, repacked, gives no numbers")
        return super().refuse_settings(candidate)

    def most_choices(self, candidate: Candidate) -> int:
        """One: its server refuses `n`."""
        return 1

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return slots in plain attention, repacking, and llama.cpp's steps that hold here too.

        With several slots attention is plain and so caches are not quantized. Attention on bfloat16
        is llama.cpp's way around a fused one that is slow: this one is fast.
        """
        why = "weights laid out for this processor's vector units"
        kept = OF_LLAMA_CPP if workload.streams > 1 else (*OF_LLAMA_CPP, *OF_ONE_SLOT)
        return (
            *_slots_levers(workload),
            lever("repack", ("on",), why),
            *(
                one
                for one in super().levers(machine, model, workload)
                if any(_sets(one) <= names for names in kept)
            ),
        )

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict as for llama.cpp, whose own copies of repacked weights it does not make.

        Repacked at the start they are read once, and where the embedding table is the output too,
        that is copied besides.
        """
        estimate = estimate_llama(model, replace(memory_settings(candidate, machine), isa=()))
        if candidate.get("repack") != "on" or not model.is_output_tied:
            return estimate
        copy = MemoryPart("repacked output", exactly(model.bytes_of("token embedding")))
        return MemoryEstimate((*estimate.parts, copy))


def _slots_levers(workload: Workload) -> list[Lever]:
    """Slots, with prefix sharing where requests share a prefix."""
    if workload.streams <= 1:
        return []
    shared = {"prefix_sharing": "on"} if has_shared_prefix(workload) else {}
    steps = [
        settings_of({"slots": count, "flash_attention": "off", **shared})
        for count in slot_counts(workload)
    ]
    return [Lever(tuple(steps[:1]), "several requests share one read", tuple(steps[1:]))]


def _sets(one: Lever) -> set[str]:
    return {name for step in (*one.steps, *one.more, *one.spare) for name, _ in step}


ENGINE = IkLlamaCpp()
