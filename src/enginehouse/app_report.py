"""Gather what a report is made of from the records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from enginehouse.core.choice import Choice
from enginehouse.core.engine import Engine
from enginehouse.core.errors import UserError
from enginehouse.core.forms import Forms
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.report import Sources
from enginehouse.core.trial import Outcome, Trial
from enginehouse.core.workload import together


def newest_run(
    trials: Sequence[Trial], model: str | None, workload: str | None, run_id: str | None
) -> tuple[Trial, ...]:
    """Return the trials of the newest run that fits, oldest first; `trials` are newest first.

    Raises:
        UserError: `report.nothing`.
    """
    for trial in trials:
        if (
            model in (None, trial.model_name)
            and workload in (None, trial.workload)
            and run_id in (None, trial.run_id)
        ):
            return tuple(t for t in reversed(trials) if t.run_id == trial.run_id)
    known = sorted({f"{t.model_name} under {t.workload}" for t in trials})
    raise UserError(
        "report.nothing",
        "no search of that kind is recorded",
        evidence=tuple(known) or ("there are no trials at all",),
        remedies=(f"enginehouse find {model or 'demo'}", "enginehouse trials list"),
    )


def sources_of(
    trials: tuple[Trial, ...], choice: Choice | None, model: Model | None,
    engines: Mapping[str, Engine], machine: Machine, asked_for: str | None = None,
    variants: Mapping[str, Model] | None = None,
) -> Sources:  # fmt: skip
    """Return a report's sources; a model that is no longer registered is known by its name only.

    Of several workloads it tells of the one that is asked for, else of the first. Memory is
    predicted of what a candidate loaded: its quantization's file in `variants`, where it is kept.
    """
    first = trials[0]
    names = tuple(dict.fromkeys(t.workload for t in trials))
    wanted = asked_for if asked_for in names else names[0]
    workload = next(one for one in together(names) if one.name == wanted)
    by_name = {name: of_workload(trials, name) for name in names}
    trials = by_name.pop(wanted)
    model = model or _unknown(first)
    minimals = {}
    for trial in trials:
        engine = engines[trial.build.engine]
        minimals[trial.build.digest] = engine.minimal(trial.build, model, workload)
    here = first.machine_before or machine
    predicted = {}
    forms = Forms((model,), variants or {})
    for trial in trials:
        if trial.has_measurement and forms.has(trial.candidate):
            engine = engines[trial.build.engine]
            form = forms.of(engine, trial.candidate)
            estimate = engine.estimate_memory(form, trial.candidate, here)
            parts = tuple((part.name, part.bytes.expected) for part in estimate.parts)
            predicted[trial.id] = parts
    refusals = choice.refusals if choice and choice.trial_id in {t.id for t in trials} else ()
    status = {name: engine.status for name, engine in engines.items()}
    return Sources(
        trials, minimals, model, here, workload, refusals, predicted, status, time.time(),
        tuple(by_name.values()), choice.beside[0] if choice and choice.beside else names[0],
    )  # fmt: skip


def of_workload(trials: Sequence[Trial], name: str) -> tuple[Trial, ...]:
    """Return the trials of one workload, with all exams: answers do not depend on the workload."""
    return tuple(t for t in trials if t.workload == name or t.outcome is Outcome.EXAMINED)


def _unknown(trial: Trial) -> Model:
    return Model(
        name=trial.model_name, path="", source="", format="gguf", digest=trial.model_digest,
        file_bytes=0, architecture="", quantization="", parameters=0, weight_bytes=0,
        bytes_per_token=0, context_length=0, layers=0, embedding_length=0, vocabulary_size=0,
        k_elements_per_token=0, v_elements_per_token=0,
    )  # fmt: skip
