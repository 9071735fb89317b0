"""Read `/api/create`: what only names a model anew is done, what would change it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from enginehouse.core.body import INVALID, bool_of, text_of
from enginehouse.core.dialect import Copy
from enginehouse.core.errors import UserError
from enginehouse.dialects.ollama.voice import PullLines

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
NAME = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,349}}/)?(?:{_PART}/)?{_PART}(?::{_PART})?")
"""A model's name, as Ollama takes it: a host (with a port), a namespace, the name, a tag."""
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
SAME = frozenset({"model", "name", "from", "stream"})
"""The fields that leave a model as it is."""


def is_name(name: str) -> bool:
    """Return whether a text can be the name of a model."""
    return NAME.fullmatch(name) is not None


def not_made(what: str, why: str) -> UserError:
    """Return the error for what is not done with models here."""
    return UserError(
        "request.not_supported", f"{what} is not supported by Enginehouse",
        evidence=(why,),
        remedies=("make models with their own tools; add files: enginehouse models add",),
    )  # fmt: skip


def read_create(fields: Mapping[str, Any], name: str) -> Copy:
    """Return what makes a model `from` another one.

    Raises:
        UserError: `request.invalid` for no model's name or nothing to make it from,
            `request.not_supported` for a model that would differ from the one it is made from.
    """
    if not is_name(name):
        raise UserError(
            INVALID, "invalid model name",
            evidence=(f"model: {json.dumps(name[:100])}",),
            remedies=("use letters, digits, dots, dashes and underscores",),
        )  # fmt: skip
    source = text_of(fields, "from")
    changes = [field for field, value in fields.items() if value and field not in SAME]
    if changes:
        raise UserError(
            "request.not_supported", f"/api/create with {changes[0]} is not supported",
            evidence=("a model is served as its file is, under more names than one",),
            remedies=(
                "send system, template and options with each request",
                "add a file: enginehouse models add",
            ),
        )  # fmt: skip
    if not source:
        raise UserError(
            INVALID, "neither 'from' or 'files' was specified",
            evidence=("there is nothing to make the model from",),
            remedies=("send from: the name of a model that is served",),
        )  # fmt: skip
    return Copy(source, name, PullLines(), bool_of(fields, "stream", True))
