"""The loader of what is known of machines refuses what is not valid."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest

from enginehouse.core.known import Release, release_of
from enginehouse.knowledge.machine_facts import condition_of, load_known, load_rules, rule_of

ENTRY: dict[str, Any] = {
    "id": "memory.low", "cost": 2, "what": "low", "costs": "much",
    "evidence": "{memory.free_bytes}",
    "remedies": ["more"], "when": [{"fact": "memory.free_bytes", "below": 1}],
    "sources": ["https://docs.kernel.org/"], "status": "observed",
    "checked": datetime.date(2026, 11, 25),
}  # fmt: skip


def test_all_knowledge_is_valid() -> None:
    """Every file of knowledge/machine loads; every table has something."""
    known = load_known()
    assert load_rules()
    assert all((known.releases, known.modules, known.speeds, known.images))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cost": 4}, "cost"),
        ({"status": "certain"}, "status"),
        ({"remedies": []}, "remedies"),
        ({"sources": []}, "no source"),
        ({"sources": ["I know it"]}, "owner/repository:path"),
        ({"checked": "yesterday"}, "date"),
        ({"when": []}, "always"),
        ({"evidence": "{memory.free_bytes:furlongs}"}, "furlongs"),
        ({"evidence": "{memory free}"}, "place"),
        ({"evidence": "{gpu.*.name}"}, "needs each"),
        ({"each": "wheel"}, "each"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"what": ""}, "what"),
    ],
)
def test_a_wrong_entry_is_refused(changes: dict[str, Any], complaint: str) -> None:
    """What is missing, misspelt or of the wrong kind is refused, and named."""
    with pytest.raises((TypeError, ValueError), match=re.escape(complaint)):
        rule_of({**ENTRY, **changes})


@pytest.mark.parametrize(
    "table",
    [
        {"fact": "memory.free_bytes"},
        {"below": 1},
        {"fact": "memory.free_bytes", "below": 1, "above": 2},
        {"fact": "memory.free_bytes", "beneath": 1},
        {"fact": "memory.free_bytes", "below": "much"},
        {"fact": "memory.free_bytes", "below": True},
        {"fact": "memory.free_bytes", "known": "yes"},
        {"fact": "memory.free_bytes", "one_of": "a"},
        {"fact": "memory.free_bytes", "is": "a", "of": "memory.total_bytes"},
        {"fact": "Memory free", "is": "a"},
        {"fact": "gpu.*.name", "is": "a"},
    ],
)
def test_a_wrong_condition_is_refused(table: dict[str, Any]) -> None:
    """A condition has one fact and one operator, each spelt and used right."""
    with pytest.raises((TypeError, ValueError)):
        condition_of(table)


def test_a_release_is_found_by_the_longest_beginning() -> None:
    """36.4.7 is 6.2.1 although only 36.4 is listed; 36.40 is not 36.4."""
    releases = (Release("36.4", "6.2.1"), Release("36.4.3", "6.2"))
    found = {l4t: release_of(l4t, releases) for l4t in ("36.4.3", "36.4.7", "36.40.1", "35.1")}
    assert {l4t: one and one.jetpack for l4t, one in found.items()} == {
        "36.4.3": "6.2", "36.4.7": "6.2.1", "36.40.1": None, "35.1": None,
    }  # fmt: skip
