"""Several workloads in one search, on a machine that is a formula (see `test_search.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.app_find import FindResult
from enginehouse.app_search import FrontResult
from enginehouse.cli_find import find_document
from enginehouse.cli_render import front_text
from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.choice import Choice, stale_reasons
from enginehouse.core.choose import choose
from enginehouse.core.contest import EXPLORE, FINAL
from enginehouse.core.front import Front, Searched, stand
from enginehouse.core.propose import Place
from enginehouse.core.workload import together
from enginehouse.engines.llama_cpp import ENGINE
from enginehouse.trials.front import FrontHunt
from enginehouse.trials.search import Hunt
from tests.integration.houses import House, write_model
from tests.integration.test_search import Formula, Talk, rate_of
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL, measurement

CHAT, CROWD = together(("chat", "crowd"))


def alone(candidate: Candidate) -> float:
    """One stream, where slots cost something and drafting helps."""
    rate = rate_of(candidate.with_settings(slots=1))
    rate *= {1: 1.0, 4: 0.97, 8: 0.9, 16: 0.8}[int(candidate.get("slots") or 1)]
    return rate * (1.3 if candidate.get("speculation") == "ngram-mod" else 1.0)


@dataclasses.dataclass
class Clock:
    """The one machine's time."""

    s: float = 0.0


class Under(Formula):
    """The formula under one workload, on the common clock."""

    def __init__(
        self, workload: str, clock: Clock, rate: Callable[[Candidate], float], **more: object
    ) -> None:
        super().__init__(rate, **more)  # type: ignore[arg-type]
        self.workload = {"chat": CHAT, "crowd": CROWD}[workload]
        self.clock = clock

    def now(self) -> float:
        return self.clock.s + self.clock_s

    def place(self, build: Build) -> Place:
        return dataclasses.replace(super().place(build), workload=self.workload)

    def minimal(self, build: Build) -> Candidate:
        return ENGINE.minimal(build, MODEL, self.workload)


def both(budget_s: float, **more: object) -> tuple[FrontHunt, Talk]:
    """Searches of chat and crowd; each lab's own clock counts, as the others stand still."""
    clock, talk = Clock(), Talk()
    hunts = {
        "chat": Hunt(Under("chat", clock, alone, **more), (WHEEL, BINARY), budget_s / 2, talk),
        "crowd": Hunt(Under("crowd", clock, rate_of, **more), (WHEEL, BINARY), budget_s / 2, talk),
    }
    return FrontHunt(hunts, talk), talk


def front_of(found: FrontHunt) -> Front:
    return stand(
        tuple(
            Searched(name, tuple(hunt.trials), hunt.base(), hunt.refused)
            for name, hunt in found.hunts.items()
        )
    )


async def test_every_candidate_of_the_front_is_measured_under_every_workload() -> None:
    """All finalists are in the finals of both, and the front's members are among them."""
    found, _ = both(1000.0)
    await found.run()
    finals = [
        {t.candidate for t in hunt.trials if t.purpose == FINAL} for hunt in found.hunts.values()
    ]
    assert finals[0] == finals[1]
    assert len(finals[0]) >= 3
    front = front_of(found)
    assert not front.is_explored_only
    assert {row.candidate for row in front.members} <= finals[0]
    chat, crowd = front.choice("chat"), front.choice("crowd")
    assert chat is not None
    assert crowd is not None
    assert chat.candidate.get("speculation") == "ngram-mod"
    assert int(crowd.candidate.get("slots") or 1) >= 8
    assert chat.is_on_front
    assert crowd.is_on_front


async def test_what_one_found_is_tried_first_in_the_other() -> None:
    """The second search's first trial that explores is the first one's best."""
    found, talk = both(1000.0)
    await found.run()
    chat, crowd = found.hunts.values()
    explored = next(t for t in crowd.trials if t.purpose == EXPLORE)
    assert (explored.candidate,) == crowd.hints
    assert explored.candidate in {t.candidate for t in chat.trials}
    assert any("searching under crowd for 500 s" in said for said in talk.said)
    assert any("the best under another workload" in said for said in talk.said)


async def test_each_workload_keeps_its_share_of_the_budget() -> None:
    """Neither takes the other's time, and both have finals."""
    for budget_s in (400.0, 1000.0, 2000.0):
        found, _ = both(budget_s)
        await found.run()
        for hunt in found.hunts.values():
            spent_s = sum(t.duration_s for t in hunt.trials)
            assert spent_s <= 1.1 * budget_s / 2
            assert any(t.purpose == FINAL for t in hunt.trials)


async def test_time_that_an_exhausted_search_does_not_need_goes_to_the_next() -> None:
    """With a space that is tried through in no time, the others get what is over for exploring."""
    found, talk = both(8000.0)
    chat, crowd = found.hunts.values()
    await found.run()
    assert any("every candidate of the space" in said for said in talk.said)
    assert chat.budget_s < 4000.0 < crowd.budget_s
    assert chat.budget_s + crowd.budget_s == pytest.approx(8000.0)
    spent_s = sum(t.duration_s for t in chat.trials)
    assert spent_s <= chat.budget_s


async def test_what_one_refuses_for_its_answers_the_other_does_not_choose() -> None:
    """Answers do not depend on the workload: one exam's verdict holds for all."""
    found, _ = both(
        1000.0,
        refuses=lambda c: "KL is high" if c.get("quantization") == "Q4_0" else "",
    )
    await found.run()
    for row in front_of(found).members:
        assert row.candidate.get("quantization") != "Q4_0"


async def test_nothing_that_serves_is_no_front() -> None:
    """When every candidate fails, the search ends, and nobody is on the front."""
    found, _ = both(300.0, fails=lambda candidate: True)
    await found.run()
    assert not front_of(found).members


async def test_the_front_is_shown_and_what_up_serves() -> None:
    """Text and JSON have each rate, who is on the front, and whose choice is served."""
    found, _ = both(1000.0)
    await found.run()
    results = tuple(
        FindResult(
            "r", MODEL, name, choose(hunt.trials, hunt.base(), hunt.refused), hunt.base(), None
        )
        for name, hunt in found.hunts.items()
    )
    result = FrontResult(results, front_of(found), "crowd")
    title, header, *lines = front_text(result).splitlines()
    assert title == "tiny: the Pareto front over chat, crowd"
    assert header.split()[:5] == ["#", "CHAT", "TOK/S", "CROWD", "TOK/S"]
    assert sum(line.startswith(("1 ", "2 ", "3 ")) for line in lines) >= 2
    assert any("chosen for chat" in line for line in lines)
    assert lines[-2].startswith("`enginehouse up tiny --workload crowd --workload chat` serves")
    assert lines[-1] == "for another one: --prefer chat"
    document = find_document(result)
    assert document["workloads"] == ["chat", "crowd"]
    assert document["prefer"] == "crowd"
    assert document["front"] == result.front


def test_a_choice_holds_for_the_workloads_that_it_was_found_with() -> None:
    """What was found for chat alone is no choice for chat and rag: its context may be too small."""
    alone = Choice(
        MODEL.digest, MODEL.name, "chat", MACHINE.fingerprint(), MACHINE.fingerprint_facts(), WHEEL,
        Candidate("llama.cpp", WHEEL.digest, ()), 1, measurement(40.0), 0.0,
    )  # fmt: skip
    together = dataclasses.replace(alone, beside=("chat", "rag"))
    both = ("rag", "chat")
    assert stale_reasons(together, MACHINE, MODEL, (WHEEL,), (), both) == ()
    assert stale_reasons(together, MACHINE, MODEL, (WHEEL,), (), ("chat",)) == ()
    assert stale_reasons(alone, MACHINE, MODEL, (WHEEL,), (), both) == (
        "it was found for chat, and rag, chat are asked for now",
    )


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A house of the test's own."""
    return House(tmp_path)


def test_the_command_takes_several_workloads(house: House, tmp_path: Path) -> None:
    """With commas or the option again; each has its plan, with context for the longest of them."""
    model = str(write_model(tmp_path / "tiny.gguf"))
    document = house.run_json("find", model, "--workload", "chat,rag", "--workload", "chat",
                              "--dry-run")  # fmt: skip
    assert document["workloads"] == ["chat", "rag"]
    for plan in document["plans"]:
        minimal = dict(plan["candidates"][0]["candidate"]["settings"])
        assert minimal["context"] >= 3000 + 64
    wrong = house.run("find", model, "--workload", "chat,crowd", "--prefer", "rag")
    assert wrong.returncode == 2
    assert "it is not among the workloads (chat, crowd)" in wrong.stderr
    unknown = house.run("find", model, "--workload", "chat,crwd")
    assert "Did you mean 'crowd'?" in unknown.stderr
