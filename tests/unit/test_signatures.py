"""The failure signatures are reviewed data: valid, distinct, each with the log it was made from."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from enginehouse.core.diagnose import Signature, diagnose
from enginehouse.core.trial import Diagnosis, Outcome
from enginehouse.engines import load_engines
from enginehouse.knowledge.loader import (
    has_slow_repeat,
    load_causes,
    load_signatures,
    parse_toml,
    signature_of,
)

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
SIGNATURES = load_signatures()
CAUSES = load_causes()
CONSTRUCTED = "constructed from the engine's source, not observed"
GOOD = {
    "stages": ["load"],
    "all_of": ["boom"],
    "cause": "model.corrupt",
    "title": "it went boom",
    "remedies": ["do not"],
    "sources": ["owner/engine:src/boom.cpp"],
    "evidence": "boom.log",
    "status": "observed",
    "checked": datetime.date(2026, 1, 1),
}


def read_log(signature: Signature) -> tuple[str, ...]:
    """Read the log that is a signature's evidence."""
    return tuple((LOGS / signature.engine / signature.evidence).read_text().splitlines())


def explain(signature: Signature, log: tuple[str, ...], *known: Signature) -> Diagnosis:
    """Diagnose a log that ended as the signature's failure ends."""
    return diagnose(
        outcome=signature.outcomes[-1],
        exit_code=signature.exit_codes[0] if signature.exit_codes else 1,
        signal=signature.signals[0] if signature.signals else None,
        stage=signature.stages[0],
        log=log,
        memory=(),
        machine=None,
        signatures=known,
        detail="",
    )


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.id)
def test_each_signature_explains_its_own_log(signature: Signature) -> None:
    """Among all of its engine's signatures, a log's own one wins, with its evidence."""
    rivals = [other for other in SIGNATURES if other.engine == signature.engine]
    found = explain(signature, read_log(signature), *rivals)
    assert (found.signature, found.cause) == (signature.id, signature.cause)
    assert found.evidence


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.id)
def test_no_other_signature_matches_the_log_unless_precedence_decides(signature: Signature) -> None:
    """A second match must yield to the log's own signature by a lower precedence."""
    log = read_log(signature)
    for other in SIGNATURES:
        if other.engine == signature.engine and other.id != signature.id:
            matches = explain(signature, log, other).signature == other.id
            assert not matches or other.precedence < signature.precedence, other.id


def test_every_log_is_the_evidence_of_one_signature() -> None:
    """No log lies about without its signature, and none is shared."""
    logs = sorted((path.parent.name, path.name) for path in LOGS.rglob("*.log"))
    assert logs == sorted((s.engine, s.evidence) for s in SIGNATURES)


@pytest.mark.parametrize("path", sorted(LOGS.rglob("*.log")), ids=lambda p: p.stem)
def test_a_log_names_no_path_of_the_machine_it_came_from(path: Path) -> None:
    """Logs are published, so personal folders are replaced by /models."""
    text = path.read_text()
    assert not re.search(r"/(home|root|Users|tmp|work|var)/", text)


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.id)
def test_a_log_that_nobody_saw_says_so(signature: Signature) -> None:
    """Only the log of an inferred signature is constructed, and its first line tells."""
    is_constructed = CONSTRUCTED in read_log(signature)[0]
    assert is_constructed == (signature.status == "inferred")


def test_signatures_belong_to_engines() -> None:
    """A folder of signatures is named after an engine that exists."""
    assert {signature.engine for signature in SIGNATURES} <= set(load_engines())
    assert load_signatures("llama.cpp") == tuple(s for s in SIGNATURES if s.engine == "llama.cpp")
    assert load_signatures("no such engine") == ()


def test_an_id_names_the_problem_in_plain_words() -> None:
    """Ids are lower-case words with dashes, unique within an engine."""
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", s.id) for s in SIGNATURES)
    assert len({(s.engine, s.id) for s in SIGNATURES}) == len(SIGNATURES)


def test_causes_are_dotted_and_listed_once() -> None:
    """The taxonomy is a list of dotted names, and the guard's, the signals' are among them."""
    assert all(re.fullmatch(r"[a-z]+(\.[a-z_]+)+", cause) for cause in CAUSES)
    own = {"memory.host.insufficient", "memory.host.oom_killed", "cpu.isa_unsupported"}
    assert own | {"runtime.load_timeout"} <= CAUSES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "guessed"}, "status"),
        ({"all_of": ["(a+)+b"]}, "slow"),
        ({"none_of": ["(a|b)*c"]}, "slow"),
        ({"all_of": ["("]}, "unterminated"),
        ({"all_of": []}, "all_of"),
        ({"all_of": "boom"}, "all_of"),
        ({"all_of": [""]}, "all_of"),
        ({"checked": "yesterday"}, "date"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"stages": ["never"]}, "never"),
        ({"stages": []}, "stages"),
        ({"outcomes": ["guarded"]}, "guarded"),
        ({"cause": "moon.phase"}, "moon.phase"),
        ({"title": ""}, "title"),
        ({"sources": ["somewhere"]}, "somewhere"),
        ({"evidence": "../boom.log"}, "evidence"),
        ({"exit_codes": ["1"]}, "exit_codes"),
        ({"precedence": "high"}, "precedence"),
    ],
)
def test_a_bad_signature_is_refused(change: dict[str, object], says: str) -> None:
    """The loader refuses what is misspelt, empty, slow or undated, and says what."""
    with pytest.raises((ValueError, TypeError, re.error), match=re.escape(says)):
        signature_of("e", "s", GOOD | change, CAUSES)


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_missing_field_is_named(field: str) -> None:
    """Every field but the optional ones must be there."""
    table = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(ValueError, match=f"missing fields: {field}"):
        signature_of("e", "s", table, CAUSES)


def test_what_is_left_out_gets_its_default() -> None:
    """Without conditions a signature is for engines that ended, however they ended."""
    signature = signature_of("e", "s", GOOD, CAUSES)
    assert signature.outcomes == (Outcome.EXITED,)
    assert (signature.none_of, signature.signals, signature.exit_codes) == ((), (), ())
    assert signature.precedence == 0


@pytest.mark.parametrize(
    ("pattern", "is_slow"),
    [
        (r"(a+)+b", True),
        (r"((a+))+", True),
        (r"(a|aa)*", True),
        (r"(a{2,})+", True),
        (r"(?:x*){3}", True),
        (r"tensor '[^']+' not found", False),
        (r"(tjgg|fmgg)", False),
        (r"(ab)+", False),
        (r"\(a+\)+", False),
        (r"[(+]+", False),
        (r"(compute )?buffers", False),
        (r"request \(\d+ tokens\) exceeds", False),
    ],
)
def test_slow_repeats_are_seen(pattern: str, is_slow: bool) -> None:
    """A repeated group that holds a repeat or a choice is refused; escapes and classes are not."""
    assert has_slow_repeat(pattern) is is_slow


def test_toml_is_read_on_every_python() -> None:
    """Dates and literal strings come out as values on 3.10 too."""
    assert parse_toml("a = 2026-01-02\nb = '''\\d'''") == {
        "a": datetime.date(2026, 1, 2),
        "b": "\\d",
    }
