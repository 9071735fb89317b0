"""The API description is true: schemathesis finds no 500 and no status that is not in it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.clients.openapi_bounds import ALIAS, MODEL, NOWHERE

ROOT = Path(__file__).parents[2]
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance")  # fmt: skip
NOT_DONE = (501,)
"""No server error: what the engine or Enginehouse cannot do says so by 501, and the description
names it there. Anything else from 500 on is a finding, 502 and 503 too."""
CONFIG = """
seed = 6
workers = 2
request-timeout = 30
warnings = false
hooks = "tests.clients.openapi_bounds"

[generation]
mode = "all"
max-examples = 2
deterministic = true
database = "none"
no-shrink = true

[phases.coverage]
unexpected-methods = ["options", "trace", "put"]
[phases.stateful]
enabled = false
[phases.fuzzing.extra-data-sources]
responses = false

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", {expected}]
"""


def named(node: Any) -> Any:
    """Return a schema in which a model's name is the demo model's, or one that nobody has."""
    if isinstance(node, list):
        return [named(one) for one in node]
    if not isinstance(node, dict):
        return node
    known = {"type": "string", "enum": [MODEL, MODEL + ":latest", NOWHERE]}
    return {
        key: {
            name: known if name in ("model", "source") else named(kind)
            for name, kind in value.items()
            if name not in ALIKE
        } if key == "properties" else named(value)
        for key, value in node.items()
    }  # fmt: skip


TWICE = ("/chat/completions", "/rerank", "/v1/reranking", "/reranking", "/completions",
         "/embedding", "/models", "/v1/health", "/responses", "/responses/{id}",
         "/responses/{id}/input_items")  # fmt: skip
"""Further paths of routes that are asked anyway."""


ALIKE = ("top_p", "top_k", "seed", "presence_penalty", "frequency_penalty",
         "max_completion_tokens")  # fmt: skip
"""Fields that go the way of `temperature` and `max_tokens`: left out, each costs 20 requests."""


def bounded(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description with requests for models that are there; the answers stay."""
    for path in TWICE:
        del description["paths"][path]
    for methods in description["paths"].values():
        for operation in methods.values():
            if "requestBody" in operation:
                operation["requestBody"] = named(operation["requestBody"])
    return description


PYTHONS_FAULT = "AST constructor recursion depth mismatch"
"""What Python 3.11 before 3.11.8 raises within hypothesis (python/cpython#106905)."""


@pytest.mark.long
@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_description_is_true(url: str, tmp_path: Path) -> None:
    """Good and bad requests of every operation get what the description says."""
    with urlopen(f"{url}/openapi.json", timeout=10) as answer:
        description = json.load(answer)
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert not {"default", "500"} & set(operation["responses"]), (method, path)
    (tmp_path / "openapi.json").write_text(json.dumps(bounded(description)))
    config = CONFIG.format(expected=", ".join(f'"{status}"' for status in NOT_DONE))
    (tmp_path / "schemathesis.toml").write_text(config)
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"),
         "--config-file", str(tmp_path / "schemathesis.toml"),
         "run", str(tmp_path / "openapi.json"), "--url", url, "--checks", ",".join(CHECKS),
         "--continue-on-failure"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    forget = Request(f"{url}/api/delete", json.dumps({"model": ALIAS}).encode(), method="DELETE")
    with contextlib.suppress(HTTPError):  # 404: it was taken away already
        urlopen(forget, timeout=10).close()
    said = done.stdout
    is_pythons = "Runtime Error: 1\n" in said and PYTHONS_FAULT in said
    assert "unique failure" not in said, said[-20000:]
    assert done.returncode == 0 or is_pythons, said[-20000:] + done.stderr[-2000:]
    with urlopen(f"{url}/health", timeout=10) as answer:
        assert json.load(answer)["restarts"] == 0
