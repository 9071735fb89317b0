"""Serving ends as it is asked to, before and after it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.integration.gateways import ASK, Running, running
from tests.integration.houses import House

SERVER = """
import asyncio, sys
from pathlib import Path
from enginehouse.edges.leases import LeaseBook
from enginehouse.core.catalog import Served
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving
from tests.integration.conftest import fake_plan
folder = Path(sys.argv[1])
plan = fake_plan(folder, *sys.argv[2:])
print("started", plan.endpoint.socket_path, flush=True)
serving = Serving("127.0.0.1", 0, 8, 5.0)
offers = (Offer(Served("fake"), (Step("as chosen", lambda context: plan),)),)
try:
    leases = LeaseBook(folder / "leases")
    asyncio.run(serve(offers, serving, leases, lambda url: print(url, flush=True)))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("script", "code"), [(("--never-ready",), 130), ((), 0)])
def test_an_end_before_it_serves_is_an_interruption(
    tmp_path: Path, script: tuple[str, ...], code: int
) -> None:
    """Before a token came out SIGINT is an interruption; after that it is how a server ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), *script],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert child.stdout is not None
    socket_path = child.stdout.readline().split()[1]
    if code == 0:
        assert child.stdout.readline().startswith("http://127.0.0.1:")
    else:
        while not os.path.exists(socket_path):
            assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == code
    assert not os.path.exists(socket_path)
    assert not list((tmp_path / "leases").glob("*"))


def loaded(gateway: Running) -> set[str]:
    """Return the models that are loaded."""
    return {model["name"] for model in gateway.ask("/api/ps").lines[0]["models"]}


def test_pinned_models_are_loaded_after_the_first(tmp_path: Path) -> None:
    """What is pinned is loaded without being asked for, one after another; others are not."""
    house = House(tmp_path)
    others: list[object] = [("one", [], 0, True), ("lazy", [], 0, False), ("two", [], 0, True)]
    with running(house, env={"OTHERS": json.dumps(others)}) as gateway:
        ends = time.monotonic() + 30
        while loaded(gateway) != {"fake:latest", "one:latest", "two:latest"}:
            assert time.monotonic() < ends, loaded(gateway)
            time.sleep(0.1)
        load = {"model": "one", "keep_alive": 0, "prompt": ""}
        assert gateway.ask("/api/generate", load).status == 200
        assert "one:latest" in loaded(gateway)  # pinned is pinned
    assert (house.folder / "gateway.log").read_text() == ""


def test_a_pinned_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    """Too large or broken: said in the log; the rest is loaded, and the first serves on."""
    house = House(tmp_path)
    broken = ["--fail", "it cannot be"]
    others = [("huge", [], 1 << 60, True), ("broken", broken, 0, True), ("good", [], 0, True)]
    with running(
        house, env={"OTHERS": json.dumps(others), "ENGINEHOUSE_SERVE_LOAD_WAIT": "20s"}
    ) as gateway:
        ends = time.monotonic() + 60
        while loaded(gateway) != {"fake:latest", "good:latest"}:
            assert time.monotonic() < ends, loaded(gateway)
            assert gateway.chat() == 200
            time.sleep(0.2)
        assert gateway.ask("/health").status == 200
    huge, failed = (house.folder / "gateway.log").read_text().splitlines()
    assert huge.startswith("huge is pinned (serve.pin) and could not be loaded: it needs about 1,1")
    assert failed.startswith("broken is pinned (serve.pin) and could not be loaded: ")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_requests_past_the_drain_deadline_end_with_an_error(tmp_path: Path, path: str) -> None:
    """A stream says why it ended, in its dialect; the terminal shows one line."""
    house = House(tmp_path)
    with running(
        house, "--token-s", "0.05", env={"ENGINEHOUSE_SERVE_DRAIN_DEADLINE": "1s"}
    ) as gateway:
        body = json.dumps({**ASK, "max_tokens": 4000, "stream": True}).encode()
        told = {"Content-Type": "application/json"}
        if path == "/api/chat":
            body = body.replace(b'"max_tokens": 4000', b'"options": {"num_predict": 4000}')
        request = urllib.request.Request(gateway.url + path, body, told)
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.readline()
            gateway.process.send_signal(signal.SIGTERM)
            heard = answer.read().decode().strip().splitlines()
        last = json.loads([line for line in heard if line][-1].removeprefix("data: "))
        error = last if path.startswith("/api") else last["error"]
        assert error["code"] == "server.stopping"
        gateway.process.wait(20)
    said = (house.folder / "gateway.log").read_text().splitlines()
    assert said == ["stopping: requests that were not done in time and were told so: 1"]


def test_an_end_while_pinned_models_load_waits_for_none(tmp_path: Path) -> None:
    """SIGINT in the middle of a load ends the server and the engine that was loading."""
    house = House(tmp_path)
    others = [("slow", ["--load-s", "600"], 0, True)]
    with running(house, env={"OTHERS": json.dumps(others)}) as gateway:
        while not list((house.folder / "state" / "engines" / "slow").glob("engine.log")):
            time.sleep(0.05)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.wait(30)
        assert time.monotonic() - began < 20
