"""`llm` with its Ollama plugin, and plain `curl`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


def test_llm(url: str, tmp_path: Path) -> None:
    """`llm` finds the model by the plugin and prompts it, streamed and whole."""
    home = {**os.environ, "OLLAMA_HOST": url, "LLM_USER_PATH": str(tmp_path)}

    def llm(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [word for word in llm("models", "list").split() if word.endswith(f"{MODEL}:latest")]
    asked = ("-m", names[0], "-o", "num_predict", "8", "Say hi.")
    assert llm(*asked).strip()
    assert llm("--no-stream", *asked).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize(
    ("path", "body", "ends"),
    [
        ("/v1/chat/completions", {"max_tokens": 4, "stream": True}, "data: [DONE]"),
        ("/v1/messages", {"max_tokens": 4, "stream": True}, '"type":"message_stop"}'),
        ("/api/chat", {"options": {"num_predict": 4}}, "}"),
        ("/api/chat", {"options": {"num_predict": 4}, "stream": False}, "}"),
    ],
)
def test_curl(url: str, path: str, body: dict[str, object], ends: str) -> None:
    """A line of the documentation, typed."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **body}
    done = subprocess.run(
        ["curl", "-sSN", "--fail", f"{url}{path}", "-d", json.dumps(asked)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip().endswith(ends)
