"""Load and validate what is known of machines: problems, L4T releases, modules, speeds, images."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from enginehouse.core.conditions import FORMS, OPERATORS, PLACE, Condition
from enginehouse.core.doctor import COSTS, Rule
from enginehouse.core.errors import InternalError
from enginehouse.core.facts import Value
from enginehouse.core.known import EngineImage, Known, MemorySpeed, Module, Release
from enginehouse.knowledge.signatures_loader import SOURCE, STATUSES
from enginehouse.knowledge.toml import parse_toml

ROOT = files("enginehouse.knowledge") / "machine"
GROUPS = ("gpu", "engine", "image")
TEXTS = ("id", "what", "costs", "evidence", "status")
FACT = re.compile(r"[a-z]+(\.([A-Za-z0-9_]+|\*))+")
T = TypeVar("T")


@cache
def load_known() -> Known:
    """Return the tables that facts are enriched with.

    Raises:
        InternalError: `knowledge.bad_fact`, naming the file and what is wrong with it.
    """
    return Known(
        releases=_table("jetpack.toml", Release),
        modules=_table("modules.toml", Module),
        speeds=_table("bandwidth.toml", MemorySpeed),
        images=_table("images.toml", EngineImage),
    )


@cache
def load_rules() -> tuple[Rule, ...]:
    """Return the rules that make facts problems, by file and place in it.

    Raises:
        InternalError: `knowledge.bad_fact`, naming the file and what is wrong with it.
    """
    names = sorted(file.name for file in ROOT.iterdir() if file.name.endswith("-problems.toml"))
    rules = [rule for name in names for rule in _read(name, rules_of)]
    twice = {rule.id for rule in rules if sum(other.id == rule.id for other in rules) > 1}
    if twice:
        raise _bad("machine", ValueError(f"two problems have one id: {', '.join(sorted(twice))}"))
    return tuple(rules)


def _table(name: str, kind: type[T]) -> tuple[T, ...]:
    return _read(name, lambda document: entries_of(document, kind))


def _read(name: str, make: Callable[[Mapping[str, Any]], tuple[T, ...]]) -> tuple[T, ...]:
    try:
        return make(parse_toml((ROOT / name).read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, re.error) as problem:
        raise _bad(name, problem) from problem


def _bad(name: str, problem: Exception) -> InternalError:
    return InternalError(
        "knowledge.bad_fact",
        f"the knowledge file machine/{name} is not valid",
        evidence=(f"{type(problem).__name__}: {problem}",),
        remedies=("install Enginehouse again", "report it with this text"),
    )


def entries_of(document: Mapping[str, Any], kind: type[T]) -> tuple[T, ...]:
    """Validate a table whose sources and date stand once, at its head.

    Raises:
        TypeError, ValueError: for what is missing, misspelt or of the wrong kind.
    """
    _check_sources(document["sources"], document["checked"])
    if extra := set(document) - {"kind", "sources", "checked", "entry"}:
        raise ValueError(f"unknown fields: {', '.join(sorted(extra))}")
    for entry in document["entry"]:
        if "pattern" in entry:
            re.compile(entry["pattern"])
    return tuple(kind(**entry) for entry in document["entry"])


def rules_of(document: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Validate a file of problems.

    Raises:
        KeyError, TypeError, ValueError: for what is missing, misspelt or of the wrong kind.
    """
    if document["kind"] != "problem" or set(document) != {"kind", "entry"}:
        raise ValueError("a file of problems has kind = 'problem' and entries")
    return tuple(rule_of(entry) for entry in document["entry"])


def rule_of(entry: Mapping[str, Any]) -> Rule:
    """Validate one problem's entry."""
    known = {*TEXTS, "cost", "when", "unless", "each", "remedies", "sources", "checked"}
    if unknown := set(entry) - known:
        raise ValueError(f"{entry.get('id')}: unknown fields: {', '.join(sorted(unknown))}")
    for name in TEXTS:
        if not isinstance(entry[name], str) or not entry[name]:
            raise TypeError(f"{entry.get('id')}: {name} is not a text")
    if entry["cost"] not in COSTS or entry["status"] not in STATUSES:
        raise ValueError(f"{entry['id']}: cost is one of {list(COSTS)}, status of {STATUSES}")
    if not entry["remedies"] or not all(isinstance(text, str) for text in entry["remedies"]):
        raise TypeError(f"{entry['id']}: remedies is not a list of texts that says something")
    _check_sources(entry["sources"], entry["checked"])
    each = entry.get("each", "")
    if each not in ("", *GROUPS):
        raise ValueError(f"{entry['id']}: each is one of {GROUPS}")
    for text in (entry["what"], entry["costs"], entry["evidence"], *entry["remedies"]):
        _check_places(entry["id"], text, each)
    if not entry["when"]:
        raise ValueError(f"{entry['id']}: a problem without a condition is always one")
    return Rule(
        id=entry["id"],
        cost=entry["cost"],
        what=entry["what"],
        costs=entry["costs"],
        evidence=entry["evidence"],
        remedies=tuple(entry["remedies"]),
        when=tuple(condition_of(table, each) for table in entry["when"]),
        unless=tuple(condition_of(table, each) for table in entry.get("unless", ())),
        sources=tuple(entry["sources"]),
        status=entry["status"],
        checked=entry["checked"].isoformat(),
        each=each,
    )


def condition_of(table: Mapping[str, Any], each: str = "") -> Condition:
    """Validate one condition: `fact`, one operator with its value, and perhaps `of`."""
    operators = set(table) - {"fact", "of"}
    if len(operators) != 1 or "fact" not in table:
        raise ValueError(f"a condition has a fact and one operator: {dict(table)}")
    operator = operators.pop()
    if operator not in {*OPERATORS, "known"}:
        raise ValueError(f"unknown operator {operator}")
    of = table.get("of", "")
    if of and operator not in ("below", "above"):
        raise ValueError(f"only below and above compare with another fact: {dict(table)}")
    for name in (table["fact"], of):
        if name and not FACT.fullmatch(name):
            raise ValueError(f"{name!r} is not a fact's name")
        if "*" in name and not (each and name.startswith(f"{each}.*.")):
            raise ValueError(f"{name} needs each = {name.split('.')[0]!r}")
    return Condition(table["fact"], operator, _value(operator, table[operator]), of)


def _value(operator: str, value: Any) -> Value:
    if operator == "one_of":
        if not isinstance(value, list) or not value:
            raise TypeError("one_of needs a list")
        return tuple(value)
    if operator == "known" and not isinstance(value, bool):
        raise TypeError("known needs true or false")
    if operator in ("below", "above") and (
        isinstance(value, bool) or not isinstance(value, (int, float))
    ):
        raise TypeError(f"{operator} needs a number")
    if not isinstance(value, (str, int, float, bool)):
        raise TypeError(f"{operator} needs a text, a number or true or false")
    return value


def _check_sources(sources: Sequence[str], checked: object) -> None:
    if not sources:
        raise ValueError("no source")
    for source in sources:
        if not SOURCE.fullmatch(source):
            raise ValueError(f"a source is a URL or owner/repository:path, not {source!r}")
    if not isinstance(checked, datetime.date):
        raise TypeError("checked is not a date")


def _check_places(id: str, text: str, each: str) -> None:
    if text.count("{") != len(PLACE.findall(text)):
        raise ValueError(f"{id}: a place in «{text}» is not a fact's name")
    for name, form in PLACE.findall(text):
        if form not in FORMS:
            raise ValueError(f"{id}: {form} is not one of {', '.join(FORMS)}")
        if "*" in name and not (each and name.startswith(f"{each}.*.")):
            raise ValueError(f"{id}: {name} needs each")
