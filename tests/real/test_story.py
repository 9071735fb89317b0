"""The whole story with the real wheel, the real demo model and real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]
CLI = [sys.executable, "-m", "enginehouse"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with folders of the test's own; the fetched model is the user's cache's."""
    folder = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "ENGINEHOUSE_STATE_DIR": str(folder / "state"),
        "ENGINEHOUSE_CONFIG_DIR": str(folder / "config"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    """A free port."""
    return free_port()


@pytest.fixture(scope="module")
def up(home: dict[str, str], port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`enginehouse up` with a short budget; gives the port once it answers."""
    log = tmp_path_factory.mktemp("log") / "up.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*CLI, "up", "--budget", "20s", "--port", str(port)], env=home, stdout=out, stderr=out
        )
    try:
        wait_ready(child, port, log)
        yield port
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0, log.read_text()
    assert "tok/s" in log.read_text()


def wait_ready(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import urllib.error
    import urllib.request

    while child.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if json.load(answer)["status"] == "ok":
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_the_openai_client_is_served(up: int) -> None:
    """The `openai` package streams, asks whole, lists models, and gets a proper 404."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{up}/v1", api_key="none")
    with client:
        (model,) = client.models.list().data
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name a colour."}]
        whole = client.chat.completions.create(
            model=model.id,
            messages=messages,
            max_tokens=8,
        )
        assert whole.choices[0].message.content
        stream = client.chat.completions.create(
            model=model.id,
            messages=messages,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8
        text = client.completions.create(model=model.id, prompt="The sky is", max_tokens=4)
        assert text.choices[0].text
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(
                model="nope",
                messages=messages,
            )


def test_a_second_up_on_the_same_port_says_who_has_it(up: int, home: dict[str, str]) -> None:
    """The clash is told at once, with exit code 4, naming Enginehouse."""
    done = subprocess.run(
        [*CLI, "up", "--port", str(up)], env=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "port.in_use" in done.stderr
    assert "Enginehouse" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_again_serves_the_stored_choice_and_a_kill_leaves_nothing(
    up: int, home: dict[str, str], tmp_path: Path
) -> None:
    """A second start makes no trials; after SIGKILL the next command says what it cleared."""
    port = free_port()
    log = tmp_path / "again.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*CLI, "up", "--budget", "20s", "--port", str(port)], env=home, stdout=out, stderr=out
        )
    wait_ready(child, port, log)
    assert "trial 1" not in log.read_text()
    family = psutil.Process(child.pid).children(recursive=True)
    assert family
    child.kill()
    child.wait()
    done = subprocess.run(
        [*CLI, "trials", "list", "--json"], env=home, capture_output=True, text=True, check=True
    )
    assert "cleared" in done.stderr
    assert json.loads(done.stdout)
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert gone
