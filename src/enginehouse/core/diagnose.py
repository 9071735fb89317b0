"""A failed trial's outcome, log and memory → one diagnosis with its evidence and remedies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.machine import Machine
from enginehouse.core.trial import Diagnosis, Evidence, MemorySample, Outcome, Stage

TAIL_LINES = 8


@dataclass(frozen=True)
class Signature:
    """What a known failure looks like, as `docs/tour.md` tells how to add one.

    Every pattern of `all_of` must match some line, none of `none_of` any line; `signals` empty
    means that the end does not matter. Of several matches the highest `precedence` wins.
    """

    id: str
    engine: str
    stages: tuple[Stage, ...]
    all_of: tuple[str, ...]
    none_of: tuple[str, ...]
    signals: tuple[str, ...]
    cause: str
    title: str
    remedies: tuple[str, ...]
    sources: tuple[str, ...]
    evidence: str
    status: str
    precedence: int = 0


def diagnose(
    *,
    outcome: Outcome,
    exit_code: int | None,
    signal: str | None,
    stage: Stage,
    log: Sequence[str],
    memory: Sequence[MemorySample],
    machine: Machine | None,
    signatures: Sequence[Signature],
    detail: str,
) -> Diagnosis:
    """Return the cause of a failed trial; `cause` is None, with the log's tail, when unknown."""
    if outcome is Outcome.GUARDED:
        return _guarded(memory)
    matching = [(s, _match(s, stage, signal, log)) for s in signatures]
    found = [(s, lines) for s, lines in matching if lines is not None]
    if found:
        signature, lines = max(found, key=lambda match: match[0].precedence)
        return Diagnosis(
            signature.cause,
            signature.title,
            lines,
            signature.remedies,
            signature.sources,
            signature.id,
        )
    if signal == "SIGILL":
        return Diagnosis(
            "cpu.isa_unsupported",
            "the build uses instructions that this CPU does not have",
            _tail(log),
            ("use a build made for this CPU: a native build, or the wheel",),
        )
    if signal == "SIGKILL":
        return Diagnosis(
            "memory.host.oom_killed",
            "killed from outside, likely by the kernel for want of memory",
            _tail(log),
            ("look for `Out of memory: Killed process` in the kernel's log", "use less context"),
        )
    title = detail or f"unknown: the engine ended with {signal or exit_code}"
    return Diagnosis(None, title, _tail(log))


def _guarded(memory: Sequence[MemorySample]) -> Diagnosis:
    last = memory[-1] if memory else None
    facts = (
        f"{last.available_bytes / 2**20:.0f} MiB was available, the engine held "
        f"{(last.pss_bytes or last.rss_bytes) / 2**20:.0f} MiB"
        if last
        else "available memory was under the reserve before the engine held any"
    )
    return Diagnosis(
        "memory.host.insufficient",
        f"ended by the memory guard: {facts}",
        (),
        (
            "end programs that hold memory",
            "use less context or fewer slots",
            "lower trials.memory_reserve if the machine can spare it",
        ),
    )


def _match(
    signature: Signature, stage: Stage, signal: str | None, log: Sequence[str]
) -> tuple[Evidence, ...] | None:
    if stage not in signature.stages or (signature.signals and signal not in signature.signals):
        return None
    evidence = []
    for pattern in signature.all_of:
        compiled = re.compile(pattern)
        hit = next((n for n, line in enumerate(log) if compiled.search(line)), None)
        if hit is None:
            return None
        evidence.append(Evidence(hit + 1, log[hit].strip()[:300]))
    for pattern in signature.none_of:
        compiled = re.compile(pattern)
        if any(compiled.search(line) for line in log):
            return None
    return tuple(evidence)


def _tail(log: Sequence[str]) -> tuple[Evidence, ...]:
    first = max(0, len(log) - TAIL_LINES)
    return tuple(Evidence(first + n + 1, line.strip()[:300]) for n, line in enumerate(log[first:]))
