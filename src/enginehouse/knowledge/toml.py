"""Read the reviewed data: TOML files beside this one."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = files("enginehouse.knowledge")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML (`tomllib`, on Python 3.10 `tomli`)."""
    return dict(tomllib.loads(text))
