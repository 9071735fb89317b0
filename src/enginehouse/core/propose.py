"""The next candidate, given what has been tried: minimal first, then one lever at a time.

When the minimal candidate fails, what its diagnosis names as remedies is tried on it, until one
candidate has produced a token: that one is the base. Each lever's values are then tried on top of
the best candidate so far (coordinate ascent). A failed trial never becomes the base of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from enginehouse.core.candidate import Candidate
from enginehouse.core.engine import Engine, Lever, Refusal, lever
from enginehouse.core.forms import Forms
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.remedies import CONTEXT_STEP, Situation, describe_remedy, remedied
from enginehouse.core.trial import AppliedRemedy, Outcome, Trial
from enginehouse.core.variants import by_predicted_speed
from enginehouse.core.workload import Workload

GAIN_TO_MOVE = 1.02
"""A value becomes the new base only when it is 2 % better: less is noise on a quiet machine."""
NEAR = 0.9
"""A value that is not further behind is tried again once another lever has gained: more slots help
little where prompts take most of the time, and more when the weights compute faster."""
MOST_CURES = 6
"""Trials that remedies may lead to before the search gives the minimal candidate up."""
MOST_LEVER_CURES = 1
"""The same for a lever's value: its neighbours are levers' values themselves."""
MOST_PREDICTED = 24
"""Candidates that are looked at on the way without being tried, since they cannot fit."""
MEMORY_ACTIONS = ("shorter-context", "fewer-sequences", "quantized-kv", "no-prompt-cache")


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, with the reason; or, with a `refusal`, why it is not tried.

    `remedy` is set when it follows from what another candidate failed of.
    """

    candidate: Candidate
    reason: str
    refusal: Refusal | None = None
    remedy: AppliedRemedy | None = None


@dataclass(frozen=True)
class Place:
    """What a proposal rests on besides the trials: who serves what, where, and under which load."""

    engine: Engine
    machine: Machine
    forms: Forms
    workload: Workload
    memory_reserve_bytes: int
    may_drop_page_cache: bool = False

    def situation(self, said: str = "") -> Situation:
        """Return what remedies may look at."""
        return Situation(
            self.engine.tunables,
            self.workload.context_tokens,
            self.forms.model.context_length,
            said,
            self.may_drop_page_cache,
            bool(self.machine.gpus),
        )

    def levers(self) -> tuple[Lever, ...]:
        """Return the steps worth trying, those that decide most first.

        With several streams that is how many are decoded together, then the quantization: the one
        that is predicted fastest, the next one only when that gained nothing or was refused.
        """
        own = self.engine.levers(self.machine, self.forms.of(self.engine), self.workload)
        names = tuple(self.forms.variants) if "gguf" in self.engine.formats else ()
        if not names:
            return own
        why = "fewer bytes to read, or a format that this CPU computes faster"
        source = self.forms.model.quantization
        fast, rest = by_predicted_speed(
            names, source, self.workload.prompt_tokens, self.workload.output_tokens
        )
        weights = lever("quantization", fast[:1], why, (*fast[2:], *rest), fast[1:2])
        first = 1 if self.workload.streams > 1 else 0
        return (*own[:first], weights, *own[first:])

    def refuse(self, candidate: Candidate) -> Refusal | None:
        """Refuse a candidate that cannot fit or whose settings do not go together."""
        model = self.forms.of(self.engine, candidate)
        return refuse_candidate(
            self.engine, candidate, model, self.machine, self.memory_reserve_bytes
        )


def propose(place: Place, minimal: Candidate, trials: Sequence[Trial]) -> Proposal | None:
    """Return the next candidate of this engine's build, None when the ladder is done.

    The minimal candidate comes first, then what its failure's remedies lead to; when none of them
    gave a token nothing is built on it.
    """
    tried = _Tried.of(trials)
    found = _find_way(place, minimal, tried, MOST_CURES)
    if not isinstance(found, Candidate):
        return found
    base = found
    near: list[Lever] = []
    for one in place.levers():
        climbed = _climb(place, base, one, tried)
        if not isinstance(climbed, _Climbed):
            return climbed
        if climbed.best == base:
            near += [replace(one, spare=())] if climbed.is_near else []
            continue
        base = climbed.best
        for again in near:  # what hardly differed before may gain on the new base
            climbed = _climb(place, base, again, tried)
            if not isinstance(climbed, _Climbed):
                return climbed
            base = climbed.best
        near = []
    return None


@dataclass(frozen=True)
class _Climbed:
    """A lever that was climbed: what is best now, and whether a value of it was nearly as good."""

    best: Candidate
    is_near: bool


def _climb(place: Place, base: Candidate, one: Lever, tried: _Tried) -> _Climbed | Proposal:
    """Return what a lever brought on top of the base, or its next value to try."""
    best, is_near = base, False
    for step in (*one.steps, *one.spare):
        if best != base and step in one.spare:
            break
        candidate = base.with_settings(**dict(step))
        if candidate.id not in tried.last:
            if place.refuse(candidate) is None:
                return Proposal(candidate, one.why)
            continue
        way = _find_way(place, candidate, tried, MOST_LEVER_CURES)
        if isinstance(way, Proposal) and way.refusal is None:
            return way
        measured = way if isinstance(way, Candidate) else candidate
        rate = tried.throughput(measured)
        is_near = is_near or (measured != base and rate > NEAR * tried.throughput(base))
        if rate > GAIN_TO_MOVE * tried.throughput(best):
            best = measured
    return _Climbed(best, is_near)


def base_of(trials: Sequence[Trial], minimal: Candidate) -> Candidate:
    """Return what a build's ladder stands on: the first that gave a token, else the minimal."""
    return next((trial.candidate for trial in trials if trial.gave_a_token), minimal)


@dataclass(frozen=True)
class _Tried:
    """What was tried: the last trial of each candidate, and how often each was."""

    last: dict[str, Trial]
    counts: dict[str, int]

    @staticmethod
    def of(trials: Sequence[Trial]) -> _Tried:
        counts: dict[str, int] = {}
        for trial in trials:
            counts[trial.candidate.id] = counts.get(trial.candidate.id, 0) + 1
        return _Tried({trial.candidate.id: trial for trial in trials}, counts)

    def throughput(self, candidate: Candidate) -> float:
        return throughput(self.last[candidate.id])

    def predicted_from(self, candidate: Candidate) -> Candidate | None:
        """Return what was tried in a refused candidate's place, with the context that then fitted.

        Available memory moves all the time: computed anew, the context would always be another one,
        and what was learnt of the last would be lost.
        """
        return next(
            (
                trial.candidate
                for trial in self.last.values()
                if trial.remedy is not None
                and (trial.remedy.trial_id, trial.remedy.action) == (0, "shorter-context")
                and trial.candidate.with_settings(context=None)
                == candidate.with_settings(context=None)
            ),
            None,
        )


@dataclass
class _Step:
    """A candidate on the way from one that failed, with what its own failure leads to."""

    candidate: Candidate
    reason: str
    remedy: AppliedRemedy | None
    ways: Iterator[_Step] | None = field(default=None)


def _find_way(
    place: Place, start: Candidate, tried: _Tried, most_cures: int
) -> Candidate | Proposal | None:
    """Walk from a candidate along the remedies of what failed, the first ones first.

    Return a candidate that was measured; else the next one to try; else the start's refusal, when
    nothing on the way could be tried at all; else None: all that was worth trying failed.
    """
    path = [_Step(start, "the minimal candidate comes first", None)]
    seen = {start.id}
    cures = predicted = 0
    first_refusal: Refusal | None = None
    while path:
        here = path[-1]
        if here.ways is None:
            trial = tried.last.get(here.candidate.id)
            refusal = place.refuse(here.candidate) if trial is None else None
            if trial is None and refusal is None:
                return Proposal(here.candidate, here.reason, remedy=here.remedy)
            if trial is not None and trial.has_measurement:
                return here.candidate
            first_refusal = first_refusal or refusal
            cures += refusal is None and here.remedy is not None
            predicted += refusal is not None
            if cures >= most_cures or predicted >= MOST_PREDICTED:
                break
            here.ways = _ways_from(place, here.candidate, tried, refusal)
        following = next(here.ways, None)
        if following is None:
            path.pop()
        elif following.candidate.id == here.candidate.id:
            if tried.counts.get(here.candidate.id) == 1:
                return Proposal(here.candidate, following.reason, remedy=following.remedy)
        elif following.candidate.id not in seen:
            seen.add(following.candidate.id)
            path.append(following)
    was_tried = start.id in tried.last or cures > 0
    return Proposal(start, "", first_refusal) if first_refusal and not was_tried else None


def _ways_from(
    place: Place, candidate: Candidate, tried: _Tried, refusal: Refusal | None
) -> Iterator[_Step]:
    """Yield what the remedies of a failure, or of a refusal, make of a candidate."""
    trial = tried.last.get(candidate.id)
    if refusal is not None:
        cause: str | None = refusal.cause
        actions, said = refusal.actions, refusal.reason
    elif trial is not None and trial.diagnosis is not None and _is_ours_to_mend(trial):
        cause, actions = trial.diagnosis.cause, trial.diagnosis.actions
        said = "\n".join(evidence.text for evidence in trial.diagnosis.evidence)
    else:
        return
    number = trial.id if trial is not None else 0
    for action, changed in remedied(candidate, actions, place.situation(said)):
        if refusal is not None and action == "shorter-context":
            changed = tried.predicted_from(candidate) or _largest_context(place, candidate, changed)
        says = describe_remedy(action, candidate, changed)
        remedy = AppliedRemedy(number, cause, action, says)
        yield _Step(changed, remedy.describe(), remedy)


def _is_ours_to_mend(trial: Trial) -> bool:
    return trial.outcome is not Outcome.INTERRUPTED


def _largest_context(place: Place, candidate: Candidate, shorter: Candidate) -> Candidate:
    """Return the candidate with the largest context that is predicted to fit, else `shorter`."""
    least = place.workload.context_tokens
    low, high = -(-least // CONTEXT_STEP), int(candidate.get("context") or 0) // CONTEXT_STEP
    best = shorter
    while low <= high:
        middle = (low + high) // 2
        tried = candidate.with_settings(context=middle * CONTEXT_STEP)
        if place.refuse(tried) is None:
            best, low = tried, middle + 1
        else:
            high = middle - 1
    return best


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
            MEMORY_ACTIONS,
        )
    return None


def throughput(trial: Trial) -> float:
    """Return what trials are ranked by, 0 when there is no measurement."""
    return trial.measurement.score_tok_per_s if trial.measurement else 0.0
