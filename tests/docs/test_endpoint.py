"""The endpoint's pages agree with the code: errors, routes, metrics, settings."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

from enginehouse.core.chat import Usage
from enginehouse.core.settings import SETTINGS
from enginehouse.core.statuses import STATUS
from enginehouse.dialects import load_dialects
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.openapi import OWN
from enginehouse.gateway.router import Router
from tests.docs.documents import INLINE, ROOT

ERROR_ROW = re.compile(r"^\| `([a-z_.]+)` \| (\d{3}) \|", re.MULTILINE)
METRIC_ROW = re.compile(r"^\| `(enginehouse_\w+)` \| (\w+) \| ([\w, ]*?) ?\|", re.MULTILINE)
SETTING = re.compile(r"`((?:gateway|serve|log)\.[a-z_]+)[` ]")
NO_SETTING = {*STATUS, "gateway.open"}
"""Ids of errors that look like settings."""


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_table_of_errors_is_the_one_of_the_code() -> None:
    """Every id stands in docs/api.md once, with its status, sorted by it."""
    rows = ERROR_ROW.findall(page("api.md"))
    assert len(rows) == len(dict(rows))
    assert {id: int(status) for id, status in rows} == STATUS
    assert [status for _, status in rows] == sorted(status for _, status in rows)


def test_every_route_is_told() -> None:
    """Each path that a dialect declares, and each of our own, stands in docs/api.md."""
    told = {word for code in INLINE.findall(page("api.md")) for word in code.split()}
    paths = {route.path for dialect in load_dialects() for route in dialect.routes}
    for path in (*(path.replace(":path}", "}") for path in paths), *OWN):
        assert path in told, path


def seen_metrics() -> dict[str, tuple[str, str]]:
    """Return each metric of the code with its type and labels, after a request with everything."""
    server = SimpleNamespace(
        plan=SimpleNamespace(engine="e", context_tokens=1),
        supervisor=SimpleNamespace(in_flight=0, memory=lambda: 0, restarts=0),
        gate=SimpleNamespace(waiting=0),
        is_ready=True,
    )
    router: Any = SimpleNamespace(servers={"m": server})
    metrics = Metrics(cast(Router, router))
    journey = Journey("openai", "chat", error_id="x", load_s=1.0, first_byte_s=1.0, chunks=2)
    journey.is_held = journey.is_truncated = True
    journey.usage = Usage(1, 2, 1)
    metrics.ended(journey)
    router.on_fallback("m", "step")
    seen = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = [label for label in family.samples[0].labels if label != "le"]
        seen[name] = (family.type, ", ".join(labels))
    return seen


def test_the_table_of_metrics_is_the_one_of_the_code() -> None:
    """Every metric stands in docs/metrics.md with its type and labels, and no other does."""
    rows = METRIC_ROW.findall(page("metrics.md"))
    assert {name: (kind, labels) for name, kind, labels in rows} == seen_metrics()


def test_every_query_asks_for_metrics_that_exist() -> None:
    """The examples name metrics of the table."""
    known = seen_metrics()
    asked = re.findall(r"enginehouse_\w+", page("metrics.md"))
    assert asked
    for name in asked:
        assert name in known or name.removesuffix("_bucket") in known, name


def test_settings_exist() -> None:
    """Each setting that the endpoint's pages name is one."""
    for name in ("api.md", "serving.md", "security.md", "metrics.md"):
        for key in SETTING.findall(page(name)):
            assert key in SETTINGS or key in NO_SETTING, f"{name}: {key}"
