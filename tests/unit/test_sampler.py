"""Which candidate a search tries next."""

from __future__ import annotations

import pytest

from enginehouse.core.candidate import Candidate, settings_of
from enginehouse.core.space import Dimension
from enginehouse.trials import sampler
from enginehouse.trials.sampler import Sampler

WEIGHTS = Dimension("quantization", (None, "Q4_0", "Q8_0"))
ATTENTION = Dimension("flash_attention", (None, "on", "off"))
DRAFTING = Dimension("speculation", (None, "ngram-mod"))
SPACE = {"llama.cpp": (WEIGHTS, ATTENTION, DRAFTING)}
BASE = Candidate("llama.cpp", "native", settings_of({"context": 1024}))


def new_sampler(seed: int = 0) -> Sampler:
    return Sampler({"native": BASE}, SPACE, seed)


def everything(candidate: Candidate) -> bool:
    return True


def test_gains_that_were_seen_apart_are_tried_together() -> None:
    """Weights and drafting gained, attention lost: their combination comes first."""
    asked = new_sampler()
    asked.learn(BASE, 100.0)
    asked.learn(BASE.with_settings(quantization="Q4_0"), 170.0)
    asked.learn(BASE.with_settings(speculation="ngram-mod"), 115.0)
    asked.learn(BASE.with_settings(flash_attention="off"), 70.0)
    found = asked.ask(everything)
    assert found is not None
    assert (found.get("quantization"), found.get("speculation")) == ("Q4_0", "ngram-mod")
    assert found.get("flash_attention") in (None, "on")
    assert found.get("context") == 1024


def test_what_failed_is_kept_away_from() -> None:
    """Of two values that nobody measured, the one of a combination that failed comes later."""
    asked = new_sampler()
    asked.learn(BASE, 100.0)
    asked.learn(BASE.with_settings(flash_attention="off"), 0.0)
    order = [asked.ask(everything) for _ in range(16)]
    off = [one is not None and one.get("flash_attention") == "off" for one in order]
    assert sum(off[:8]) <= 1


def test_each_is_named_once_and_then_there_is_none() -> None:
    """The whole space but what was measured; what is not allowed is asked about once."""
    asked = new_sampler()
    asked.learn(BASE, 100.0)
    looked: list[str] = []

    def is_allowed(candidate: Candidate) -> bool:
        looked.append(candidate.id)
        return candidate.get("quantization") != "Q8_0"

    named = [one.id for one in iter(lambda: asked.ask(is_allowed), None)]
    assert len(named) == 18 - 6 - 1
    assert len(looked) == len(set(looked)) == 17
    assert BASE.id not in looked


def test_before_anything_was_measured_all_are_equal() -> None:
    """The seed decides, and the same seed alike."""
    firsts = {new_sampler(seed).ask(everything) for seed in range(12)}
    assert len(firsts) > 3
    assert new_sampler(5).ask(everything) == new_sampler(5).ask(everything)


def test_other_builds_and_other_spaces_teach_nothing_wrong() -> None:
    """What is of no build here, or outside of the space, is only not tried again."""
    asked = new_sampler()
    asked.learn(Candidate("llama.cpp", "gone", BASE.settings), 900.0)
    asked.learn(BASE.with_settings(quantization="IQ2_XS"), 900.0)
    asked.learn(BASE, 100.0)
    asked.learn(BASE.with_settings(quantization="Q4_0"), 150.0)
    found = asked.ask(everything)
    assert found is not None
    assert found.get("quantization") == "Q4_0"


def test_an_engine_without_a_setting_is_at_its_default() -> None:
    """Two engines share what they have in common; each candidate has its own settings only."""
    other = Candidate("vllm", "env", settings_of({"context": 1024}))
    space = {**SPACE, "vllm": (Dimension("enforce_eager", (None, "off")),)}
    asked = Sampler({"native": BASE, "env": other}, space, 0)
    asked.learn(BASE, 100.0)
    asked.learn(other, 300.0)
    found = asked.ask(everything)
    assert found == other.with_settings(enforce_eager="off")


def test_a_large_space_is_looked_at_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many points are held, and always what lies around what was measured."""
    monkeypatch.setattr(sampler, "MOST_POINTS", 40)
    many = tuple(Dimension(f"d{n}", (None, 1, 2, 3)) for n in range(8))
    asked = Sampler({"native": BASE}, {"llama.cpp": many}, 0)
    best = BASE.with_settings(d0=1, d1=2, d2=3, d3=1)
    asked.learn(BASE, 100.0)
    asked.learn(best, 400.0)
    named = list(iter(lambda: asked.ask(everything), None))
    assert 2 * 8 * 3 - 4 <= len(named) <= 40 + 2 * 8 * 3
    around = {best.with_settings(**{d.name: v}) for d in many for v in d.values} - {best}
    assert around <= set(named)
