"""Ask Optuna where to look next, given everything that was measured.

A study is rebuilt from the trials' records at each start, so that nothing but the records has to be
kept and a search goes on where it stopped. The sampler is the tree-structured Parzen estimator with
joint (multivariate) distributions, one group of parameters for each engine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from enginehouse.core.candidate import Candidate
from enginehouse.core.space import Dimension, Value, candidate_at, point_of

if TYPE_CHECKING:
    import optuna

MOST_ASKS = 40
"""How often the sampler is asked until it names a candidate that is new and allowed."""
NEAR_THE_BEST = 8
GOOD_SHARE = 0.25
"""Optuna's own 0.1 leaves one good trial of ten, too few to tell what they have in common."""


class Sampler:
    """The space of all builds, with what was measured in it."""

    def __init__(
        self,
        bases: Mapping[str, Candidate],
        dimensions: Mapping[str, tuple[Dimension, ...]],
        seed: int,
    ) -> None:
        """Take each build's base by digest, and each engine's dimensions by its name."""
        self._bases = dict(bases)
        self._dimensions = dict(dimensions)
        self._study = _new_study(seed)
        self._seen: set[str] = set()

    def learn(self, candidate: Candidate, rate: float) -> None:
        """Take what a candidate measured in tokens per second, 0 for one that failed."""
        import optuna

        self._seen.add(candidate.id)
        dimensions = self._dimensions.get(candidate.engine, ())
        point = point_of(candidate, dimensions)
        if point is None or candidate.build_digest not in self._bases:
            return
        params = {"build": candidate.build_digest}
        distributions: dict[str, Any] = {"build": self._builds()}
        for dimension in dimensions:
            name = _name(candidate.engine, dimension)
            params[name] = point[dimension.name]  # type: ignore[assignment]
            distributions[name] = optuna.distributions.CategoricalDistribution(dimension.values)
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=rate)
        )

    def ask(self, is_allowed: Callable[[Candidate], bool]) -> Candidate | None:
        """Return a candidate that was not learnt of and is allowed, None when none is found."""
        import optuna

        for _ in range(MOST_ASKS):
            trial = self._study.ask()
            candidate = self._suggest(trial)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if candidate.id not in self._seen:
                self._seen.add(candidate.id)
                if is_allowed(candidate):
                    return candidate
        return next(filter(is_allowed, self._unseen_near_the_best()), None)

    def _unseen_near_the_best(self) -> Iterator[Candidate]:
        """Yield what the sampler no longer names: one change from the best ones, the best first."""
        done = sorted(self._study.trials, key=lambda t: -(t.value or 0.0))
        for trial in done[:NEAR_THE_BEST]:
            if trial.value is None:
                continue
            base = self._bases[trial.params["build"]]
            for dimension in self._dimensions[base.engine]:
                for value in dimension.values:
                    params = {**trial.params, _name(base.engine, dimension): value}
                    candidate = self._candidate(base, params)
                    if candidate.id not in self._seen:
                        self._seen.add(candidate.id)
                        yield candidate

    def _suggest(self, trial: optuna.trial.Trial) -> Candidate:
        digest = trial.suggest_categorical("build", tuple(self._bases))
        base = self._bases[digest]
        for dimension in self._dimensions[base.engine]:
            trial.suggest_categorical(_name(base.engine, dimension), dimension.values)
        return self._candidate(base, trial.params)

    def _candidate(self, base: Candidate, params: Mapping[str, Any]) -> Candidate:
        point: dict[str, Value] = {
            dimension.name: params[_name(base.engine, dimension)]
            for dimension in self._dimensions[base.engine]
        }
        return candidate_at(base, point)

    def _builds(self) -> Any:
        import optuna

        return optuna.distributions.CategoricalDistribution(tuple(self._bases))


def _name(engine: str, dimension: Dimension) -> str:
    return f"{engine}.{dimension.name}"


def _new_study(seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and group are marked experimental
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, n_startup_trials=4, gamma=_good_of
        )
    return optuna.create_study(direction="maximize", sampler=sampler)


def _good_of(trials: int) -> int:
    return max(2, round(GOOD_SHARE * trials))
