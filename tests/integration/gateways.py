"""A gateway over fake engines in a process of its own, with a user's house around it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.app_gateway import HouseLibrary, open_serving
from enginehouse.core.catalog import Served
from enginehouse.core.model import Model
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.paths import state_dir
from enginehouse.edges.records import Records
from enginehouse.edges.settings_file import load_settings
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from tests.integration.conftest import fake_plan
from tests.integration.houses import House

CHAT = "/v1/chat/completions"
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def lines(self) -> list[Any]:
        """The documents of a stream, or the only one."""
        return [json.loads(line) for line in self.text.splitlines()]


@dataclass(frozen=True)
class Running:
    """A gateway that answers at a URL."""

    url: str
    process: subprocess.Popen[str]

    def ask(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None,
        method: str = "",
    ) -> Said:  # fmt: skip
        """Send a request and read the whole answer; a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        told = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, told, method=method or None)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Said(answer.status, dict(answer.headers.items()), answer.read().decode())
        except urllib.error.HTTPError as problem:
            with problem:
                told = dict(problem.headers.items())
                return Said(problem.code, told, problem.read().decode())

    def chat(self, key: str = "", model: str = "fake") -> int:
        """Ask for two tokens; return the status."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.ask(CHAT, ASK | {"model": model}, headers).status

    def names(self) -> list[str]:
        """Return the names in `/api/tags`."""
        return [model["name"] for model in self.ask("/api/tags").lines[0]["models"]]


@contextmanager
def running(house: House, *script: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Serve the model `fake`, and the house's models, by fake engines until the block ends.

    Nothing may be left behind then, no traceback either.
    """
    log = house.folder / "gateway.log"
    with log.open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.gateways", *script],
            env={**house.env, "ENGINEHOUSE_GATEWAY_PORT": "0", **(env or {})},
            stdout=subprocess.PIPE, stderr=said, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        assert url.startswith("http"), log.read_text()
        yield Running(url, child)
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
    assert child.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list((house.folder / "state" / "leases").glob("*.json"))


def _offer_of(model: Model, state: Path, script: list[str]) -> Offer:
    facts = Served(model.name, digest=model.digest, bytes=model.file_bytes, format=model.format)
    return _offer(facts, state, script)


def _others(state: Path) -> tuple[Offer, ...]:
    """Return what `OTHERS` asks for beside the first: name, script, bytes, whether it is pinned."""
    found = []
    for name, script, needed_bytes, is_pinned in json.loads(os.environ.get("OTHERS", "[]")):
        offer = _offer(Served(name), state, script)
        steps = tuple(dataclasses.replace(s, needed_bytes=needed_bytes) for s in offer.steps)
        found.append(dataclasses.replace(offer, steps=steps, is_pinned=is_pinned))
    return tuple(found)


def _offer(facts: Served, state: Path, script: list[str]) -> Offer:
    folder = state / "engines" / facts.name
    folder.mkdir(parents=True, exist_ok=True)
    plan = dataclasses.replace(fake_plan(folder, *script), model_name=facts.name)
    return Offer(facts, (Step("as chosen", lambda context: plan),))


def main(script: list[str]) -> None:
    """Serve until SIGINT, by the house's settings."""
    settings, state = load_settings(None, {}), state_dir()
    library = HouseLibrary(settings, state, lambda model: _offer_of(model, state, script))
    with Records(state / "records.sqlite").opened() as records:
        models = records.models()
    offers = (
        _offer(Served("fake"), state, script),
        *(_offer_of(model, state, script) for model in models),
        *_others(state),
    )
    serving = open_serving(settings, state, library)
    leases = LeaseBook(state / "leases")
    asyncio.run(serve(offers, serving, leases, lambda url: print(url, flush=True)))


if __name__ == "__main__":
    os.umask(0o022)
    main(sys.argv[1:])
