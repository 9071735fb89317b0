"""What a report says, as plain values: the formats in `report/` only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from enginehouse.core.candidate import DIGEST_DIGITS, Candidate, answer_key
from enginehouse.core.choose import Ranked, choose
from enginehouse.core.front import Front, FrontRow, Searched, settled, stand
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.propose import throughput
from enginehouse.core.trial import Evidence, Outcome, Trial
from enginehouse.core.workload import Workload

SCHEMA = 1
"""Raised when a field of the JSON form changes its meaning or goes."""


@dataclass(frozen=True)
class Row:
    """One candidate in the leaderboard; rates in tokens per second, times in seconds, bytes.

    A figure is None where there is none. `build_digest` says exactly which build. `interval` is its
    rate ÷ the winner's, low and high.
    """

    place: int
    trial_id: int
    label: str
    build: str
    status: str
    outcome: str
    why: str
    trials: int
    argv: tuple[str, ...]
    build_digest: str = ""
    tok_per_s: float | None = None
    interval: tuple[float, float] | None = None
    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    itl_p50_s: float | None = None
    itl_p99_s: float | None = None
    memory_bytes: int = 0
    roofline_share: float | None = None
    kl_mean: float | None = None
    top1_agreement: float | None = None

    @property
    def exact_build(self) -> str:
        """The build with the first digits of its digest, as it is shown."""
        return (
            f"{self.build}, {self.build_digest[:DIGEST_DIGITS]}"
            if self.build_digest
            else self.build
        )


@dataclass(frozen=True)
class Failure:
    """A trial that failed: its cause, and the lines of its log that show it."""

    trial_id: int
    label: str
    cause: str
    title: str
    evidence: tuple[Evidence, ...]
    remedies: tuple[str, ...]
    log_path: str


@dataclass(frozen=True)
class Dot:
    """One trial in the search's trace: when it began, what it measured, the best so far."""

    at_s: float
    tok_per_s: float
    best: float
    label: str
    purpose: str


@dataclass(frozen=True)
class Bar:
    """The memory of one candidate: predicted parts in bytes, and the peak that was seen."""

    label: str
    parts: tuple[tuple[str, float], ...]
    observed_bytes: int


@dataclass(frozen=True)
class Brought:
    """What one setting of the winner brought: the winner's rate ÷ the rate without it."""

    setting: str
    ratio: float
    trials: int


@dataclass(frozen=True)
class Report:
    """Everything that is told of one search."""

    schema: int
    made_at: float
    model: str
    model_facts: tuple[tuple[str, str], ...]
    workload: str
    workload_summary: str
    machine: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    brought: tuple[Brought, ...]
    failures: tuple[Failure, ...]
    refusals: tuple[str, ...]
    trace: tuple[Dot, ...]
    memory: tuple[Bar, ...]
    roofline_tok_per_s: float | None
    serve_command: str
    front: tuple[FrontLine, ...] = ()
    front_workloads: tuple[str, ...] = ()
    front_note: str = ""


@dataclass(frozen=True)
class FrontMark:
    """A rate under one workload, its share of the best one's there, and that share's interval."""

    workload: str
    tok_per_s: float
    share: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        share = "the best" if self.share == 1 else f"{self.share:.0%} of the best"
        if self.interval:
            share += f", {self.interval[0]:.2f} to {self.interval[1]:.2f}"
        return f"{self.tok_per_s:.1f} ({share})"


@dataclass(frozen=True)
class FrontLine:
    """A candidate that was compared over several workloads."""

    label: str
    build: str
    marks: tuple[FrontMark, ...]
    is_on_front: bool
    choice_for: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Sources:
    """What a report is made of; `predicted` are memory parts by trial id, `status` by engine.

    `beside` are the trials of the same search under each other workload; `preferred` is the
    workload whose choice is served then.
    """

    trials: tuple[Trial, ...]
    minimals: Mapping[str, Candidate]
    model: Model
    machine: Machine
    workload: Workload
    refusals: tuple[str, ...]
    predicted: Mapping[int, tuple[tuple[str, float], ...]]
    status: Mapping[str, str]
    made_at: float
    beside: tuple[tuple[Trial, ...], ...] = ()
    preferred: str = ""


def build_report(sources: Sources) -> Report:
    """Build the report of one search's trials, oldest first."""
    trials = sources.trials
    base = next((t.candidate for t in trials if t.has_measurement), trials[0].candidate)
    ranked = choose(trials, base, refused_in(trials))
    front = _front(sources)
    if front is not None:
        ranked = settled(ranked, front, sources.workload.name)
    labels = {t.candidate.id: label_of(t, sources) for t in trials}
    rows = tuple(
        _row(place, r, labels[r.trial.candidate.id], sources)
        for place, r in enumerate(ranked, start=1)
    )
    return Report(
        schema=SCHEMA,
        made_at=sources.made_at,
        model=sources.model.name,
        model_facts=_model_facts(sources.model),
        workload=sources.workload.name,
        workload_summary=_summary(sources.workload),
        machine=_machine_facts(sources.machine),
        rows=rows,
        brought=_brought(ranked),
        failures=tuple(
            _failure(r.trial, labels[r.trial.candidate.id])
            for r in ranked
            if r.trial.diagnosis is not None
        ),
        refusals=sources.refusals,
        trace=_trace(trials, labels),
        memory=tuple(
            Bar(row.label, sources.predicted[row.trial_id], row.memory_bytes)
            for row in rows
            if row.tok_per_s and row.trial_id in sources.predicted
        )[:8],
        roofline_tok_per_s=_roofline(sources),
        serve_command=f"enginehouse serve {sources.model.name} --workload {sources.workload.name}",
        front=tuple(_front_line(row, sources) for row in front.rows) if front else (),
        front_workloads=front.workloads if front else (),
        front_note=_front_note(front, sources) if front else "",
    )


def _front(sources: Sources) -> Front | None:
    """Return the front over all workloads of the search, None when there was only one."""
    if not sources.beside:
        return None
    searched = []
    for trials in (sources.trials, *sources.beside):
        own = tuple(t for t in trials if t.outcome is not Outcome.EXAMINED) or trials
        base = next((t.candidate for t in own if t.has_measurement), own[0].candidate)
        searched.append(Searched(own[0].workload, trials, base, refused_in(trials)))
    return stand(searched)


def _front_line(row: FrontRow, sources: Sources) -> FrontLine:
    marks = tuple(
        FrontMark(
            mark.workload, mark.tok_per_s, mark.share,
            (mark.interval.low, mark.interval.high) if mark.interval else None,
        )
        for mark in row.marks
    )  # fmt: skip
    label = label_of(row.trial, sources)
    return FrontLine(
        label, row.trial.build.label, marks, row.is_on_front, row.choice_for, row.reason
    )  # fmt: skip


def _front_note(front: Front, sources: Sources) -> str:
    """Say what `up` serves, and whether noise is known."""
    said = []
    row = front.choice(sources.preferred)
    if row is not None:
        others = [name for name in front.workloads if name != sources.preferred]
        names = " ".join(f"--workload {name}" for name in (sources.preferred, *others))
        said.append(
            f"enginehouse up {sources.model.name} {names} serves the choice for "
            f"{sources.preferred}: {label_of(row.trial, sources)}."
        )
    if front.is_explored_only:
        said.append("No finals were held under all of them, so noise is not known.")
    return " ".join(said)


def refused_in(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the candidates that may not win, with why.

    An exam of the same answers failed, or the search itself refused them, as it does when no time
    was left to judge answers that may differ.
    """
    failed = {
        answer_key(t.candidate): t.quality.why for t in trials if t.quality and not t.quality.passes
    }
    keys = {t.candidate.id: answer_key(t.candidate) for t in trials}
    by_exam = {id: failed[key] for id, key in keys.items() if key in failed}
    return {t.candidate.id: t.refused for t in trials if t.refused} | by_exam


def label_of(trial: Trial, sources: Sources) -> str:
    """Name a candidate by its difference from its build's minimal one."""
    minimal = sources.minimals.get(trial.candidate.build_digest)
    return (trial.candidate.describe_difference(minimal) if minimal else "") or "minimal"


def _row(place: int, ranked: Ranked, label: str, sources: Sources) -> Row:
    trial, figures = ranked.trial, ranked.trial.measurement
    row = Row(
        place=place,
        trial_id=trial.id,
        label=label,
        build=trial.build.label,
        status=sources.status.get(trial.build.engine, ""),
        outcome=trial.outcome.value,
        why=ranked.reason,
        trials=ranked.trials,
        argv=trial.argv,
        build_digest=trial.build.digest,
        memory_bytes=trial.peak_memory_bytes,
    )
    if figures is None or trial.outcome not in (Outcome.MEASURED, Outcome.PRUNED):
        return row
    versus, quality = ranked.versus, ranked.quality
    return replace(
        row,
        tok_per_s=ranked.output_tok_per_s or None,
        interval=(versus.low, versus.high) if versus else None,
        ttft_p50_s=figures.ttft_s.p50,
        ttft_p90_s=figures.ttft_s.p90,
        itl_p50_s=figures.itl_s.p50,
        itl_p99_s=figures.itl_s.p99,
        roofline_share=figures.roofline_share,
        kl_mean=quality.kl_mean if quality else None,
        top1_agreement=quality.top1_agreement if quality else None,
    )


def _brought(ranked: Sequence[Ranked]) -> tuple[Brought, ...]:
    if not ranked:
        return ()
    found = [
        Brought(
            ", ".join(f"{name} {value}" for name, value in c.settings) or "the default",
            c.ratio,
            len(c.trial_ids),
        )
        for c in ranked[0].contributions
    ]
    return tuple(sorted(found, key=lambda b: -b.ratio))


def _failure(trial: Trial, label: str) -> Failure:
    diagnosis = trial.diagnosis
    assert diagnosis is not None
    return Failure(
        trial.id, label, diagnosis.cause or "unknown", diagnosis.title, diagnosis.evidence,
        diagnosis.remedies, trial.log_path,
    )  # fmt: skip


def _trace(trials: Sequence[Trial], labels: Mapping[str, str]) -> tuple[Dot, ...]:
    best, dots = 0.0, []
    began = min((t.started_at for t in trials), default=0.0)
    for trial in trials:
        if not trial.has_measurement:
            continue
        best = max(best, throughput(trial))
        dots.append(
            Dot(
                trial.started_at - began, throughput(trial), best, labels[trial.candidate.id],
                trial.purpose,
            )
        )  # fmt: skip
    return tuple(dots)


def _roofline(sources: Sources) -> float | None:
    """Return the tokens per second that the memory's bandwidth allows one stream, if known."""
    bandwidth, size = sources.machine.memory_bandwidth_bytes_per_s, sources.model.bytes_per_token
    return bandwidth / size if bandwidth and size else None


def _summary(workload: Workload) -> str:
    prefix = f", {workload.shared_prefix_tokens} shared" if workload.shared_prefix_tokens else ""
    return (
        f"{workload.summary}: {workload.streams} streams, {workload.requests} requests, prompts of "
        f"{workload.prompt_tokens} tokens{prefix}, answers of at most {workload.output_tokens}"
    )


def _model_facts(model: Model) -> tuple[tuple[str, str], ...]:
    return (
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters:,}"),
        ("quantization", model.quantization),
        ("file", f"{model.file_bytes / 2**20:,.0f} MiB"),
        ("context length", f"{model.context_length:,}"),
        ("digest", model.digest[:16]),
    )


def _machine_facts(machine: Machine) -> tuple[tuple[str, str], ...]:
    bandwidth = machine.memory_bandwidth_bytes_per_s
    facts = [
        ("processor", machine.cpu_model),
        ("cores", f"{machine.usable_cores} of {machine.physical_cores}"),
        ("memory", f"{machine.memory_total_bytes / 2**30:.1f} GiB"),
        ("GPU", ", ".join(gpu.name for gpu in machine.gpus) or "none"),
    ]
    if bandwidth:
        facts.append(("memory bandwidth", f"{bandwidth / 1e9:.1f} GB/s, measured"))
    if machine.governor:
        facts.append(("governor", machine.governor))
    return tuple(facts)
