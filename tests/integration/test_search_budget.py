"""Whether a search finds the best combination in 200 s, on a simulated slow machine.

The landscape has the shape of what was measured by hand (docs/lab-log.md): prefill and decode by
quantization, a step of a batch that grows with its slots, a shared prefix that each slot computes
unless it is copied, plain attention that decodes faster behind a long context. Loads take the
time that such a machine needs for them; the clock is simulated, and no engine is started.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from enginehouse.core.builds import space_of
from enginehouse.core.candidate import Build, Candidate, Settings, answer_key
from enginehouse.core.choose import choose
from enginehouse.core.contest import FINAL, MINIMAL, PROOF, WHOLE
from enginehouse.core.forms import Forms
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.space import candidate_at
from enginehouse.core.trial import Outcome, Trial
from enginehouse.core.workload import WORKLOADS, Workload
from enginehouse.engines.llama_cpp import ENGINE
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.search import Hunt
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL, measurement, trial

BUDGET_S = 200.0
SLOW, NORMAL = 0.45, 1.0
"""A slow day's share of the rates in the lab log, and a good day's."""
PREFILL = {"Q4_1": 285.0, "Q4_0": 597.0, "Q8_0": 504.0}
DECODE = {"Q4_1": 156.0, "Q4_0": 195.0, "Q8_0": 126.0}
BATCH_STEP = 0.72
"""What one more sequence adds to a step of a batch, as a share of a step of one."""
TEMPLATE_TOKENS = 30
START_S, TOKEN_S, EXAM_S = 2.0, 1.0, 9.0
SEEDS = range(8)


@dataclass(frozen=True)
class Speed:
    """A candidate's true rates here."""

    prefill: float
    decode: float
    slots: int
    shares: bool

    @staticmethod
    def of(candidate: Candidate, workload: Workload, drafting: float, day: float) -> Speed:
        """Return the rates that a candidate's settings give under a workload."""
        form = str(candidate.get("quantization") or "Q4_1")
        prefill, decode = day * PREFILL[form], day * DECODE[form]
        if candidate.build_digest == WHEEL.digest:
            prefill, decode = 0.85 * prefill, 0.85 * decode
        if candidate.get("flash_attention") == "off":
            is_long = workload.context_tokens > 700
            prefill *= 0.85 if is_long else 0.97
            decode *= 1.4 if is_long else 1.08
        decode *= drafting if candidate.get("speculation") == "ngram-mod" else 1.0
        decode *= 0.7 if candidate.get("kv_type") == "q8_0" else 1.0
        if candidate.get("threads"):
            prefill, decode = 0.6 * prefill, 0.6 * decode
        slots = int(candidate.get("slots") or 1)
        return Speed(prefill, decode, slots, candidate.get("prefix_sharing") == "on")

    def load(self, workload: Workload, window_s: float, answers: int) -> tuple[float, float]:
        """Return how long a load takes until the window and the answers are over, and its rate."""
        at_once = min(self.slots, workload.streams)
        prompt = workload.prompt_tokens + TEMPLATE_TOKENS
        step_s = (1 + BATCH_STEP * (at_once - 1)) / self.decode
        wave_s = at_once * prompt / self.prefill + workload.output_tokens * step_s
        copies = 1 if self.shares else at_once
        elapsed_s = copies * workload.shared_prefix_tokens / self.prefill
        done = 0
        while done < workload.requests and (done < answers or elapsed_s < window_s):
            elapsed_s += wave_s
            done += at_once
        return elapsed_s, done * workload.output_tokens / elapsed_s


@dataclass
class Machine:
    """A lab on the simulated machine (see `trials/search.py`)."""

    workload: Workload
    noise: float = 0.03
    drafting: float = 1.3
    day: float = SLOW
    bad: frozenset[str] = frozenset()
    clock_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    pace: Candidate | None = None
    verdicts: set[Settings] = field(default_factory=set)
    examined: int = 0

    def now(self) -> float:
        return self.clock_s

    def place(self, build: Build) -> Place:
        return Place(ENGINE, MACHINE, self.forms(), self.workload, 512 << 20)

    def forms(self) -> Forms:
        source = dataclasses.replace(MODEL, quantization="Q4_1")
        names = ("Q8_0", "Q4_0")
        return Forms((source,), {n: dataclasses.replace(MODEL, quantization=n) for n in names})

    def minimal(self, build: Build) -> Candidate:
        return ENGINE.minimal(build, MODEL, self.workload)

    def pace_of(self, candidate: Candidate | None) -> None:
        self.pace = candidate

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        return answer_key(candidate) in (answer_key(base), *self.verdicts)

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        if not self.is_judged(candidate, base):
            self.clock_s += EXAM_S * (1 if self.examined else 2)
            self.examined += 1
            self.verdicts.add(answer_key(candidate))
        return "KL 3 over 0.2" if candidate.get("quantization") in self.bad else ""

    def rate(self, candidate: Candidate) -> float:
        """Return a candidate's true rate under the whole workload."""
        return self.speed(candidate).load(self.workload, math.inf, 0)[1]

    def speed(self, candidate: Candidate) -> Speed:
        return Speed.of(candidate, self.workload, self.drafting, self.day)

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        candidate = proposal.candidate
        speed = self.speed(candidate)
        first = speed.decode * self.noisy()
        tried = dataclasses.replace(
            trial(candidate, None, Outcome.PROVEN), build=build, purpose=purpose,
            first_tok_per_s=first if purpose in (MINIMAL, PROOF) else 0.0,
        )  # fmt: skip
        if purpose == PROOF:
            self.clock_s += START_S + TOKEN_S
            return dataclasses.replace(tried, duration_s=START_S + TOKEN_S)
        load, answers = self.workload, self.workload.least_answers
        if purpose not in WHOLE:
            load = load.shortened()
            answers = load.answers_to_explore(speed.slots)
        warm_up_s = min(load.streams, 4) * (158 / speed.prefill + 16 / speed.decode)
        load_s, rate = speed.load(load, window_s, answers)
        outcome = Outcome.MEASURED
        if self.pace is not None:
            best = self.speed(self.pace).load(load, window_s, answers)[1]
            if rate < 0.7 * best:  # half of its load shows it
                load_s, outcome = load_s / 2, Outcome.PRUNED
        duration_s = START_S + warm_up_s + load_s
        self.clock_s += duration_s
        figures = dataclasses.replace(
            measurement(rate * self.noisy()), duration_s=load_s, output_tokens=round(rate * load_s)
        )
        return dataclasses.replace(
            tried, outcome=outcome, measurement=figures, duration_s=duration_s
        )

    def noisy(self) -> float:
        return math.exp(self.rng.gauss(0.0, self.noise))

    def best_of_all(self, builds: Iterable[Build]) -> float:
        """Return the best true rate of the whole space whose answers are good."""
        builds = tuple(builds)
        bases = {build.digest: self.minimal(build) for build in builds}
        places = {build.digest: self.place(build) for build in builds}
        points: list[dict[str, object]] = [{}]
        for dimension in space_of(builds, bases, places)["llama.cpp"]:
            points = [{**p, dimension.name: value} for p in points for value in dimension.values]
        found = [candidate_at(base, point) for base in bases.values() for point in points]  # type: ignore[arg-type]
        good = [c for c in found if c.get("quantization") not in self.bad]
        return max(self.rate(c) for c in good if ENGINE.refuse_settings(c) is None)


class Talk(SilentWatch):
    """Keeps what is said of the progress."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, str, float]] = []

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        self.progress.append((left_s, best, tok_per_s))


async def search(lab: Machine, budget_s: float = BUDGET_S, seed: int = 0) -> tuple[Hunt, Talk]:
    talk = Talk()
    hunt = Hunt(lab, (WHEEL, BINARY), budget_s, talk, seed)
    await hunt.run()
    return hunt, talk


def winner_of(hunt: Hunt) -> Candidate:
    return choose(hunt.trials, hunt.base(), hunt.refused)[0].trial.candidate


def rounds_of(hunt: Hunt) -> int:
    """Return how many whole rounds of finals there were."""
    counts = Counter(t.candidate.id for t in hunt.trials if t.purpose == FINAL)
    return min(counts.values(), default=0)


@pytest.mark.parametrize("name", ["chat", "crowd", "assistant"])
async def test_the_best_combination_is_found_within_200_seconds(name: str) -> None:
    """In seven of eight searches what wins is within 6 % of the best of the whole space."""
    good = 0
    for seed in SEEDS:
        lab = Machine(WORKLOADS[name], rng=random.Random(seed))
        hunt, _ = await search(lab, seed=seed)
        good += lab.rate(winner_of(hunt)) >= 0.94 * lab.best_of_all((WHEEL, BINARY))
        assert lab.clock_s <= 1.1 * BUDGET_S
    assert good >= 7


@pytest.mark.parametrize(
    ("name", "day", "budget_s"),
    [
        ("chat", SLOW, 200.0),
        ("crowd", NORMAL, 200.0),
        ("assistant", NORMAL, 200.0),
        ("crowd", SLOW, 420.0),
        ("assistant", SLOW, 300.0),
    ],
)
async def test_three_rounds_of_finals_are_held_with_the_minimal_candidate(
    name: str, day: float, budget_s: float
) -> None:
    """Time is kept for an interval from three rounds, the minimal candidate in each."""
    for seed in SEEDS:
        lab = Machine(WORKLOADS[name], day=day, rng=random.Random(seed))
        hunt, _ = await search(lab, budget_s, seed)
        assert rounds_of(hunt) >= 3, (name, seed)
        entered = {t.candidate.id for t in hunt.trials if t.purpose == FINAL}
        assert hunt.base().id in entered
        assert lab.clock_s <= 1.05 * budget_s


async def test_where_three_rounds_cannot_fit_as_many_as_can_are_held() -> None:
    """On a slow day one whole load of the minimal candidate takes a minute: one round is held."""
    hunt, _ = await search(Machine(WORKLOADS["crowd"]))
    assert rounds_of(hunt) == 1


async def test_a_second_build_of_an_engine_needs_only_a_token() -> None:
    """Its proof takes seconds, and the faster build of the two is the one that is tuned."""
    hunt, _ = await search(Machine(WORKLOADS["crowd"]))
    assert [t.purpose for t in hunt.trials[:2]] == [MINIMAL, PROOF]
    assert hunt.trials[1].duration_s < 0.3 * hunt.trials[0].duration_s
    assert hunt.trials[2].build == BINARY


async def test_whose_answers_break_is_not_built_on_and_the_next_best_is_found() -> None:
    """With Q4_0 refused, the search still ends near the best of what is left."""
    good = 0
    for seed in SEEDS:
        lab = Machine(WORKLOADS["crowd"], bad=frozenset({"Q4_0"}), rng=random.Random(seed))
        hunt, _ = await search(lab, seed=seed)
        assert winner_of(hunt).get("quantization") != "Q4_0"
        good += lab.rate(winner_of(hunt)) >= 0.94 * lab.best_of_all((WHEEL, BINARY))
    assert good >= 7


async def test_drafting_that_does_not_pay_is_not_chosen() -> None:
    """Where drafting costs a fifth, as on natural text, it is tried and left."""
    lab = Machine(WORKLOADS["chat"], drafting=0.8)
    hunt, _ = await search(lab)
    tried = {t.candidate.get("speculation") for t in hunt.trials}
    assert "ngram-mod" in tried
    assert winner_of(hunt).get("speculation") is None


async def test_shorter_loads_rank_candidates_as_whole_loads_do() -> None:
    """What exploring would choose among the ladder's steps is what the whole load would choose."""
    lab = Machine(WORKLOADS["crowd"])
    base = lab.minimal(WHEEL)
    ladder = [base.with_settings(slots=n, quantization=q) for n in (1, 4, 16) for q in PREFILL]
    short = lab.workload.shortened()

    def explored(candidate: Candidate) -> float:
        speed = lab.speed(candidate)
        return speed.load(short, 6.0, short.answers_to_explore(speed.slots))[1]

    assert max(ladder, key=explored) == max(ladder, key=lab.rate)


async def test_the_time_left_and_the_best_so_far_are_told_before_each_trial() -> None:
    """The time falls, and from the second trial on there is a best one."""
    hunt, talk = await search(Machine(WORKLOADS["chat"]))
    left = [left_s for left_s, _, _ in talk.progress]
    assert left == sorted(left, reverse=True)
    assert len(left) == len(hunt.trials)
    assert talk.progress[0][1] == ""
    assert all(best and rate > 0 for _, best, rate in talk.progress[1:])
