"""How long a client wants its model to stay loaded: `keep_alive`, as Ollama reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enginehouse.core.body import invalid
from enginehouse.core.settings import DURATION_UNITS

FOR_EVER_S = 100 * 365 * 86400.0


def read_keep_alive(fields: Mapping[str, Any]) -> float | None:
    """Return `keep_alive` in seconds: negative for ever, 0 unloads, None where nothing is said."""
    value = fields.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _bounded(value)
    if isinstance(value, str):
        text = value.strip().lower()
        sign = -1.0 if text.startswith("-") else 1.0
        seconds = _go_duration(text.lstrip("+-"))
        if seconds is not None:
            return _bounded(sign * seconds)
    raise invalid("keep_alive", "seconds or a duration such as 5m", value)


def _bounded(seconds: float) -> float:
    """A century or more is for ever, whatever the number."""
    return float(seconds) if -1.0 < seconds < FOR_EVER_S else -1.0


def _go_duration(text: str) -> float | None:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    units = {**DURATION_UNITS, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * units[unit] for number, unit in parts)
