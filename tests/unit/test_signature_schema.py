"""The schema of a failure signature: what is refused, and what is said about it."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from enginehouse.core.diagnose_signature import Kind, Role
from enginehouse.core.remedies import ACTIONS
from enginehouse.knowledge.signatures_loader import load_causes, load_signatures, signature_of
from enginehouse.knowledge.toml import parse_toml

CAUSES = load_causes()
DOCUMENT = Path(__file__).parents[2] / "docs" / "diagnose.md"
GOOD = {
    "cause": "model.corrupt",
    "title": "it went boom",
    "all_of": ["boom"],
    "remedies": ["do not"],
    "sources": ["owner/engine:src/boom.cpp"],
    "evidence": "boom.log",
    "status": "observed",
    "checked": datetime.date(2026, 1, 1),
}


def test_every_signature_in_the_house_is_valid() -> None:
    """The loader accepts each file; one group can be had alone."""
    signatures = load_signatures()
    assert load_signatures("llama.cpp") == tuple(s for s in signatures if s.group == "llama.cpp")
    assert load_signatures("no such group") == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "guessed"}, "status"),
        ({"all_of": ["("]}, "RE2 cannot read"),
        ({"all_of": [r"(a)\1"]}, "RE2 cannot read"),
        ({"all_of": ["a(?=b)"]}, "RE2 cannot read"),
        ({"all_of": ["a*"]}, "empty line"),
        ({"all_of": ["a|^b"]}, "may only stand first"),
        ({"all_of": ["a$|b"]}, "may only stand first"),
        ({"all_of": ["a{1,500}b"]}, "counted above"),
        ({"all_of": []}, "all_of"),
        ({"all_of": "boom"}, "all_of"),
        ({"all_of": [""]}, "all_of"),
        ({"recovered_by": ["("]}, "RE2 cannot read"),
        ({"checked": "yesterday"}, "date"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"stages": ["never"]}, "never"),
        ({"kind": "odd"}, "odd"),
        ({"roles": ["hero"]}, "hero"),
        ({"confidence": "sure"}, "sure"),
        ({"when": {"outcomes": ["guarded"]}}, "guarded"),
        ({"when": {"platform": ["moon"]}}, "moon"),
        ({"when": {"signals": ["SIGFOO"]}}, "SIGFOO"),
        ({"when": {"l4t": "36"}}, "range"),
        ({"when": {"exit_codes": ["1"]}}, "exit_codes"),
        ({"when": {"moon": True}}, "unknown fields: moon"),
        ({"context": [{"cause": "model.corrupt"}]}, "without conditions"),
        ({"context": [{"when": {"platform": ["wsl"]}, "cause": "moon.phase"}]}, "moon.phase"),
        ({"alternative": [{"cause": "model.corrupt"}]}, "decide"),
        ({"alternative": {"cause": "model.corrupt"}}, "list of tables"),
        ({"misleading": [{"pattern": "x"}]}, "says"),
        ({"actions": ["dance"]}, "dance"),
        ({"cause": "moon.phase"}, "moon.phase"),
        ({"title": ""}, "title"),
        ({"title": "needs {need}"}, "no pattern captures need"),
        ({"sources": ["somewhere"]}, "somewhere"),
        ({"evidence": "../boom.log"}, "evidence"),
        ({"example": "boom"}, "either evidence"),
        ({"precedence": "high"}, "precedence"),
        ({"same_process": 1}, "same_process"),
    ],
)
def test_a_bad_signature_is_refused(change: dict[str, object], says: str) -> None:
    """The loader refuses what is misspelt, empty, not linear or undated, and says what."""
    with pytest.raises((ValueError, TypeError), match=re.escape(says)):
        signature_of("vllm", "s", GOOD | change, CAUSES)


@pytest.mark.parametrize("field", sorted(set(GOOD) - {"all_of", "evidence", "remedies"}))
def test_a_missing_field_is_named(field: str) -> None:
    """Every field but the optional ones must be there."""
    table = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(ValueError, match=f"missing fields: {field}"):
        signature_of("vllm", "s", table, CAUSES)


def test_an_unknown_group_is_refused() -> None:
    """A folder is one of the known speakers."""
    with pytest.raises(ValueError, match="folder 'moon'"):
        signature_of("moon", "s", GOOD, CAUSES)


def test_a_signature_without_a_text_needs_an_ending() -> None:
    """A pattern may be missing only where a signal or an exit code is named."""
    table = {name: value for name, value in GOOD.items() if name != "all_of"}
    with pytest.raises(ValueError, match="all_of and any_of are empty"):
        signature_of("os", "s", table, CAUSES)
    assert signature_of("os", "s", table | {"when": {"signals": ["SIGBUS"]}}, CAUSES).id == "s"


def test_an_echo_needs_no_cause_and_a_benign_line_has_its_own() -> None:
    """Only what explains a failure names a cause of the taxonomy."""
    table = {name: value for name, value in GOOD.items() if name != "cause"}
    assert signature_of("vllm", "s", table | {"kind": "echo"}, CAUSES).cause == ""
    benign = signature_of("vllm", "s", table | {"kind": "benign"}, CAUSES)
    assert (benign.kind, benign.cause) == (Kind.BENIGN, "misleading.benign_warning")


def test_the_document_shows_signatures_that_load() -> None:
    """Each worked example of the document is valid when put into the first, whole one."""
    blocks = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    whole = parse_toml(blocks[0])
    assert signature_of("pytorch", "s", whole, CAUSES).cause == "memory.device.oom"
    for block in blocks[1:]:
        table = {"title": "it went boom"} | parse_toml(block)
        if "when" in table and "all_of" not in table:
            table["all_of"] = ["boom"]
        signature_of("pytorch", "s", whole | table, CAUSES)
    assert len(blocks) > 10


def test_the_document_names_every_role_and_kind() -> None:
    """What may be written is documented."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"`{word.value}`" in text for word in (*Role, *Kind))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ACTIONS)
