"""Pull a model from a hub through the gateway: its progress, its failures, what is kept of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateways import Running, running
from tests.integration.houses import House
from tests.model_writers import write_gguf

MODEL = "hf.co/me/tiny"
WEIGHTS = {f"blk.{number}.ffn_up.weight": (1024, 1024) for number in range(8)}  # 32 MiB


@dataclass
class Hub:
    """A hub on a loopback port; `files` are those of the repository `me/tiny`."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    is_silent: bool = False
    pause_s: float = 0.0
    sent: int = 0

    def env(self, home: Path) -> dict[str, str]:
        """Return the environment of who asks this hub."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip


def _handler(hub: Hub, over: threading.Event) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, has_body: bool) -> None:
            if hub.is_silent:
                over.wait(60)
                return
            path = self.path.partition("?")[0]
            if path == "/api/models/me/tiny":
                siblings = [{"rfilename": name} for name in hub.files]
                self._send(json.dumps({"id": "me/tiny", "siblings": siblings}).encode(), has_body)
            elif path.startswith("/me/tiny/resolve/main/"):
                content = hub.files.get(path.removeprefix("/me/tiny/resolve/main/"))
                if content is None:
                    self._refuse("EntryNotFound")
                else:
                    self._send(content, has_body)
            else:
                self._refuse("RepoNotFound")

        def _refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, body: bytes, has_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if not has_body:
                return
            try:
                for start in range(0, len(body), 1 << 20):
                    self.wfile.write(body[start : start + (1 << 20)])
                    hub.sent += len(body[start : start + (1 << 20)])
                    over.wait(hub.pause_s)
            except (BrokenPipeError, ConnectionResetError):
                pass

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub that has one repository of one file."""
    hub, over = Hub(""), threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, over))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.files["tiny.gguf"] = write_gguf(tmp_path / "hub.gguf").read_bytes()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a house that nobody has used."""
    return House(tmp_path)


def pull(gateway: Running, name: str, **fields: object) -> tuple[int, list[Any]]:
    """Pull a model; return the status and the documents."""
    said = gateway.ask("/api/pull", {"model": name, **fields})
    return said.status, said.lines


def env_of(hub: Hub, house: House) -> Mapping[str, str]:
    return hub.env(house.folder / "hf")


def test_a_pulled_model_is_served_until_it_is_deleted(hub: Hub, house: House) -> None:
    """Pulled, listed, asked, there after a restart, and forgotten when it is deleted."""
    with running(house, env=env_of(hub, house)) as gateway:
        assert gateway.chat(model=MODEL) == 404
        assert pull(gateway, MODEL, stream=False) == (200, [{"status": "success"}])
        assert gateway.names() == ["fake:latest", f"{MODEL}:latest"]
        [listed] = [m for m in gateway.ask("/api/tags").lines[0]["models"] if MODEL in m["name"]]
        assert listed["digest"] == hashlib.sha256(hub.files["tiny.gguf"]).hexdigest()
        assert listed["size"] == len(hub.files["tiny.gguf"])
        for name in (MODEL, f"{MODEL}:latest"):
            assert gateway.chat(model=name) == 200
        sent = hub.sent
        assert pull(gateway, MODEL)[1][-1] == {"status": "success"}
    assert MODEL in house.run("models", "list").stdout
    with running(house, env=env_of(hub, house)) as gateway:
        assert gateway.chat(model=MODEL) == 200
        assert gateway.ask("/api/delete", {"model": MODEL}, method="DELETE").status == 200
        assert gateway.names() == ["fake:latest"]
        assert gateway.chat(model=MODEL) == 404
        assert gateway.ask("/api/delete", {"model": MODEL}, method="DELETE").status == 404
    assert hub.sent == sent
    with running(house, env=env_of(hub, house)) as gateway:
        assert gateway.names() == ["fake:latest"]
        assert list((house.folder / "hf").rglob("tiny.gguf"))  # its file stays
        assert pull(gateway, MODEL, stream=False)[0] == 200
    assert hub.sent - sent < len(hub.files["tiny.gguf"])


def test_a_stream_tells_the_progress(hub: Hub, house: House) -> None:
    """Manifest, then bytes of a digest that grow to the total, a check, and success at the end."""
    hub.files["tiny.gguf"] = write_gguf(house.folder / "b.gguf", tensors=WEIGHTS).read_bytes()
    hub.pause_s = 0.05
    size = len(hub.files["tiny.gguf"])
    with running(house, env=env_of(hub, house)) as gateway:
        status, lines = pull(gateway, MODEL)
    assert status == 200
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-2:] == [{"status": "writing manifest"}, {"status": "success"}]
    fetched = [line for line in lines if "digest" in line]
    digest = "sha256:" + hashlib.sha256(hub.files["tiny.gguf"]).hexdigest()
    assert {(line["status"], line["digest"], line["total"]) for line in fetched} == {
        ("fetching me/tiny/tiny.gguf", digest, size)
    }
    completed = [line["completed"] for line in fetched]
    assert completed == sorted(completed)
    assert (completed[0], completed[-1]) == (0, size)
    assert len(set(completed)) > 2, completed
    checked = [line for line in lines if line["status"].startswith("checking ")]
    assert checked[-1]["completed"] == checked[-1]["total"] == size


def test_a_quantization_is_picked_by_its_tag(hub: Hub, house: House) -> None:
    """`name:Q8_0` takes that file; one that the repository does not have is told."""
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"):
        kind = {"general.name": name}
        hub.files[name] = write_gguf(house.folder / name, kind).read_bytes()
    del hub.files["tiny.gguf"]
    with running(house, env=env_of(hub, house)) as gateway:
        for tag, file in ((":Q8_0", "tiny-Q8_0.gguf"), (":q4_k_m", "tiny-Q4_K_M.gguf"),
                          ("", "tiny-Q4_K_M.gguf")):  # fmt: skip
            assert pull(gateway, MODEL + tag, stream=False)[0] == 200
            [listed] = [
                model for model in gateway.ask("/api/tags").lines[0]["models"]
                if model["name"] == MODEL + (tag or ":latest")
            ]  # fmt: skip
            assert listed["digest"] == hashlib.sha256(hub.files[file]).hexdigest()
        status, [error] = pull(gateway, MODEL + ":Q4_K", stream=False)
        assert (status, error["code"]) == (400, "model.hub.which_file")
        assert "none of Q4_K" in error["error"]


def test_what_a_hub_does_not_have_is_not_found(hub: Hub, house: House) -> None:
    """No such repository or file, or no name at all: 404, in a stream an error at its end."""
    with running(house, env=env_of(hub, house)) as gateway:
        for name in ("hf.co/me/none", "hf.co/me", "hf.co/me/tiny/none.gguf", "nowhere:1b", "../x"):
            status, [error] = pull(gateway, name, stream=False)
            assert (status, error["code"]) == (404, "model_not_found"), name
            assert pull(gateway, name)[1][-1]["code"] == "model_not_found"
        assert gateway.names() == ["fake:latest"]
        assert gateway.chat() == 200


def test_what_is_no_model_is_told(hub: Hub, house: House) -> None:
    """A file that is no GGUF is fetched, refused by its own error, and not offered."""
    hub.files["tiny.gguf"] = b"<!DOCTYPE html>" * 100
    with running(house, env=env_of(hub, house)) as gateway:
        status, [error] = pull(gateway, MODEL, stream=False)
        assert (status, error["code"]) == (400, "model.file.not_gguf")
        assert gateway.names() == ["fake:latest"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_hub_out_of_reach_is_told_soon(hub: Hub, house: House, is_there: bool) -> None:
    """Nothing listens there, or nothing is answered: told in seconds, and served on meanwhile."""
    hub.is_silent = True
    env = {**env_of(hub, house), **({} if is_there else {"HF_ENDPOINT": "http://127.0.0.1:9"})}
    with running(house, env=env) as gateway:
        for name in (MODEL, f"{MODEL}/tiny.gguf"):
            began = time.monotonic()
            status, [error] = pull(gateway, name, stream=False)
            assert (status, error["code"]) == (503, "network.unreachable")
            assert time.monotonic() - began < 8
            assert gateway.chat() == 200


@pytest.mark.long
def test_a_pull_nobody_waits_for_is_broken_off(hub: Hub, house: House) -> None:
    """When its client has gone the transfer ends; so it does when the server is asked to end."""
    hub.files["tiny.gguf"] = write_gguf(house.folder / "b.gguf", tensors=WEIGHTS).read_bytes()
    hub.pause_s = 0.5
    body = json.dumps({"model": MODEL}).encode()
    with running(house, env=env_of(hub, house)) as gateway:
        request = urllib.request.Request(f"{gateway.url}/api/pull", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            while b'"digest"' not in answer.readline():
                pass
        ends = time.monotonic() + 10
        while "pull" not in _logged(house):
            assert time.monotonic() < ends
            time.sleep(0.1)
        assert gateway.chat() == 200
        assert gateway.names() == ["fake:latest"]
        with urllib.request.urlopen(request, timeout=30) as answer:
            while b'"digest"' not in answer.readline():
                pass
            gateway.process.send_signal(signal.SIGINT)
            began = time.monotonic()
            gateway.process.wait(25)
            assert time.monotonic() - began < 20
    assert hub.sent < 2 * len(hub.files["tiny.gguf"])


def _logged(house: House) -> list[str]:
    """Return the operations of the requests that have ended."""
    rows = house.run_json("requests", "list")["requests"]
    return [row["operation"] for row in rows]


@pytest.mark.long
def test_names_that_clients_gave_survive_a_restart(house: House) -> None:
    """A copy is listed and asked after a restart; one that was deleted is not."""
    with running(house) as gateway:
        for name in ("mine", "me/other:1b"):
            copy = {"source": "fake", "destination": name}
            assert gateway.ask("/api/copy", copy).status == 200
            assert gateway.chat(model=name) == 200
        assert gateway.ask("/api/copy", {"source": "no", "destination": "x"}).status == 404
    with running(house) as gateway:
        assert gateway.names() == ["fake:latest", "mine:latest", "me/other:1b"]
        assert gateway.chat(model="me/other:1b") == 200
        assert gateway.ask("/api/delete", {"model": "mine"}, method="DELETE").status == 200
    with running(house) as gateway:
        assert gateway.names() == ["fake:latest", "me/other:1b"]
        assert gateway.chat(model="mine") == 404
    (house.folder / "state" / "aliases.json").write_text("broken")
    with running(house) as gateway:
        assert gateway.names() == ["fake:latest"]
        assert gateway.chat() == 200
