"""The search against a machine that is a formula, with a simulated clock: no engine is started."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from enginehouse.core.candidate import Build, Candidate, answer_key
from enginehouse.core.choose import choose
from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.contest import ABLATION, EXPLORE, FINAL, MINIMAL, PROOF, is_disturbed
from enginehouse.core.forms import Forms
from enginehouse.core.measurement import Measurement, scaled
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.trial import Diagnosis, Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.llama_cpp import ENGINE
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.search import Hunt
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL, measurement, trial

CROWD = WORKLOADS["crowd"]
TRIAL_S, PROOF_S, LOAD_S = 10.0, 2.0, 8.0


def rate_of(candidate: Candidate) -> float:
    """A machine where slots, Q4_0 and the native build help, and q8_0 KV hurts."""
    rate = 30.0 * {1: 1.0, 4: 1.6, 8: 2.0, 16: 2.1}[int(candidate.get("slots") or 1)]
    rate *= {None: 1.0, "Q4_0": 1.5, "Q8_0": 0.8}[str(candidate.get("quantization") or "") or None]
    rate *= 1.2 if candidate.build_digest == BINARY.digest else 1.0
    rate *= 0.7 if candidate.get("kv_type") == "q8_0" else 1.0
    return rate * (0.6 if candidate.get("threads") else 1.0)


@dataclass
class Formula:
    """A lab whose trials take ten seconds each (see `trials/search.py`)."""

    rate: Callable[[Candidate], float] = rate_of
    noise: float = 0.02
    fails: Callable[[Candidate], bool] = lambda candidate: False
    refuses: Callable[[Candidate], str] = lambda candidate: ""
    available_bytes: int = 12 << 30
    clock_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    judged: list[Candidate] = field(default_factory=list)

    def now(self) -> float:
        return self.clock_s

    def place(self, build: Build) -> Place:
        machine = dataclasses.replace(MACHINE, memory_available_bytes=self.available_bytes)
        variants = {
            name: dataclasses.replace(MODEL, quantization=name) for name in ("Q4_0", "Q8_0")
        }
        source = dataclasses.replace(MODEL, quantization="Q4_1")
        return Place(ENGINE, machine, Forms((source,), variants), CROWD, 512 << 20)

    def minimal(self, build: Build) -> Candidate:
        return ENGINE.minimal(build, MODEL, CROWD)

    def pace_of(self, candidate: Candidate | None) -> None:
        pass

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        return True

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        self.judged.append(candidate)
        return self.refuses(candidate)

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        candidate = proposal.candidate
        outcome = Outcome.EXITED if self.fails(candidate) else Outcome.MEASURED
        if purpose == PROOF and outcome is Outcome.MEASURED:
            self.clock_s += PROOF_S
            proven = trial(candidate, None, Outcome.PROVEN)
            first = self.rate(candidate)
            return dataclasses.replace(
                proven, build=build, purpose=purpose, duration_s=PROOF_S, first_tok_per_s=first
            )
        self.clock_s += TRIAL_S
        figures: Measurement | None = None
        if outcome is Outcome.MEASURED:
            rate = self.rate(candidate) * self.rng.gauss(1, self.noise)
            figures = dataclasses.replace(measurement(rate), duration_s=LOAD_S)
        return dataclasses.replace(
            trial(candidate, None, outcome),
            build=build, purpose=purpose, duration_s=TRIAL_S, measurement=figures,
            first_tok_per_s=self.rate(candidate) if purpose == MINIMAL else 0.0,
            diagnosis=None if figures else Diagnosis(None, "it broke"),
        )  # fmt: skip


BUSY = Conditions(8.0, 2.0, other_cores=0.9, busiest="a compiler")


class BusyAt(Formula):
    """A formula whose given trials are disturbed: they measure a twentieth, and say so."""

    def __init__(self, disturbed: Callable[[int], bool], **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.disturbed, self.number = disturbed, 0

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        tried = await super().run(proposal, build, window_s, purpose)
        self.number += 1
        if tried.measurement is None or not self.disturbed(self.number):
            return tried
        self.clock_s += TRIAL_S
        slowed = scaled(tried.measurement, 0.05)
        return dataclasses.replace(tried, measurement=slowed, conditions=BUSY)


class Talk(SilentWatch):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_step(self, text: str) -> None:
        self.said.append(text)

    def on_trial_start(self, label: str, number: int) -> None:
        self.said.append(label)


async def hunt_with(
    lab: Formula, budget_s: float = 400.0, earlier: tuple[Trial, ...] = (), seed: int = 0
) -> tuple[Hunt, Talk]:
    talk = Talk()
    hunt = Hunt(lab, (WHEEL, BINARY), budget_s, talk, seed, earlier)
    await hunt.run()
    return hunt, talk


def winner_of(hunt: Hunt) -> Candidate:
    return choose(hunt.trials, hunt.base(), hunt.refused)[0].trial.candidate


async def test_every_build_gives_a_token_before_any_is_tuned() -> None:
    """The first trials are the builds' minimal candidates, then the climb begins."""
    hunt, _ = await hunt_with(Formula())
    assert [t.purpose for t in hunt.trials[:3]] == [MINIMAL, PROOF, EXPLORE]
    assert [t.build for t in hunt.trials[:2]] == [WHEEL, BINARY]


async def test_the_ladder_goes_on_with_the_build_that_the_load_favours() -> None:
    """Both give their first answers as fast; under the load one is twice as fast as the other."""

    def rate(candidate: Candidate) -> float:
        is_loaded = (candidate.get("slots") or 1) != 1
        return rate_of(candidate) * (2.0 if candidate.build_digest == WHEEL.digest else 1.0) ** (
            -1 if is_loaded else 0
        )

    hunt, _ = await hunt_with(Formula(rate=rate))
    explored = [t for t in hunt.trials if t.purpose == EXPLORE]
    first = next(t for t in explored if t.build == BINARY)
    assert len([t for t in explored[: explored.index(first)] if t.build == WHEEL]) <= 2
    after = explored[explored.index(first) + 1 :][:4]
    assert {t.build.digest for t in after} == {BINARY.digest}


async def test_the_best_of_the_space_is_found_within_the_budget() -> None:
    """Of some hundred candidates, forty trials' time finds one within 5 % of the best, 9 of 10."""
    best = 30.0 * 2.1 * 1.5 * 1.2
    good = 0
    for seed in range(10):
        lab = Formula(rng=random.Random(seed))
        hunt, _ = await hunt_with(lab, seed=seed)
        good += rate_of(winner_of(hunt)) >= 0.95 * best
        assert lab.clock_s <= 400.0 + TRIAL_S
    assert good >= 9


async def test_what_was_disturbed_is_tried_again_and_does_not_spoil_the_search() -> None:
    """Exploring trials and references during a compilation: finals are held, the best still wins.

    Seen in earnest: one disturbed reference made the finals look too long to be held at all.
    """
    best = 30.0 * 2.1 * 1.5 * 1.2
    for first in (3, 5, 10, 14):
        lab = BusyAt({first, first + 7}.__contains__)
        hunt, _ = await hunt_with(lab)
        assert any(t.purpose == FINAL for t in hunt.trials)
        assert rate_of(winner_of(hunt)) >= 0.95 * best
        explored = [t for t in hunt.trials if t.purpose == EXPLORE]
        calm = {t.candidate.id for t in explored if not is_disturbed(t)}
        assert {t.candidate.id for t in explored} == calm


async def test_on_a_machine_that_is_always_busy_little_is_tried_twice() -> None:
    """The second disturbed trial in a row ends trying again: the budget is for the space."""
    lab = BusyAt(lambda number: True)
    hunt, talk = await hunt_with(lab, 800.0)
    again = [said for said in talk.said if "again: it was disturbed" in said]
    explored = [t for t in hunt.trials if t.purpose == EXPLORE]
    assert len([said for said in again if "finals" not in said]) == 1
    assert len(explored) > 5


async def test_finals_are_held_in_rounds_with_the_base() -> None:
    """The base is measured as often as the best, so that a gain has an interval."""
    hunt, _ = await hunt_with(Formula())
    finals = [t.candidate.id for t in hunt.trials if t.purpose == FINAL]
    assert len(set(map(finals.count, finals))) == 1
    assert hunt.base().id in finals
    ranked = choose(hunt.trials, hunt.base(), hunt.refused)
    assert "95 % interval" in ranked[0].reason


async def test_who_breaks_the_answers_is_refused_and_the_next_best_wins() -> None:
    """However fast Q4_0 is, none of its candidates wins when its answers are bad."""

    def refuses(candidate: Candidate) -> str:
        return "KL 3 over 0.3" if candidate.get("quantization") == "Q4_0" else ""

    hunt, talk = await hunt_with(Formula(refuses=refuses))
    assert winner_of(hunt).get("quantization") != "Q4_0"
    assert any("refused" in text for text in talk.said)
    ranked = choose(hunt.trials, hunt.base(), hunt.refused)
    assert any(r.reason == "refused: KL 3 over 0.3" for r in ranked)


async def test_only_who_might_win_is_judged() -> None:
    """An exam takes time, so it is put only to who is best so far and to finalists."""
    lab = Formula()
    hunt, _ = await hunt_with(lab)
    assert 0 < len({c.id for c in lab.judged}) <= 6
    assert len({t.candidate.id for t in hunt.trials}) > 8


async def test_a_second_search_goes_on_where_the_first_stopped() -> None:
    """What was explored is not explored again, and the machine is looked at anew."""
    lab = Formula()
    first, _ = await hunt_with(lab, 200.0)
    second, _ = await hunt_with(lab, 200.0, tuple(first.trials))
    explored = [{t.candidate.id for t in h.trials if t.purpose == EXPLORE} for h in (first, second)]
    assert explored[0]
    assert not explored[0] & explored[1]
    assert second.trials[0].purpose == MINIMAL
    assert rate_of(winner_of(second)) >= rate_of(winner_of(first))


async def test_what_cannot_fit_is_listed_with_its_reason_and_not_tried() -> None:
    """On a machine without room nothing is started."""
    hunt, talk = await hunt_with(Formula(available_bytes=520 << 20))
    assert not hunt.trials
    assert sum("is not tried" in text for text in talk.said) == 2


async def test_a_build_that_fails_does_not_stop_the_others() -> None:
    """The wheel never serves; the binary is tuned and wins."""
    lab = Formula(fails=lambda candidate: candidate.build_digest == WHEEL.digest)
    hunt, _ = await hunt_with(lab)
    assert winner_of(hunt).build_digest == BINARY.digest


async def test_a_small_space_is_searched_to_its_end() -> None:
    """With time enough every candidate near the best is tried, then the finals come early."""
    lab = Formula()
    hunt, talk = await hunt_with(lab, 20_000.0)
    assert any("every candidate" in text for text in talk.said)
    assert lab.clock_s < 20_000.0
    best = 30.0 * 2.1 * 1.5 * 1.2
    assert rate_of(winner_of(hunt)) >= 0.97 * best


class Slow(Formula):
    """A formula on whose machine each look at the clock takes half a second."""

    def now(self) -> float:
        self.clock_s += 0.5
        return self.clock_s


async def test_time_that_runs_out_is_not_called_an_exhausted_space() -> None:
    """Whether there is time for one more is asked once: the second answer may be another."""
    for half_s in range(600, 640):
        _, talk = await hunt_with(Slow(), half_s / 2)
        assert not [text for text in talk.said if "every candidate" in text]


async def test_what_each_setting_brought_is_measured() -> None:
    """The winner is tried without each of its settings, unless the climb has shown it."""
    hunt, _ = await hunt_with(Formula(noise=0.0), 800.0)
    ranked = choose(hunt.trials, hunt.base(), hunt.refused)
    winner = ranked[0].trial.candidate
    if winner.build_digest == hunt.base().build_digest:
        names = {name for c in ranked[0].contributions for name, _ in c.settings}
        assert {"slots", "quantization"} <= names
    assert all(t.has_measurement for t in hunt.trials if t.purpose == ABLATION)


async def test_what_cannot_be_judged_in_time_does_not_win() -> None:
    """With no time for exams, only what answers like the base may win."""

    class Hurried(Formula):
        def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
            return answer_key(candidate) == answer_key(base)

    talk = Talk()
    hunt = Hunt(Hurried(), (WHEEL, BINARY), 400.0, talk, exams_s=1e9)
    await hunt.run()
    assert answer_key(winner_of(hunt)) == answer_key(hunt.base())
    assert any("no time to judge" in why for why in hunt.refused.values())


async def test_nothing_is_built_on_answers_that_were_refused() -> None:
    """Once Q4_0 is refused the climb goes on from what stood before it."""

    def refuses(candidate: Candidate) -> str:
        return "KL 3 over 0.3" if candidate.get("quantization") == "Q4_0" else ""

    hunt, _ = await hunt_with(Formula(refuses=refuses), 800.0)
    climbed = [t.candidate for t in hunt.trials if t.purpose == EXPLORE]
    first = next(n for n, c in enumerate(climbed) if c.get("quantization") == "Q4_0")
    later = [answer_key(c) for c in climbed[first + 1 :]]
    assert answer_key(climbed[first]) not in later
