"""The next candidate, given what has been tried: minimal first, then one lever at a time.

Each lever's values are tried on top of the best candidate so far (coordinate ascent). A failed
trial never becomes the base of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Candidate
from enginehouse.core.engine import Engine, Refusal
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.trial import Trial
from enginehouse.core.workload import Workload

GAIN_TO_MOVE = 1.02
"""A value becomes the new base only when it is 2 % better: less is noise on a quiet machine."""


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, with the reason; or, when `candidate` is None, why it is not tried."""

    candidate: Candidate
    reason: str
    refusal: Refusal | None = None


def propose(
    engine: Engine,
    minimal: Candidate,
    machine: Machine,
    model: Model,
    workload: Workload,
    trials: Sequence[Trial],
    memory_reserve_bytes: int,
) -> Proposal | None:
    """Return the next candidate of this engine's build, None when the ladder is done.

    The minimal candidate comes first; when it gave no token nothing is built on it.
    """
    tried = {trial.candidate.id: trial for trial in trials}
    if minimal.id not in tried:
        refusal = refuse_candidate(engine, minimal, model, machine, memory_reserve_bytes)
        return Proposal(minimal, "the minimal candidate comes first", refusal)
    if not tried[minimal.id].has_measurement:
        return None
    base = minimal
    for lever in engine.levers(machine, model, workload):
        best = base
        for step in lever.steps:
            candidate = base.with_settings(**dict(step))
            if candidate.id not in tried:
                refusal = refuse_candidate(engine, candidate, model, machine, memory_reserve_bytes)
                if refusal is not None:
                    continue
                return Proposal(candidate, lever.why)
            if throughput(tried[candidate.id]) > GAIN_TO_MOVE * throughput(tried[best.id]):
                best = candidate
        base = best
    return None


def refuse_candidate(
    engine: Engine, candidate: Candidate, model: Model, machine: Machine, reserve_bytes: int
) -> Refusal | None:
    """Refuse a candidate that cannot fit: its expected bytes against what is available."""
    refusal = engine.refuse(model, machine) or engine.refuse_settings(candidate)
    if refusal is not None:
        return refusal
    expected = engine.estimate_memory(model, candidate, machine).total.expected
    room = machine.memory_available_bytes - reserve_bytes
    if expected > room:
        return Refusal(
            "memory.host.insufficient",
            f"it needs about {expected / 2**30:.2f} GiB; {max(0, room) / 2**30:.2f} GiB is "
            f"available beside the reserve",
        )
    return None


def throughput(trial: Trial) -> float:
    """Return what trials are ranked by, 0 when there is no measurement."""
    return trial.measurement.output_tok_per_s if trial.measurement else 0.0
