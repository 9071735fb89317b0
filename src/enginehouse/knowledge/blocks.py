"""Load and validate the reviewed register of blocks (`blocks.toml`)."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from enginehouse.core.block import Block, Trigger
from enginehouse.core.errors import InternalError
from enginehouse.knowledge.machine_facts import condition_of
from enginehouse.knowledge.signatures_loader import SOURCE, STATUSES, load_causes
from enginehouse.knowledge.toml import parse_toml

TEXTS = ("id", "engine", "cause", "what", "evidence", "again", "status")
FIELDS = {*TEXTS, "applies", "lifted", "sources", "checked", "rule"}


@cache
def load_blocks() -> tuple[Block, ...]:
    """Return the reviewed blocks.

    Raises:
        InternalError: `knowledge.bad_block`, with what is wrong.
    """
    text = (files("enginehouse.knowledge") / "blocks.toml").read_text(encoding="utf-8")
    try:
        return tuple(block_of(entry) for entry in parse_toml(text)["entry"])
    except (KeyError, TypeError, ValueError) as problem:
        raise InternalError(
            "knowledge.bad_block",
            "the knowledge file blocks.toml is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=("install Enginehouse again", "report it with this text"),
        ) from problem


def block_of(entry: Mapping[str, Any]) -> Block:
    """Validate one entry.

    Raises:
        KeyError, TypeError, ValueError: for what is missing, misspelt or of the wrong kind.
    """
    if unknown := set(entry) - FIELDS:
        raise ValueError(f"{entry.get('id')}: unknown fields: {', '.join(sorted(unknown))}")
    for name in TEXTS:
        if not isinstance(entry[name], str) or not entry[name]:
            raise TypeError(f"{entry.get('id')}: {name} is not a text")
    is_rule = entry.get("rule", False)
    if bool(entry.get("lifted")) == is_rule:
        raise ValueError(f"{entry['id']}: a block has triggers, a rule has none")
    if entry["cause"] not in load_causes() or entry["status"] not in STATUSES:
        raise ValueError(f"{entry['id']}: an unknown cause or status")
    if not entry["sources"] or not all(SOURCE.fullmatch(source) for source in entry["sources"]):
        raise ValueError(f"{entry['id']}: sources are URLs or owner/repository:path")
    if not isinstance(entry["checked"], datetime.date):
        raise TypeError(f"{entry['id']}: checked is not a date")
    return Block(
        id=entry["id"],
        engine=entry["engine"],
        cause=entry["cause"],
        what=entry["what"],
        evidence=entry["evidence"],
        since=entry["checked"].isoformat(),
        again=entry["again"],
        applies=tuple(condition_of(table) for table in entry["applies"]),
        lifted_by=tuple(
            Trigger(table["says"], tuple(condition_of(each) for each in table["when"]))
            for table in entry.get("lifted", ())
        ),
        sources=tuple(entry["sources"]),
        status=entry["status"],
        is_rule=is_rule,
    )
