"""A report as JSON: the fields of `core/report.py`, `schema` first."""

from __future__ import annotations

import msgspec

from enginehouse.core.report import Report


class Json:
    """The JSON format."""

    name = "json"

    def render(self, report: Report) -> str:
        """Return one JSON document."""
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


FORMAT = Json()
