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
from enginehouse.core.trial import Outcome, Stage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = files("enginehouse.knowledge")
STATUSES = ("observed", "reported", "inferred")
TEXTS = ("cause", "title", "evidence", "status")
LISTS = ("stages", "all_of", "none_of", "outcomes", "signals", "remedies", "sources")
OPTIONAL = {"none_of", "when", "outcomes", "signals", "exit_codes", "precedence"}
EXPLAINABLE = (Outcome.EXITED, Outcome.BAD_ANSWER)
"""Outcomes that a log may explain; the others are our own doing."""
SOURCE = re.compile(r"https://\S+|[\w.-]+/[\w.-]+:\S+")
UNBOUNDED = ("*", "+", "{")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML (`tomllib`, on Python 3.10 `tomli`)."""
    return dict(tomllib.loads(text))


def load_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the passages and the questions that prompts are made of."""
    passages = (ROOT / "prompts" / "passages.txt").read_text(encoding="utf-8").split("\n\n")
    questions = (ROOT / "prompts" / "questions.txt").read_text(encoding="utf-8").splitlines()
    return (
        tuple(" ".join(passage.split()) for passage in passages if passage.strip()),
        tuple(question for question in questions if question.strip()),
    )


def load_causes() -> frozenset[str]:
    """Return the dotted causes of the taxonomy, the only ones a signature may name."""
    return frozenset((ROOT / "causes.txt").read_text(encoding="utf-8").split())


def load_signatures(engine: str | None = None) -> tuple[Signature, ...]:
    """Return every failure signature (of one engine, if given), validated, by engine and id.

    Raises:
        InternalError: `knowledge.bad_signature`, naming the file and what is wrong with it.
    """
    causes = load_causes()
    return tuple(
        _read_signature(folder.name, file.name, file.read_text(encoding="utf-8"), causes)
        for folder in sorted((ROOT / "signatures").iterdir(), key=lambda entry: entry.name)
        if folder.is_dir() and engine in (None, folder.name)
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".toml")
    )


def _read_signature(engine: str, name: str, text: str, causes: frozenset[str]) -> Signature:
    try:
        return signature_of(engine, name.removesuffix(".toml"), parse_toml(text), causes)
    except (TypeError, ValueError, re.error) as problem:
        raise InternalError(
            "knowledge.bad_signature",
            f"the signature {engine}/{name} is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=("mend the file, or install Enginehouse again",),
        ) from problem


def signature_of(
    engine: str, id: str, table: Mapping[str, Any], causes: frozenset[str]
) -> Signature:
    """Validate one signature's table.

    Raises:
        TypeError, ValueError, re.error: for what is missing, misspelt, of the wrong kind or slow.
    """
    _check_fields(table)
    for pattern in (*table["all_of"], *table.get("none_of", ())):
        re.compile(pattern)
        if has_slow_repeat(pattern):
            raise ValueError(f"a repeated group with a choice or a repeat may be slow: {pattern}")
    if table["cause"] not in causes:
        raise ValueError(f"the cause {table['cause']!r} is not in causes.txt")
    if table["status"] not in STATUSES:
        raise ValueError(f"status {table['status']!r} is not one of {STATUSES}")
    outcomes = tuple(
        Outcome(outcome) for outcome in table.get("when", table).get("outcomes", ("exited",))
    )
    if own := set(outcomes) - set(EXPLAINABLE):
        raise ValueError(f"no log explains {', '.join(sorted(outcome.value for outcome in own))}")
    for source in table["sources"]:
        if not SOURCE.fullmatch(source):
            raise ValueError(f"a source is a URL or owner/repository:path, not {source!r}")
    return Signature(
        id=id,
        engine=engine,
        stages=tuple(Stage(stage) for stage in table["stages"]),
        all_of=tuple(table["all_of"]),
        none_of=tuple(table.get("none_of", ())),
        outcomes=outcomes,
        signals=tuple(table.get("signals", ())),
        exit_codes=tuple(table.get("exit_codes", ())),
        cause=table["cause"],
        title=table["title"],
        remedies=tuple(table["remedies"]),
        sources=tuple(table["sources"]),
        evidence=table["evidence"],
        status=table["status"],
        checked=table["checked"],
        precedence=table.get("precedence", 0),
    )


def _check_fields(table: Mapping[str, Any]) -> None:
    """Check that every field is there, known, and of its kind; empty lists match too much."""
    known = {*TEXTS, *LISTS, "checked", *OPTIONAL}
    if unknown := set(table) - known:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    if missing := known - OPTIONAL - set(table):
        raise ValueError(f"missing fields: {', '.join(sorted(missing))}")
    for name in TEXTS:
        if not isinstance(table[name], str) or not table[name]:
            raise TypeError(f"{name} is not a text")
    for name in LISTS:
        if name in table and not _is_list_of(str, table[name]):
            raise TypeError(f"{name} is not a list of texts that says something")
    if "exit_codes" in table and not _is_list_of(int, table["exit_codes"]):
        raise TypeError("exit_codes is not a list of whole numbers")
    if not isinstance(table["checked"], datetime.date):
        raise TypeError("checked is not a date")
    if not isinstance(table.get("precedence", 0), int):
        raise TypeError("precedence is not a whole number")
    if "/" in table["evidence"] or not table["evidence"].endswith(".log"):
        raise ValueError("evidence is not the name of a log")


def _is_list_of(kind: type, value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(item and type(item) is kind for item in value)
    )


def has_slow_repeat(pattern: str) -> bool:
    """Whether a repeated group holds a repeat or a choice itself, which may take exponential time.

    >>> has_slow_repeat(r"(a+)+b"), has_slow_repeat(r"tensor '[^']+' not found")
    (True, False)
    """
    inner: list[bool] = []  # for every open group: whether it holds a repeat or a choice
    bare = re.sub(r"\\.", "x", pattern)  # escapes and classes stand for one character each
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    for position, character in enumerate(bare):
        if character == "(":
            inner.append(False)
        elif character == ")" and inner:
            holds = inner.pop()
            if holds and bare[position + 1 : position + 2] in UNBOUNDED:
                return True
            if inner:
                inner[-1] = inner[-1] or holds
        elif inner and (character in UNBOUNDED or character == "|"):
            inner[-1] = True
    return False
