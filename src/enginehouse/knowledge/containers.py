"""Load and validate the reviewed table of container images (`containers.toml`)."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any

from enginehouse.core.errors import InternalError
from enginehouse.core.image import Image
from enginehouse.knowledge.signatures_loader import SOURCE, STATUSES
from enginehouse.knowledge.toml import parse_toml

LISTS = ("architectures", "command", "sources")
FIELDS = {field.name for field in fields(Image)}


@cache
def load_images() -> tuple[Image, ...]:
    """Return the known images, the preferred ones first.

    Raises:
        InternalError: `knowledge.bad_image`, with what is wrong.
    """
    text = (files("enginehouse.knowledge") / "containers.toml").read_text(encoding="utf-8")
    try:
        return tuple(image_of(entry) for entry in parse_toml(text)["image"])
    except (KeyError, TypeError, ValueError) as problem:
        raise InternalError(
            "knowledge.bad_image",
            "the knowledge file containers.toml is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=("install Enginehouse again", "report it with this text"),
        ) from problem


def image_of(entry: Mapping[str, Any]) -> Image:
    """Validate one entry.

    Raises:
        KeyError, TypeError, ValueError: for what is missing, misspelt or of the wrong kind.
    """
    if unknown := set(entry) - FIELDS:
        raise ValueError(f"{entry.get('name')}: unknown fields: {', '.join(sorted(unknown))}")
    for name in LISTS:
        if not entry[name] or not all(isinstance(word, str) for word in entry[name]):
            raise TypeError(f"{entry.get('name')}: {name} is not a list of texts")
    if not all(SOURCE.fullmatch(source) for source in entry["sources"]):
        raise ValueError(f"{entry['name']}: sources are URLs or owner/repository:path")
    if entry["status"] not in STATUSES:
        raise ValueError(f"{entry['name']}: an unknown status")
    if not isinstance(entry["checked"], datetime.date):
        raise TypeError(f"{entry['name']}: checked is not a date")
    if ":" not in entry["name"].rsplit("/", 1)[-1]:
        raise ValueError(f"{entry['name']}: an image is named with its tag")
    values: dict[str, Any] = {
        name: tuple(value) if name in LISTS else value for name, value in entry.items()
    }
    return Image(**{**values, "checked": entry["checked"].isoformat()})
