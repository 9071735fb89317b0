"""What a cause is often confused with: reviewed data, and how a verdict takes it up."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse.core.diagnose_document import as_document, as_text
from enginehouse.core.diagnose_signature import Alternative, Confidence
from enginehouse.core.diagnose_verdict import Verdict, with_confusions
from enginehouse.knowledge.causes import load_prose
from enginehouse.knowledge.confusions import MOST, confusions_of, load_confusions
from enginehouse.knowledge.patterns import load_book
from enginehouse.knowledge.toml import ROOT, parse_toml

OOM, OTHERS, KV, BUG = (
    "memory.device.oom",
    "memory.device.used_by_others",
    "memory.kv_cache_oversized",
    "engine.bug",
)
GOOD = {"cause": OTHERS, "decide": "who else is there?", "reason": "The log does not say."}
TABLE = {OOM: tuple(Alternative(cause, "which?", is_common=True) for cause in (OTHERS, KV, BUG))}


def verdict(
    *own: str, cause: str | None = OOM, confidence: Confidence = Confidence.LIKELY
) -> Verdict:
    alternatives = tuple(Alternative(other, "it says so") for other in own)
    return Verdict(cause, confidence, "title", alternatives)


def causes_in(found: Verdict) -> list[str]:
    return [other.cause for other in found.alternatives]


def test_the_table_is_reviewed_questions_with_reasons() -> None:
    """Every entry asks something, says why the log does not tell, and does not ramble."""
    for cause, entries in parse_toml((ROOT / "confusions.toml").read_text("utf-8")).items():
        assert len(entries) <= MOST, cause
        for entry in entries:
            assert entry["decide"].endswith("?"), (cause, entry)
            assert entry["reason"].endswith("."), (cause, entry)
            assert len(entry["decide"]) <= 140, (cause, entry)
            assert len(entry["reason"]) <= 120, (cause, entry)
    assert set(load_confusions()) <= set(load_prose())
    assert load_book().confusions == load_confusions()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{**GOOD, "cause": OOM}], "names itself"),
        ([GOOD, GOOD], "one cause twice"),
        ([{**GOOD, "cause": "no.such"}], "not in causes.txt"),
        ([{**GOOD, "decide": " "}], "texts that say something"),
        ([{**GOOD, "more": "x"}], "nothing else"),
        ([{"cause": OTHERS, "decide": "which?"}], "nothing else"),
        ([], "1 to 3"),
        ([{**GOOD, "cause": c} for c in (OTHERS, KV, BUG, "model.corrupt")], "1 to 3"),
        ("text", "not a list"),
    ],
)
def test_a_bad_table_is_refused(entries: Any, says: str) -> None:
    """A misspelt, doubled, empty or endless entry does not reach a reader."""
    with pytest.raises((TypeError, ValueError), match=says):
        confusions_of({OOM: entries})


def test_an_unknown_cause_is_refused() -> None:
    """The cause that is confused must exist too."""
    with pytest.raises(ValueError, match="not in causes"):
        confusions_of({"no.such": [GOOD]})


def test_a_verdict_with_few_alternatives_is_filled_up_after_its_own() -> None:
    """What the log speaks for stays first; nothing is named twice; two are enough."""
    assert causes_in(with_confusions(verdict(), TABLE)) == [OTHERS, KV]
    assert causes_in(with_confusions(verdict(BUG), TABLE)) == [BUG, OTHERS]
    assert causes_in(with_confusions(verdict(OTHERS), TABLE)) == [OTHERS, KV]


@pytest.mark.parametrize(
    "unchanged",
    [
        verdict(confidence=Confidence.CERTAIN),
        verdict("model.corrupt", BUG),
        verdict(cause=None, confidence=Confidence.UNKNOWN),
        verdict(cause=BUG),
    ],
)
def test_certain_unknown_and_rich_verdicts_stay_as_they_are(unchanged: Verdict) -> None:
    """The table doubts no certainty, names no cause where none is known, and adds no noise."""
    assert with_confusions(unchanged, TABLE) == unchanged


def test_a_reader_sees_what_only_the_table_says() -> None:
    """A common confusion is not passed off as something that the log speaks for."""
    found = with_confusions(verdict(BUG), TABLE)
    told = as_document(found, "x.log", "2026-11-25")["alternatives"]
    assert [other["basis"] for other in told] == ["log", "common"]  # type: ignore[attr-defined]
    text = as_text(found, "x.log", "2026-11-25")
    assert f"could also be {OTHERS}: which?" in text
    assert f"could also be {BUG}" not in text
