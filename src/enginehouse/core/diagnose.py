"""A failed trial's outcome, log and memory → one diagnosis with its evidence and remedies.

What Enginehouse did itself (the guard, a deadline, Ctrl-C) comes first and needs no text. A log is
read only when the engine failed, since an error line may have been recovered from. What nothing
explains stays unknown, with the part of the log that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from enginehouse.core.diagnose_facts import Facts, facts_of_machine
from enginehouse.core.diagnose_scan import Book, scan
from enginehouse.core.diagnose_signature import Confidence
from enginehouse.core.diagnose_verdict import MOST_CHARACTERS, TAIL_LINES, Verdict, judge
from enginehouse.core.machine import Machine
from enginehouse.core.trial import Diagnosis, Evidence, MemorySample, Outcome, Stage

BURST_BYTES = 8 << 30
"""More than an engine can take between two memory samples: 0.25 s at 32 GB/s."""
DEADLINE_SETTINGS = {
    Stage.START: "trials.start_deadline",
    Stage.LOAD: "trials.load_deadline",
    Stage.FIRST_TOKEN: "trials.first_token_deadline",
    Stage.MEASURE: "trials.measure_deadline",
}


def diagnose(
    *,
    outcome: Outcome,
    exit_code: int | None,
    signal: str | None,
    stage: Stage,
    log: Sequence[str],
    memory: Sequence[MemorySample],
    machine: Machine | None,
    book: Book,
    detail: str,
    kernel_says: str = "",
) -> Diagnosis:
    """Return the cause of a failed trial; `cause` is None, with the log's part, when unknown.

    `kernel_says` is what shows that the kernel's memory killer struck in the engine's cgroup. An
    engine that never started has no log: then what its start was refused with is read.

    Raises:
        ValueError: when the trial did not fail.
    """
    if outcome in (Outcome.MEASURED, Outcome.RUNNING):
        raise ValueError(f"a trial that is {outcome.value} has not failed")
    if outcome is Outcome.GUARDED:
        return _guarded(memory, kernel_says)
    if outcome is Outcome.INTERRUPTED:
        return Diagnosis(None, detail or "interrupted", _tail(log))
    facts = facts_of_machine(machine) if machine is not None else Facts()
    facts = replace(facts, exit_code=exit_code, signal=signal or "", outcome=outcome, stage=stage)
    if stage is Stage.START and not log:
        log = (detail,)
    verdict = judge(book, scan([_bytes(log)], book), facts)
    if outcome is Outcome.TIMED_OUT:
        return _timed_out(stage, detail, log) if verdict.cause is None else as_diagnosis(verdict)
    if signal == "SIGKILL" and kernel_says:
        return _killed_in_cgroup(memory, kernel_says)
    if signal == "SIGKILL" and (verdict.cause is None or not verdict.is_told_by_the_log):
        return _killed(memory, machine, log)
    if signal == "SIGILL" and not (verdict.cause or "").startswith("cpu."):
        return _illegal_instruction(log)
    if verdict.cause is not None:
        return as_diagnosis(verdict)
    end = f"ended with {signal or f'exit code {exit_code}'}"
    return as_diagnosis(replace(verdict, title=detail or f"unknown: the engine {end}"))


def as_diagnosis(verdict: Verdict) -> Diagnosis:
    """Return a verdict as it is kept in a trial's record."""
    return Diagnosis(
        cause=verdict.cause,
        title=verdict.title,
        evidence=verdict.evidence,
        remedies=verdict.remedies,
        sources=verdict.sources,
        signature=verdict.signature,
        confidence=verdict.confidence.value,
        alternatives=tuple(other.cause for other in verdict.alternatives),
        actions=verdict.actions,
    )


def _guarded(memory: Sequence[MemorySample], kernel_says: str = "") -> Diagnosis:
    last = memory[-1] if memory else None
    facts = (
        f"{_mib(last.available_bytes)} was available, the engine held {_mib(_held(last))}"
        if last
        else "available memory was under the reserve before the engine held any"
    )
    return Diagnosis(
        "memory.host.insufficient",
        f"ended by the memory guard: {facts}",
        (Evidence(0, kernel_says),) if kernel_says else (),
        (
            "end programs that hold memory",
            "use less context or fewer slots",
            "lower trials.memory_reserve if the machine can spare it",
        ),
        confidence=Confidence.CERTAIN.value,
        actions=("shorter-context", "fewer-sequences", "quantized-kv", "smaller-quantization"),
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
            confidence=Confidence.LIKELY.value,
            actions=("longer-deadline",),
        )
    return Diagnosis(None, title, _tail(log), remedies)


def _illegal_instruction(log: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "cpu.isa_unsupported",
        "the build uses instructions that this CPU does not have (SIGILL)",
        _tail(log),
        ("use a build made for this CPU: a native build, or the wheel",),
        confidence=Confidence.LIKELY.value,
        actions=("other-build",),
    )


def _killed_in_cgroup(memory: Sequence[MemorySample], kernel_says: str) -> Diagnosis:
    held = f"; the engine held {_mib(_held(memory[-1]))} when last seen" if memory else ""
    return Diagnosis(
        "memory.host.oom_killed",
        f"killed by the kernel for want of memory in its cgroup{held}",
        (Evidence(0, kernel_says),),
        (
            "raise the memory limit of the container or service",
            "use less context or fewer slots, or a smaller quantization",
        ),
        ("https://docs.kernel.org/admin-guide/cgroup-v2.html",),
        confidence=Confidence.CERTAIN.value,
        actions=("shorter-context", "fewer-sequences", "quantized-kv", "smaller-quantization"),
    )


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
            return Diagnosis(
                "system.stopped_from_outside",
                title,
                _tail(log),
                (look, "find out who ends processes here"),
                confidence=Confidence.LOW.value,
                alternatives=("memory.host.oom_killed",),
            )
    else:
        facts = "no memory sample was taken before"
    return Diagnosis(
        "memory.host.oom_killed",
        f"killed from outside, likely by the kernel for want of memory: {facts}",
        _tail(log),
        (look, "use less context or fewer slots", "end programs that hold memory"),
        confidence=Confidence.LOW.value,
        alternatives=("system.stopped_from_outside",),
        actions=("shorter-context", "fewer-sequences", "smaller-quantization"),
    )


def _bytes(log: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in log).encode("utf-8", "replace")


def _tail(log: Sequence[str]) -> tuple[Evidence, ...]:
    written = [(number, line) for number, line in enumerate(log, start=1) if line.strip()]
    return tuple(
        Evidence(number, line.strip()[:MOST_CHARACTERS]) for number, line in written[-TAIL_LINES:]
    )


def _held(sample: MemorySample) -> int:
    return sample.pss_bytes or sample.rss_bytes


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
