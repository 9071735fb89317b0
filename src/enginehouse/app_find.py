"""What a search is asked for and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from enginehouse.core.candidate import Build, Candidate, Setting, Settings, settings_of
from enginehouse.core.choice import Choice
from enginehouse.core.choose import Ranked
from enginehouse.core.engine import Engine, Tunable
from enginehouse.core.errors import EngineError, UserError
from enginehouse.core.model import Model
from enginehouse.core.trial import Trial
from enginehouse.core.workload import WORKLOADS, Workload

if TYPE_CHECKING:
    from enginehouse.trials.contracts import Watch


@dataclass(frozen=True)
class FindResult:
    """What a search found: candidates ranked best first, and the choice if one can serve."""

    run_id: str
    model: Model
    workload: str
    ranked: tuple[Ranked, ...]
    minimal: Candidate | None
    choice: Choice | None
    refusals: tuple[str, ...] = ()
    minimals: tuple[Candidate, ...] = ()

    def label(self, trial: Trial) -> str:
        """Name a candidate by its difference from its build's minimal one, with several builds by
        its build too.
        """
        own = [m for m in self.minimals if m.build_digest == trial.candidate.build_digest]
        minimal = own[0] if own else self.minimal
        difference = trial.candidate.describe_difference(minimal) if minimal else ""
        label = difference or "minimal"
        builds = {ranked.trial.build.digest for ranked in self.ranked}
        return f"{trial.build.label}: {label}" if len(builds) > 1 else label

    @property
    def rows(self) -> tuple[tuple[Trial, str], ...]:
        """The leaderboard: each candidate's trial with why it won, lost or failed."""
        return tuple((ranked.trial, ranked.reason) for ranked in self.ranked)

    def require_choice(self) -> Choice:
        """Return the choice.

        Raises:
            EngineError: `engine.none_serves`, with every failure as evidence.
        """
        if self.choice is not None:
            return self.choice
        evidence = [
            f"trial {row.trial.id}: {row.reason} (log {row.trial.log_path})" for row in self.ranked
        ]
        remedies = [
            remedy for row in self.ranked if row.trial.diagnosis for remedy in
            row.trial.diagnosis.remedies
        ]  # fmt: skip
        first = self.ranked[0].trial.id if self.ranked else None
        remedies += [f"enginehouse trials log {first}"] if first else ["enginehouse doctor"]
        raise EngineError(
            "engine.none_serves",
            f"no candidate could serve {self.model.name}",
            evidence=tuple(evidence) + self.refusals,
            remedies=tuple(dict.fromkeys(remedies)),
        )


def merge_tunables(engines: Iterable[Engine]) -> tuple[Tunable, ...]:
    """Return the settings of all engines by name; what one engine takes may be asked for."""
    merged: dict[str, Tunable] = {}
    for tunable in (t for engine in engines for t in engine.tunables):
        known = merged.get(tunable.name, tunable)
        is_free = not (known.values and tunable.values)
        values = () if is_free else tuple(dict.fromkeys((*known.values, *tunable.values)))
        merged[tunable.name] = replace(known, values=values)
    return tuple(merged.values())


def parse_asked(texts: Sequence[str], context: int | None, tunables: Sequence[Tunable]) -> Settings:
    """Return the settings that a user asks for as `name=value` and as a context in tokens.

    Raises:
        UserError: `settings.unknown_tunable` or `settings.bad_tunable`.
    """
    known = {tunable.name: tunable for tunable in tunables}
    asked: dict[str, Setting] = {} if context is None else {"context": context}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise UserError(
                "settings.unknown_tunable",
                f"`{text}` is not a setting of a candidate",
                evidence=tuple(f"{t.name}: {t.summary}" for t in tunables),
                remedies=(
                    *(
                        f"--set {near}={value or 'VALUE'}"
                        for near in get_close_matches(name, known, 1)
                    ),
                    "write --set NAME=VALUE with one of these names",
                ),
            )
        asked[name] = _parse_value(known[name], value)
    return settings_of(asked)


def _parse_value(tunable: Tunable, text: str) -> Setting:
    problem = ""
    if tunable.least is not None:
        if text.isdecimal() and int(text) >= tunable.least:
            return int(text)
        problem = f"a whole number from {tunable.least} on"
    elif tunable.values and text not in tunable.values:
        problem = f"one of {', '.join(tunable.values)}"
    elif not text:
        problem = "a value"
    if problem:
        raise UserError(
            "settings.bad_tunable",
            f"{tunable.name} takes {problem}, not `{text}`",
            evidence=(f"{tunable.name}: {tunable.summary}",),
            remedies=(f"write --set {tunable.name}=VALUE",),
        )
    return text


def unmet(asked: Settings, candidate: Candidate) -> tuple[tuple[str, Setting, Setting | None], ...]:
    """Return which settings that were asked for a candidate has not: name, asked for, held."""
    held = dict(candidate.settings)
    return tuple((n, value, held.get(n)) for n, value in asked if held.get(n) != value)


def require_builds(builds: Sequence[Build]) -> None:
    """Raise EngineError `engine.none_installed` when there is nothing to try."""
    if not builds:
        raise EngineError(
            "engine.none_installed",
            "no engine is installed here",
            evidence=("neither the xllamacpp wheel nor a llama-server on PATH was found",),
            remedies=("pip install xllamacpp", "set engine.llama_cpp.path to a llama-server"),
        )


def check_context(model: Model, workload: Workload, asked: Settings = ()) -> None:
    """Check the context that is asked for against the workload's need and the model's limit.

    Raises:
        UserError: `context.too_long` beyond what the model was made for, `context.too_short` for
            less than one request of the workload takes.
    """
    wanted = int(dict(asked).get("context") or 0)
    if wanted and wanted < workload.context_tokens:
        raise UserError(
            "context.too_short",
            f"{wanted} tokens of context are asked for; one request of the workload "
            f"{workload.name} takes {workload.context_tokens}",
            evidence=(f"{workload.name}: {workload.summary}",),
            remedies=(f"ask for {workload.context_tokens} or more, or for another workload",),
        )
    if model.context_length and wanted > model.context_length:
        raise UserError(
            "context.too_long",
            f"{wanted} tokens of context are asked for; {model.name} was made for "
            f"{model.context_length}",
            evidence=(f"{model.path} declares a context length of {model.context_length}",),
            remedies=(f"ask for at most {model.context_length}",),
        )
    if model.context_length and workload.context_tokens > model.context_length:
        fitting = [
            other.name
            for other in WORKLOADS.values()
            if other.context_tokens <= model.context_length
        ]
        raise UserError(
            "context.too_long",
            f"the workload {workload.name} needs {workload.context_tokens} tokens of context; "
            f"{model.name} was made for {model.context_length}",
            evidence=(f"{model.path} declares a context length of {model.context_length}",),
            remedies=(f"use one of the workloads that fit: {', '.join(fitting) or 'none does'}",),
        )


@dataclass(frozen=True)
class Noted:
    """Keeps what a search said was refused, and passes everything on."""

    watch: Watch
    refusals: list[str]

    def on_step(self, text: str) -> None:
        self.refusals.append(text)
        self.watch.on_step(text)

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        self.watch.on_progress(left_s, best, tok_per_s)

    def on_trial_start(self, label: str, number: int) -> None:
        self.watch.on_trial_start(label, number)

    def on_trial_end(self, trial: Trial, label: str) -> None:
        self.watch.on_trial_end(trial, label)
