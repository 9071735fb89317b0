"""A failed trial's outcome, log and memory → one diagnosis with its evidence and remedies.

What Enginehouse did itself (the guard, a deadline, Ctrl-C) comes first and needs no text. A log is
read only when the engine failed, since an error line may have been recovered from. What nothing
explains stays unknown, with the log's tail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from enginehouse.core.machine import Machine
from enginehouse.core.trial import Diagnosis, Evidence, MemorySample, Outcome, Stage

TAIL_LINES = 8
MOST_CHARACTERS = 300
"""Of an evidence line that are kept."""
MATCHED_CHARACTERS = 4000
"""Of a log line that patterns see, so that a giant line costs no more than a long one."""
BURST_BYTES = 8 << 30
"""More than an engine can take between two memory samples: 0.25 s at 32 GB/s."""
DEADLINE_SETTINGS = {
    Stage.START: "trials.start_deadline",
    Stage.LOAD: "trials.load_deadline",
    Stage.FIRST_TOKEN: "trials.first_token_deadline",
    Stage.MEASURE: "trials.measure_deadline",
}


@dataclass(frozen=True)
class Signature:
    """What a known failure looks like; `docs/tour.md` tells how to add one.

    Every pattern of `all_of` must match some line, none of `none_of` any line. Empty `signals` or
    `exit_codes` do not restrict; only a signature that names SIGKILL explains a killed engine.
    Of several matches the highest `precedence` wins, then the one whose line came first.
    """

    id: str
    engine: str
    stages: tuple[Stage, ...]
    all_of: tuple[str, ...]
    none_of: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    signals: tuple[str, ...]
    exit_codes: tuple[int, ...]
    cause: str
    title: str
    remedies: tuple[str, ...]
    sources: tuple[str, ...]
    evidence: str
    status: str
    checked: date
    precedence: int = 0


@dataclass(frozen=True)
class _Ending:
    """How the engine ended: what a signature's conditions are compared with."""

    outcome: Outcome
    exit_code: int | None
    signal: str | None
    stage: Stage


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
    """Return the cause of a failed trial; `cause` is None, with the log's tail, when unknown.

    Raises:
        ValueError: when the trial did not fail.
    """
    if outcome in (Outcome.MEASURED, Outcome.RUNNING):
        raise ValueError(f"a trial that is {outcome.value} has not failed")
    if outcome is Outcome.GUARDED:
        return _guarded(memory)
    if outcome is Outcome.TIMED_OUT:
        return _timed_out(stage, detail, log)
    if outcome is Outcome.INTERRUPTED:
        return Diagnosis(None, detail or "interrupted", _tail(log))
    if signal == "SIGILL":
        return Diagnosis(
            "cpu.isa_unsupported",
            "the build uses instructions that this CPU does not have (SIGILL)",
            _tail(log),
            ("use a build made for this CPU: a native build, or the wheel",),
        )
    explained = _explain(_Ending(outcome, exit_code, signal, stage), log, signatures)
    if explained is not None:
        return explained
    if signal == "SIGKILL":
        return _killed(memory, machine, log)
    end = f"ended with {signal or f'exit code {exit_code}'}"
    return Diagnosis(None, detail or f"unknown: the engine {end}", _tail(log))


def _guarded(memory: Sequence[MemorySample]) -> Diagnosis:
    last = memory[-1] if memory else None
    facts = (
        f"{_mib(last.available_bytes)} was available, the engine held {_mib(_held(last))}"
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


def _timed_out(stage: Stage, detail: str, log: Sequence[str]) -> Diagnosis:
    title = detail or f"the deadline for {stage.value} passed"
    setting = DEADLINE_SETTINGS.get(stage)
    remedies = (f"raise {setting} if the engine was only slow",) if setting else ()
    if stage is Stage.LOAD:
        return Diagnosis(
            "runtime.load_timeout",
            title,
            _tail(log),
            (*remedies, "keep the model on a local disk, and see that the machine does not swap"),
        )
    return Diagnosis(None, title, _tail(log), remedies)


def _killed(
    memory: Sequence[MemorySample], machine: Machine | None, log: Sequence[str]
) -> Diagnosis:
    """SIGKILL alone never says by whom: the kernel's memory killer is likely, if memory was short.

    A container's limit is not seen in the available memory, so with one nothing is ruled out.
    """
    look = "look for `Out of memory: Killed process` in the kernel's log"
    last = memory[-1] if memory else None
    if last is not None:
        facts = f"{_mib(last.available_bytes)} was available, the engine held {_mib(_held(last))}"
        is_limited = machine is None or machine.memory_limit_bytes is not None
        if last.available_bytes > BURST_BYTES and not is_limited:
            title = f"killed from outside (SIGKILL), though memory was not short: {facts}"
            return Diagnosis(None, title, _tail(log), (look, "find out who ends processes here"))
    else:
        facts = "no memory sample was taken before"
    return Diagnosis(
        "memory.host.oom_killed",
        f"killed from outside, likely by the kernel for want of memory: {facts}",
        _tail(log),
        (look, "use less context or fewer slots", "end programs that hold memory"),
    )


def _explain(
    ending: _Ending, log: Sequence[str], signatures: Sequence[Signature]
) -> Diagnosis | None:
    lines = [line[:MATCHED_CHARACTERS] for line in log]
    matches = [(s, _match(s, ending, lines)) for s in signatures]
    found = [(s, evidence) for s, evidence in matches if evidence is not None]
    if not found:
        return None
    signature, evidence = max(found, key=lambda match: (match[0].precedence, -match[1][0].line))
    return Diagnosis(
        signature.cause,
        signature.title,
        evidence,
        signature.remedies,
        signature.sources,
        signature.id,
    )


def _match(
    signature: Signature, ending: _Ending, lines: Sequence[str]
) -> tuple[Evidence, ...] | None:
    """Return the lines that a signature rests on, the first one in time first; None if it fails."""
    if not _may_explain(signature, ending):
        return None
    evidence = []
    for pattern in signature.all_of:
        compiled = re.compile(pattern)
        hit = next((n for n, line in enumerate(lines) if compiled.search(line)), None)
        if hit is None:
            return None
        evidence.append(_evidence(hit + 1, lines[hit]))
    for pattern in signature.none_of:
        compiled = re.compile(pattern)
        if any(compiled.search(line) for line in lines):
            return None
    return tuple(sorted(evidence, key=lambda entry: entry.line))


def _may_explain(signature: Signature, ending: _Ending) -> bool:
    if ending.signal == "SIGKILL" and "SIGKILL" not in signature.signals:
        return False
    return (
        ending.outcome in signature.outcomes
        and ending.stage in signature.stages
        and (not signature.signals or ending.signal in signature.signals)
        and (not signature.exit_codes or ending.exit_code in signature.exit_codes)
    )


def _tail(log: Sequence[str]) -> tuple[Evidence, ...]:
    written = [(number, line) for number, line in enumerate(log, start=1) if line.strip()]
    return tuple(_evidence(number, line) for number, line in written[-TAIL_LINES:])


def _evidence(number: int, line: str) -> Evidence:
    return Evidence(number, line.strip()[:MOST_CHARACTERS])


def _held(sample: MemorySample) -> int:
    return sample.pss_bytes or sample.rss_bytes


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
