"""The causes' reviewed prose, and the decisive lines of the signatures' own logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

from enginehouse.core.diagnose_catalogue import Page, Prose, page_for
from enginehouse.core.errors import InternalError
from enginehouse.knowledge.signatures_loader import load_causes, load_signatures
from enginehouse.knowledge.toml import ROOT, parse_toml

LINES_FILE = "decisive_lines.json"
"""Made by docs/generate_failures.py from the logs under tests/fixtures, which are not installed."""


@cache
def load_prose() -> Mapping[str, Prose]:
    """Return what is written of each cause; a cause may be missing, and is then shown without.

    Raises:
        InternalError: `knowledge.bad_cause`, naming the entry.
    """
    found = {}
    for cause, entry in parse_toml((ROOT / "causes.toml").read_text(encoding="utf-8")).items():
        is_whole = isinstance(entry, dict) and set(entry) == {"meaning", "why"}
        if not is_whole or not all(isinstance(v, str) and v.strip() for v in entry.values()):
            raise InternalError(
                "knowledge.bad_cause",
                f"causes.toml says of {cause} something else than its meaning and why",
                evidence=(str(entry)[:200],),
                remedies=("mend the file, or install Enginehouse again",),
            )
        found[cause] = Prose(entry["meaning"], entry["why"])
    return found


def meaning_of(cause: str | None) -> str:
    """Return what a cause means in one line; empty where nothing is written."""
    return load_prose().get(cause or "", Prose()).meaning


def load_pages(lines: Mapping[str, Sequence[str]] | None = None) -> dict[str, Page]:
    """Return every cause's page of the catalogue, in the list's order within its domain."""
    if lines is None:
        lines = json.loads((ROOT / LINES_FILE).read_text(encoding="utf-8"))
    prose = load_prose()
    signatures = load_signatures()
    return {
        cause: page_for(cause, prose.get(cause, Prose()), signatures, lines)
        for cause in sorted(load_causes())
    }
