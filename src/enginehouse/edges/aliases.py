"""Names that clients gave to models (`ollama cp`), kept in one small file."""

from __future__ import annotations

import json
import os
from pathlib import Path


def read_aliases(path: Path) -> dict[str, str]:
    """Return the kept names, each with the model it means; none where the file is not there."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: model for name, model in found.items() if isinstance(model, str)}


def write_aliases(path: Path, aliases: dict[str, str]) -> None:
    """Keep names, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(aliases, ensure_ascii=False, indent=1), "utf-8")
    os.replace(new, path)
