"""One file a report format; each holds one `FORMAT`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from enginehouse.core.report import Report


class Format(Protocol):
    """How a report is laid out; `name` is what the command line calls it."""

    @property
    def name(self) -> str:
        """The format's name: md, json, html."""

    def render(self, report: Report) -> str:
        """Return the whole document."""


def load_formats() -> dict[str, Format]:
    """Return every format of this folder by its name."""
    formats: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        one: Format = importlib.import_module(f"{__name__}.{module.name}").FORMAT
        formats[one.name] = one
    return formats
