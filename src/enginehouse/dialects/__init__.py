"""One file an API dialect; each holds one `DIALECT`."""

from __future__ import annotations

import importlib
import pkgutil

from enginehouse.core.dialect import Dialect


def load_dialects() -> tuple[Dialect, ...]:
    """Return every dialect of this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").DIALECT for name in names)
