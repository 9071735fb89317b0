"""Load and validate what a cause is often confused with (`confusions.toml`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from enginehouse.core.diagnose_signature import Alternative
from enginehouse.core.errors import InternalError
from enginehouse.knowledge.signatures_loader import load_causes
from enginehouse.knowledge.toml import ROOT, parse_toml

MOST = 3
"""For a cause; more would name everything."""
FIELDS = {"cause", "decide", "reason"}


@cache
def load_confusions() -> Mapping[str, tuple[Alternative, ...]]:
    """Return, for each cause, what else it is often confirmed to be, the most frequent first.

    Raises:
        InternalError: `knowledge.bad_confusion`, with what is wrong.
    """
    try:
        return confusions_of(parse_toml((ROOT / "confusions.toml").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as problem:
        raise InternalError(
            "knowledge.bad_confusion",
            "the knowledge file confusions.toml is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=("mend the file, or install Enginehouse again",),
        ) from problem


def confusions_of(table: Mapping[str, Any]) -> dict[str, tuple[Alternative, ...]]:
    """Validate the whole table.

    Raises:
        TypeError, ValueError: for what is missing, misspelt, unknown, doubled or too much.
    """
    causes = load_causes()
    return {cause: _entries(cause, entries, causes) for cause, entries in table.items()}


def _entries(cause: str, entries: object, causes: frozenset[str]) -> tuple[Alternative, ...]:
    if not isinstance(entries, list):
        raise TypeError(f"{cause}: is not a list of tables")
    found = tuple(_entry(cause, entry) for entry in entries)
    others = [other.cause for other in found]
    if unknown := {cause, *others} - causes:
        raise ValueError(f"{cause}: not in causes.txt: {', '.join(sorted(unknown))}")
    if cause in others or len(set(others)) < len(others):
        raise ValueError(f"{cause}: names itself, or one cause twice")
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"{cause}: has {len(found)} entries, 1 to {MOST} are allowed")
    return found


def _entry(cause: str, entry: object) -> Alternative:
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        raise ValueError(f"{cause}: an entry has {', '.join(sorted(FIELDS))} and nothing else")
    if not all(isinstance(value, str) and value.strip() for value in entry.values()):
        raise TypeError(f"{cause}: an entry's fields are texts that say something")
    return Alternative(entry["cause"], entry["decide"], is_common=True)
