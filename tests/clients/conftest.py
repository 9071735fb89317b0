"""One endpoint for all clients: `enginehouse up` with the real wheel and the demo model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio.plugin

from tests.real.test_story import wait_ready

CLI = [sys.executable, "-m", "enginehouse"]
HERE = Path(__file__).parent
MODEL = "smollm2-135m"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run async tests on one loop, since LangChain keeps its connections; mark what may fail."""
    for item in items:
        if (
            isinstance(item, pytest_asyncio.plugin.PytestAsyncioFunction)
            and item.path.parent == HERE
        ):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        reasons = getattr(getattr(item, "module", None), "TOO_HARD", {})
        reason = reasons.get(getattr(item, "originalname", None))
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root of an endpoint that a short search has chosen the settings of."""
    folder = tmp_path_factory.mktemp("clients")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {
        "ENGINEHOUSE_STATE_DIR": str(folder / "state"),
        "ENGINEHOUSE_CONFIG_DIR": str(folder / "config"),
    }
    log = folder / "up.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*CLI, "up", "--budget", "5s", "--port", str(port)],
            env={**os.environ, **home}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        wait_ready(child, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
