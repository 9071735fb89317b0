"""A search between its preparation and its conclusion: what is ranked, what is chosen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from enginehouse.app_find import FindResult, Noted
from enginehouse.core.candidate import Build
from enginehouse.core.choice import Choice
from enginehouse.core.choose import Ranked, choose
from enginehouse.core.engine import UNPROVEN
from enginehouse.core.front import Front, Searched, settled, stand
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.trial import Outcome, Trial
from enginehouse.edges.records import Records
from enginehouse.engines import load_engines

if TYPE_CHECKING:
    from enginehouse.trials.bench import Bench
    from enginehouse.trials.contracts import Watch
    from enginehouse.trials.lab import BenchLab
    from enginehouse.trials.search import Hunt

NEVER_FROM = (Outcome.RUNNING, Outcome.INTERRUPTED, Outcome.EXAMINED, Outcome.PROVEN)
"""Outcomes that a later search learns nothing from."""


@dataclass(frozen=True)
class Search:
    """What one search is made of; `hunt.run()` carries it out."""

    bench: Bench
    lab: BenchLab
    hunt: Hunt
    machine: Machine
    noted: Noted

    def trials(self) -> tuple[Trial, ...]:
        """Return this search's trials, and the exams that were put."""
        exams = (
            replace(exam, outcome=Outcome.EXAMINED, measurement=None)  # a load counts once
            for exam in self.lab.exams.values()
        )
        return (*self.hunt.trials, *exams)


@dataclass(frozen=True)
class FrontResult:
    """What a search under several workloads found: each one's result, and the common front."""

    results: tuple[FindResult, ...]
    front: Front | None
    prefer: str

    @property
    def model(self) -> Model:
        """The model that was searched for."""
        return self.results[0].model

    @property
    def preferred(self) -> FindResult:
        """The result of the workload whose choice is served."""
        return next(result for result in self.results if result.workload == self.prefer)

    def require_choice(self) -> Choice:
        """Return the choice that is served.

        Raises:
            EngineError: `engine.none_serves`.
        """
        return self.preferred.require_choice()


def usable(
    trials: Sequence[Trial], bench: Bench, builds: Sequence[Build], machine: Machine
) -> tuple[Trial, ...]:
    """Return which earlier trials a search goes on from: of these builds, forms, this machine."""
    here = {build.digest for build in builds}
    return tuple(
        trial
        for trial in trials
        if trial.candidate.build_digest in here
        and bench.forms.has(trial.candidate)
        and trial.outcome not in NEVER_FROM
        and trial.machine_before is not None
        and trial.machine_before.fingerprint() == machine.fingerprint()
    )


def say_unproven(builds: Sequence[Build], watch: Watch) -> None:
    """Say of which engines no trial on hardware has been seen."""
    for name in sorted({build.engine for build in builds}):
        if load_engines()[name].status == UNPROVEN:
            watch.on_step(
                f"{name} is unproven: written from its documentation, not yet seen on hardware"
            )


def conclude(search: Search, records: Records) -> FindResult:
    """Rank what was measured and store the choice."""
    hunt = search.hunt
    ranked = choose(search.trials(), hunt.base(), hunt.refused) if hunt.trials else ()
    return _result_of(search, ranked, records, ())


def conclude_front(searches: Sequence[Search], records: Records, prefer: str) -> FrontResult:
    """Rank what was measured under each workload, draw the front, and store the choices."""
    names = [search.bench.workload.name for search in searches]
    if not all(search.hunt.trials for search in searches):  # it was interrupted, or none is tried
        alone = tuple(conclude(search, records) for search in searches)
        return FrontResult(alone, None, prefer)
    searched = [
        Searched(name, search.trials(), search.hunt.base(), search.hunt.refused)
        for name, search in zip(names, searches, strict=True)
    ]
    front = stand(searched)
    beside = (prefer, *(name for name in names if name != prefer))
    results = {}
    # the preferred one's choice is the newest, which is what `serve` without a model takes
    for one, search in sorted(
        zip(searched, searches, strict=True), key=lambda pair: pair[0].workload == prefer
    ):
        ranked = settled(choose(one.trials, one.base, one.refused), front, one.workload)
        results[one.workload] = _result_of(search, ranked, records, beside)
    return FrontResult(tuple(results[name] for name in names), front, prefer)


def _result_of(
    search: Search, ranked: tuple[Ranked, ...], records: Records, beside: tuple[str, ...]
) -> FindResult:
    bench, refusals = search.bench, tuple(search.noted.refusals)
    qualities = {exam.id: exam.quality for exam in search.lab.exams.values()}
    for trial in search.hunt.trials:
        why = search.hunt.refused.get(trial.candidate.id, "")
        if why and trial.has_measurement:
            quality = qualities.get(trial.id, trial.quality)
            records.update_trial(replace(trial, refused=why, quality=quality))
    if not ranked:
        name = bench.workload.name
        return FindResult(bench.run_id, bench.model, name, (), None, None, refusals)
    minimals = tuple(bench.minimal(build) for build in search.hunt.builds)
    choice = _choice_of(ranked[0], search, beside)
    if choice is not None:
        records.store_choice(choice)
    return FindResult(
        bench.run_id, bench.model, bench.workload.name, ranked,
        bench.minimal(search.hunt.trials[0].build), choice, refusals, minimals,
    )  # fmt: skip


def _choice_of(best: Ranked, search: Search, beside: tuple[str, ...]) -> Choice | None:
    bench, machine = search.bench, search.machine
    if best.trial.measurement is None:
        return None
    form = bench.forms.of(bench.engine_of(best.trial.build), best.trial.candidate)
    return Choice(
        model_digest=bench.model.digest,
        model_name=bench.model.name,
        workload=bench.workload.name,
        machine_fingerprint=machine.fingerprint(),
        machine_facts=machine.fingerprint_facts(),
        build=best.trial.build,
        candidate=best.trial.candidate,
        trial_id=best.trial.id,
        measurement=best.trial.measurement,
        chosen_at=time.time(),
        asked=bench.asked,
        form=form if form != bench.model else None,
        refusals=tuple(search.noted.refusals),
        beside=beside,
    )
