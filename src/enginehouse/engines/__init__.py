"""One file an engine; each holds one `ENGINE`."""

from __future__ import annotations

import importlib
import pkgutil

from enginehouse.core.engine import Engine


def load_engines() -> dict[str, Engine]:
    """Return every engine of this folder by its name."""
    engines: dict[str, Engine] = {}
    for module in pkgutil.iter_modules(__path__):
        engine: Engine = importlib.import_module(f"{__name__}.{module.name}").ENGINE
        engines[engine.name] = engine
    return engines
