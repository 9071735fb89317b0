"""Load and validate prompts and failure signatures."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from enginehouse.core.diagnose import Signature
from enginehouse.core.errors import InternalError
from enginehouse.core.trial import Stage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = files("enginehouse.knowledge")
STATUSES = ("observed", "reported", "inferred")
NESTED_QUANTIFIER = re.compile(r"\([^()]*[*+][^()]*\)[*+{]")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML (`tomllib`, on Python 3.10 `tomli`)."""
    return dict(tomllib.loads(text))


def load_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the passages and the questions that prompts are made of."""
    passages = (ROOT / "prompts" / "passages.txt").read_text().split("\n\n")
    questions = (ROOT / "prompts" / "questions.txt").read_text().splitlines()
    return (
        tuple(" ".join(passage.split()) for passage in passages if passage.strip()),
        tuple(question for question in questions if question.strip()),
    )


def load_signatures() -> tuple[Signature, ...]:
    """Return every failure signature, validated, by engine and id.

    Raises:
        InternalError: `knowledge.bad_signature`, naming the file and what is wrong with it.
    """
    found = []
    for engine in sorted((ROOT / "signatures").iterdir(), key=lambda entry: entry.name):
        for file in sorted(engine.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".toml"):
                found.append(_read_signature(engine.name, file.name, file.read_text()))
    return tuple(found)


def _read_signature(engine: str, name: str, text: str) -> Signature:
    try:
        table = tomllib.loads(text)
        return signature_of(engine, name.removesuffix(".toml"), table)
    except (KeyError, TypeError, ValueError, re.error) as problem:
        raise InternalError(
            "knowledge.bad_signature",
            f"the signature {engine}/{name} is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
        ) from problem


def signature_of(engine: str, id: str, table: Mapping[str, Any]) -> Signature:
    """Validate one signature's table.

    Raises:
        KeyError, TypeError, ValueError, re.error: for what is missing or wrong.
    """
    known = {
        "stages", "all_of", "none_of", "signals", "cause", "title", "remedies", "sources",
        "evidence", "status", "checked", "precedence",
    }  # fmt: skip
    if unknown := set(table) - known:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    patterns = (*table["all_of"], *table.get("none_of", ()))
    for pattern in patterns:
        re.compile(pattern)
        if NESTED_QUANTIFIER.search(pattern):
            raise ValueError(f"a nested quantifier may be slow: {pattern}")
    if table["status"] not in STATUSES:
        raise ValueError(f"status {table['status']!r} is not one of {STATUSES}")
    if not isinstance(table["checked"], datetime.date):
        raise TypeError("checked is not a date")
    return Signature(
        id=id,
        engine=engine,
        stages=tuple(Stage(stage) for stage in table["stages"]),
        all_of=tuple(table["all_of"]),
        none_of=tuple(table.get("none_of", ())),
        signals=tuple(table.get("signals", ())),
        cause=table["cause"],
        title=table["title"],
        remedies=tuple(table["remedies"]),
        sources=tuple(table["sources"]),
        evidence=table["evidence"],
        status=table["status"],
        precedence=int(table.get("precedence", 0)),
    )
