"""Models behind HTTP: only their headers travel, and only from the host that was named."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enginehouse.core.errors import EnginehouseError
from enginehouse.core.model import Model
from enginehouse.edges.model_files import read_url
from enginehouse.edges.model_sources import inspect_model, resolve_model
from enginehouse.edges.progress import SilentProgress
from tests.integration.test_models import Shelf
from tests.model_writers import write_checkpoint, write_gguf, write_parts

WEIGHTS = {f"blk.{number}.ffn_up.weight": (512, 1024) for number in range(8)}


@dataclass
class Served:
    """What a server gave away."""

    folder: Path
    has_ranges: bool = True
    redirect_to: str = ""
    bytes: int = 0
    paths: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A file server on a loopback port that counts every byte of a body."""
    (tmp_path / "www").mkdir()
    yield from _serve(Served(tmp_path / "www"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Served]:
    """A second host, which nobody named."""
    (tmp_path / "other").mkdir()
    yield from _serve(Served(tmp_path / "other"))


def _serve(state: Served) -> Iterator[Served]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            state.paths.append(self.path)
            state.tokens.append(self.headers.get("Authorization") or "")
            if state.redirect_to and self.path.endswith((".gguf", ".safetensors")):
                self.send_response(302)
                self.send_header("Location", state.redirect_to + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path = state.folder / self.path.rsplit("/", 1)[-1]
            if self.path.startswith("/api/"):
                names = [{"rfilename": file.name} for file in sorted(state.folder.iterdir())]
                self._send(200, json.dumps({"id": "me/tiny", "siblings": names}).encode(), "")
            elif not path.is_file():
                self._send(404, b"", "")
            else:
                self._file(path.read_bytes())

        def _file(self, content: bytes) -> None:
            if not content:
                self._send(416, b"", "bytes */0")
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if not asked or not state.has_ranges:
                self._send(200, content, "")
                return
            begin, end = int(asked[1]), min(int(asked[2]), len(content) - 1)
            self._send(206, content[begin : end + 1], f"bytes {begin}-{end}/{len(content)}")

        def _send(self, status: int, body: bytes, span: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            try:
                self.wfile.write(body)
                state.bytes += len(body)
            except (BrokenPipeError, ConnectionResetError):
                pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def inspect(url: str) -> Model:
    return inspect_model(url, Shelf(), Path("/nowhere"), SilentProgress())


def error_of(url: str) -> str:
    with pytest.raises(EnginehouseError) as caught:
        inspect(url)
    return caught.value.report.id


def test_only_the_header_of_a_remote_gguf_travels(served: Served) -> None:
    """Of an 8 MiB file 64 KiB are sent; the facts are those of the file."""
    path = write_gguf(served.folder / "big.gguf", tensors=WEIGHTS)
    found = inspect(f"{served.url}/models/big.gguf")
    assert found.groups == read_place_groups(path)
    assert found.file_bytes == path.stat().st_size > 8 << 20
    assert (found.name, found.path) == ("big", f"{served.url}/models/big.gguf")
    assert served.bytes <= 1 << 16
    assert len(served.paths) == 1


def read_place_groups(path: Path) -> object:
    return inspect(str(path)).groups


def test_a_large_header_is_read_in_growing_steps(served: Served) -> None:
    """A vocabulary of 1 MB takes few requests and at most twice its bytes."""
    tokens = {"tokenizer.ggml.tokens": [f"token-{number:06d}" for number in range(50_000)]}
    write_gguf(served.folder / "big.gguf", tokens, WEIGHTS)
    assert inspect(f"{served.url}/big.gguf").vocabulary_size == 50_000
    assert len(served.paths) <= 7
    assert served.bytes < 2 * 50_000 * 20


def test_remote_parts_are_read_each_by_its_header(served: Served) -> None:
    """The other parts are found beside the first."""
    write_parts(served.folder, 3)
    found = inspect(f"{served.url}/tiny-00001-of-00003.gguf")
    assert len(found.parts) == 3
    (served.folder / "tiny-00002-of-00003.gguf").unlink()
    assert error_of(f"{served.url}/tiny-00001-of-00003.gguf") == "model.url.not_found"


def test_a_remote_checkpoint_is_read_with_its_config(served: Served) -> None:
    """A shard's URL leads to the index, the config and the headers of the other shards."""
    write_checkpoint(served.folder)
    found = inspect(f"{served.url}/tiny/model-00001-of-00002.safetensors")
    assert (found.architecture, len(found.parts), found.license) == (
        "LlamaForCausalLM", 2, "apache-2.0",
    )  # fmt: skip


def test_another_host_is_not_contacted(served: Served, elsewhere: Served) -> None:
    """A redirect away from the host that was named is told, not followed."""
    served.redirect_to = elsewhere.url
    write_gguf(elsewhere.folder / "big.gguf")
    assert error_of(f"{served.url}/big.gguf") == "model.url.redirected"
    assert elsewhere.paths == []


def test_a_hub_may_name_its_storage_but_keeps_the_token(served: Served, elsewhere: Served) -> None:
    """A hub's redirect is followed; the token is not sent there."""
    served.redirect_to = elsewhere.url
    write_gguf(elsewhere.folder / "big.gguf")
    headers = {"Authorization": "Bearer secret"}
    found = read_url(f"{served.url}/big.gguf", headers, is_hub=True)
    assert found.layers == 2
    assert served.tokens == ["Bearer secret"]
    assert elsewhere.tokens == [""]


@pytest.mark.parametrize(
    ("path", "id"),
    [("/none.gguf", "model.url.not_found"), ("/page.gguf", "model.file.not_gguf"),
     ("/empty.gguf", "model.file.empty")],
)  # fmt: skip
def test_what_is_no_model_is_told(served: Served, path: str, id: str) -> None:
    """Nothing there, a web page, an empty file."""
    (served.folder / "page.gguf").write_bytes(b"<!DOCTYPE html>")
    (served.folder / "empty.gguf").write_bytes(b"")
    assert error_of(served.url + path) == id


def test_a_server_without_ranges_is_told_when_more_is_needed(served: Served) -> None:
    """A small header comes with the first answer, whose rest is not read; a large one cannot."""
    served.has_ranges = False
    write_gguf(served.folder / "small.gguf", tensors=WEIGHTS)
    assert inspect(f"{served.url}/small.gguf").weight_bytes == 8 << 20
    tokens = {"tokenizer.ggml.tokens": [f"token-{number:06d}" for number in range(20_000)]}
    write_gguf(served.folder / "large.gguf", tokens, WEIGHTS)
    assert error_of(f"{served.url}/large.gguf") == "model.url.no_ranges"


def test_a_host_out_of_reach_is_told() -> None:
    """Nothing listens there."""
    assert error_of("http://127.0.0.1:9/x.gguf") == "network.unreachable"


def test_a_url_cannot_be_served_from(served: Served, tmp_path: Path) -> None:
    """What needs the weights says so before it does anything."""
    with pytest.raises(EnginehouseError) as caught:
        resolve_model(f"{served.url}/x.gguf", Shelf(), tmp_path, SilentProgress())
    assert caught.value.report.id == "model.url.not_here"
    assert served.paths == []


SHOW = """
import sys
from pathlib import Path
from enginehouse.core.errors import EnginehouseError
from enginehouse.edges.hub_headers import show_hub_model
try:
    model = show_hub_model(sys.argv[1])
    print(model.format, model.layers, len(model.parts), model.source)
except EnginehouseError as problem:
    print(problem.report.id)
"""


def show_from(hub: str, spec: str, home: Path) -> str:
    """Show in a process of its own, since the hub's client reads its settings at import."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_TOKEN": "secret"}
    command = [sys.executable, "-c", SHOW, spec]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_hubs_gguf_is_shown_without_downloading_it(served: Served, tmp_path: Path) -> None:
    """`hf:owner/repo` picks the file, reads its head by a range, and keeps nothing."""
    write_gguf(served.folder / "big.gguf", tensors=WEIGHTS)
    for spec in ("me/tiny", "me/tiny/big.gguf"):
        assert show_from(served.url, spec, tmp_path / "hf") == "gguf 2 1 hf:me/tiny/big.gguf"
    assert served.bytes < 1 << 18
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    assert show_from(served.url, "me/tiny/none.gguf", tmp_path / "hf") == "model.url.not_found"


def test_a_hubs_checkpoint_is_shown_without_downloading_it(served: Served, tmp_path: Path) -> None:
    """A repository of safetensors is read by its headers and small files."""
    write_checkpoint(served.folder)
    assert show_from(served.url, "me/tiny", tmp_path / "hf") == "safetensors 2 2 hf:me/tiny"
