"""The search over two engines: a formula with a simulated clock.

Once one that starts slowly, and once one that reads the same files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.contest import EXPLORE, FINAL
from enginehouse.core.forms import Forms
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.trial import Trial
from enginehouse.engines import ik_llama_cpp, vllm
from enginehouse.trials.search import Hunt
from tests.integration.test_search import CROWD, Formula, Talk, rate_of, winner_of
from tests.unit.values import MACHINE, MODEL, WHEEL

ENVIRONMENT = Build(
    "vllm", "environment", "0.32.0+cpu", "v" * 64, ("/env/bin/python", *vllm.MODULE), "/env"
)
CHECKPOINT = dataclasses.replace(
    MODEL, path="/models/tiny", format="safetensors", quantization="BF16"
)
WIDE = dataclasses.replace(
    MACHINE, isa=("avx2", "avx512f", "avx512_bf16"), gpus=(), memory_available_bytes=24 << 30
)
START_S = 40.0


@dataclass
class TwoEngines(Formula):
    """llama.cpp as in the formula, and a vLLM whose minimal candidate makes `vllm_rate`.

    All cores make it `by_cores` times as fast, compiled code a quarter faster again.
    """

    vllm_rate: float = 30.0
    by_cores: float = 3.0

    def place(self, build: Build) -> Place:
        if build.engine == "llama.cpp":
            return super().place(build)
        return Place(vllm.ENGINE, WIDE, Forms((CHECKPOINT,)), CROWD, 512 << 20)

    def minimal(self, build: Build) -> Candidate:
        if build.engine == "llama.cpp":
            return super().minimal(build)
        return vllm.ENGINE.minimal(build, CHECKPOINT, CROWD)

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        if build.engine == "llama.cpp":
            return await super().run(proposal, build, window_s, purpose)
        self.rate, llama = self._vllm_rate, self.rate
        try:
            tried = await super().run(proposal, build, window_s, purpose)
        finally:
            self.rate = llama
        self.clock_s += START_S
        return dataclasses.replace(tried, duration_s=tried.duration_s + START_S)

    def _vllm_rate(self, candidate: Candidate) -> float:
        rate = self.vllm_rate * (self.by_cores if candidate.get("threads_bind") else 1.0)
        return rate * (1.25 if candidate.get("enforce_eager") == "off" else 1.0)


async def hunt_with(lab: TwoEngines, budget_s: float = 900.0) -> tuple[Hunt, list[Trial]]:
    """Return the search and what of it explored vLLM."""
    hunt = Hunt(lab, (WHEEL, ENVIRONMENT), budget_s, Talk())
    await hunt.run()
    explored = [t for t in hunt.trials if t.purpose == EXPLORE and t.candidate.engine == "vllm"]
    return hunt, explored


async def test_an_engine_that_starts_behind_is_climbed_and_wins() -> None:
    """Its minimal candidate is as fast as llama.cpp's, and its tuned one is the faster one."""
    hunt, explored = await hunt_with(TwoEngines(vllm_rate=60.0, rate=lambda c: 2 * rate_of(c)))
    winner = winner_of(hunt)
    assert winner.engine == "vllm"
    assert winner.get("threads_bind")
    assert winner.get("enforce_eager") == "off"
    assert len(explored) >= 2


async def test_an_engine_that_cannot_win_costs_one_more_trial() -> None:
    """Once its first lever has left it far behind, it is neither climbed further nor sampled."""
    hunt, explored = await hunt_with(TwoEngines(vllm_rate=25.0, by_cores=1.5))
    assert winner_of(hunt).engine == "llama.cpp"
    assert len(explored) == 1


async def test_a_hopeless_engine_is_not_climbed_at_all() -> None:
    """A tenth of the best's rate is not made up by settings."""
    hunt, explored = await hunt_with(TwoEngines(vllm_rate=3.0))
    assert winner_of(hunt).engine == "llama.cpp"
    assert explored == []


async def test_the_second_engine_has_its_turn_in_a_short_budget() -> None:
    """Time for its first steps is kept while the first engine is climbed."""
    _, explored = await hunt_with(TwoEngines(vllm_rate=30.0), budget_s=480.0)
    assert explored


FORK = Build("ik_llama.cpp", "native", "0.1.5", "f" * 64, ("/ik/llama-server",), "/ik")


def slots_of(candidate: Candidate) -> int:
    return int(candidate.get("slots") or 1)


@dataclass
class TwoReaders(Formula):
    """llama.cpp, for which Q4_0 is everything, and its fork, which is fast with any weights.

    In whole loads, whose contexts are longer, several slots of the fork are `falls` times as fast.
    """

    falls: float = 1.0

    def place(self, build: Build) -> Place:
        engine = ik_llama_cpp.ENGINE if build is FORK else super().place(build).engine
        return dataclasses.replace(super().place(build), engine=engine)

    def minimal(self, build: Build) -> Candidate:
        if build is FORK:
            return ik_llama_cpp.ENGINE.minimal(build, MODEL, CROWD)
        return super().minimal(build)

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        self.rate = _of_two_readers
        if purpose == FINAL and build is FORK and slots_of(proposal.candidate) > 1:
            self.rate = lambda candidate: self.falls * _of_two_readers(candidate)
        return await super().run(proposal, build, window_s, purpose)


def _of_two_readers(candidate: Candidate) -> float:
    slots = {1: 1.0, 4: 1.4, 8: 1.6, 16: 1.7}[slots_of(candidate)]
    is_q4 = candidate.get("quantization") == "Q4_0"
    if candidate.engine == FORK.engine:
        return 100.0 * slots * (1.1 if is_q4 else 1.0)
    return 40.0 * slots * (2.5 if is_q4 else 1.0)


async def test_an_engine_is_tried_with_the_settings_that_are_best_on_another() -> None:
    """By its minimal candidate and by its first lever it is hopeless; by other weights it is not.

    Then both engines' best are in the finals, where whole loads tell what short ones did not.
    """
    hunt = Hunt(TwoReaders(falls=0.5), (WHEEL, FORK), 400.0, Talk())
    await hunt.run()
    assert {t.candidate.engine for t in hunt.trials if t.purpose == FINAL} == {
        "llama.cpp", "ik_llama.cpp",
    }  # fmt: skip
    winner = winner_of(hunt)
    assert winner.engine == "llama.cpp"
    assert winner.get("quantization") == "Q4_0"
    assert slots_of(winner) > 1


async def test_the_fork_wins_where_it_is_as_fast_in_whole_loads() -> None:
    """The same search, and the faster engine is chosen."""
    hunt = Hunt(TwoReaders(), (WHEEL, FORK), 400.0, Talk())
    await hunt.run()
    assert winner_of(hunt).engine == "ik_llama.cpp"


async def test_an_engine_that_breaks_the_minimal_weights_is_climbed_on_others() -> None:
    """It is judged before all else is built on it, and wins with a format that it computes well."""

    def refuses(candidate: Candidate) -> str:
        is_broken = candidate.engine == FORK.engine and not candidate.get("quantization")
        return "a broken kernel" if is_broken else ""

    lab = TwoReaders(refuses=refuses)
    hunt = Hunt(lab, (WHEEL, FORK), 400.0, Talk())
    await hunt.run()
    winner = winner_of(hunt)
    assert (winner.engine, winner.get("quantization")) == ("ik_llama.cpp", "Q4_0")
    explored = [t.candidate for t in hunt.trials if t.purpose == EXPLORE]
    on_broken = [c for c in explored if c.engine == FORK.engine and not c.get("quantization")]
    assert not on_broken


@dataclass
class ThreeEngines(TwoReaders):
    """Those two, and a vLLM that takes long to start and makes `vllm_rate`."""

    vllm_rate: float = 30.0

    def place(self, build: Build) -> Place:
        if build is ENVIRONMENT:
            return Place(vllm.ENGINE, WIDE, Forms((CHECKPOINT,)), CROWD, 512 << 20)
        return super().place(build)

    def minimal(self, build: Build) -> Candidate:
        if build is ENVIRONMENT:
            return vllm.ENGINE.minimal(build, CHECKPOINT, CROWD)
        return super().minimal(build)

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        if build is not ENVIRONMENT:
            return await super().run(proposal, build, window_s, purpose)
        self.rate = lambda candidate: self.vllm_rate
        tried = await Formula.run(self, proposal, build, window_s, purpose)
        self.clock_s += START_S
        return dataclasses.replace(tried, duration_s=tried.duration_s + START_S)


async def test_a_slow_engine_that_waits_does_not_starve_the_fast_ones() -> None:
    """The fastest engine's weights are refused, and what is left of a short budget is still its."""

    def refuses(candidate: Candidate) -> str:
        is_broken = candidate.engine == FORK.engine and not candidate.get("quantization")
        return "a broken kernel" if is_broken else ""

    hunt = Hunt(ThreeEngines(refuses=refuses), (WHEEL, FORK, ENVIRONMENT), 300.0, Talk())
    await hunt.run()
    winner = winner_of(hunt)
    assert (winner.engine, winner.get("quantization")) == ("ik_llama.cpp", "Q4_0")


async def test_an_engine_that_breaks_all_weights_is_left() -> None:
    """Two formats are tried, and then the other engine has the time."""

    def refuses(candidate: Candidate) -> str:
        return "a broken kernel" if candidate.engine == FORK.engine else ""

    hunt = Hunt(TwoReaders(refuses=refuses), (WHEEL, FORK), 400.0, Talk())
    await hunt.run()
    assert winner_of(hunt).engine == "llama.cpp"
    final = [t.candidate.engine for t in hunt.trials if t.purpose == FINAL]
    assert FORK.engine not in final


async def test_other_weights_that_an_engine_cannot_read_are_not_tried() -> None:
    """llama.cpp's best settings say nothing to an engine that reads a checkpoint."""
    _, explored = await hunt_with(TwoEngines(vllm_rate=60.0))
    assert all(trial.candidate.get("quantization") is None for trial in explored)
