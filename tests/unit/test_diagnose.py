"""Signatures match their own failure and no other's; what is unknown is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.diagnose import Signature, diagnose
from enginehouse.core.trial import Diagnosis, MemorySample, Outcome, Stage
from enginehouse.knowledge.loader import load_prompts, load_signatures, signature_of

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
SIGNATURES = load_signatures()
GOOD = {
    "stages": ["load"],
    "all_of": ["boom"],
    "cause": "x.y",
    "title": "t",
    "remedies": [],
    "sources": [],
    "evidence": "x.log",
    "status": "observed",
    "checked": __import__("datetime").date(2026, 1, 1),
}


def diagnose_log(log: tuple[str, ...], **changes: object) -> Diagnosis:
    facts: dict[str, object] = {
        "outcome": Outcome.EXITED,
        "exit_code": 1,
        "signal": None,
        "stage": Stage.LOAD,
        "log": log,
        "memory": (),
        "machine": None,
        "signatures": SIGNATURES,
        "detail": "",
    }
    return diagnose(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.id)
def test_a_signature_matches_its_own_log_and_no_other(signature: Signature) -> None:
    """Each signature explains the log that is its evidence, and none of the others'."""
    for path in sorted((LOGS / signature.engine).glob("*.log")):
        found = diagnose_log(tuple(path.read_text().splitlines()), signatures=(signature,))
        expected = signature.id if path.name == signature.evidence else ""
        assert found.signature == expected, path.name
        if expected:
            assert found.cause == signature.cause
            assert found.evidence


def test_every_log_has_its_signature() -> None:
    """No log lies about without a signature that it is the evidence of."""
    logs = {path.name for path in (LOGS / "llama.cpp").glob("*.log")}
    assert logs == {s.evidence for s in SIGNATURES if s.engine == "llama.cpp"}


def test_what_is_not_known_is_said_to_be_unknown_with_the_tail() -> None:
    """An unmatched failure has no cause and shows the log's last lines with their numbers."""
    found = diagnose_log(tuple(f"line {n}" for n in range(100)), detail="ended with exit code 7")
    assert found.cause is None
    assert found.title == "ended with exit code 7"
    assert found.evidence[-1].line == 100


def test_the_guard_is_named_with_its_figures() -> None:
    """A trial that the guard ended says what was available and what the engine held."""
    memory = (MemorySample(1.0, 300 << 20, 200 << 20, 100 << 20),)
    found = diagnose_log((), outcome=Outcome.GUARDED, memory=memory)
    assert found.cause == "memory.host.insufficient"
    assert "100 MiB was available" in found.title
    assert "200 MiB" in found.title


def test_an_illegal_instruction_is_the_cpus_want() -> None:
    """SIGILL means that the build was made for another CPU."""
    assert diagnose_log((), signal="SIGILL", exit_code=None).cause == "cpu.isa_unsupported"


def test_none_of_excludes() -> None:
    """A line that `none_of` names takes a signature out."""
    import dataclasses

    signature = dataclasses.replace(signature_of("e", "s", GOOD), none_of=("fine",))
    assert diagnose_log(("boom",), signatures=(signature,)).cause == "x.y"
    assert diagnose_log(("boom", "all fine"), signatures=(signature,)).cause is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": "guessed"},
        {"all_of": ["(a+)+b"]},
        {"all_of": ["("]},
        {"checked": "yesterday"},
        {"unknown": 1},
        {"stages": ["never"]},
    ],
)
def test_a_bad_signature_is_refused(change: dict[str, object]) -> None:
    """The loader refuses what is misspelt, slow or undated."""
    with pytest.raises((ValueError, TypeError, __import__("re").error)):
        signature_of("e", "s", GOOD | change)


def test_prompts_are_enough_and_all_different() -> None:
    """There is enough natural text that a long prompt does not repeat itself."""
    passages, questions = load_prompts()
    assert len(set(passages)) == len(passages) >= 40
    assert len(set(questions)) == len(questions) >= 20
    assert sum(len(passage.split()) for passage in passages) > 2600
