"""Ctrl-C and SIGKILL at every moment of the real program: nothing of it is left behind.

Processes of a home are known by its state folder in their environment, whoever their parent is;
files by the leases that named them while they were there, and by folders of the home's own.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginehouse.core.choice import Choice
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.builds import find_builds
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.probes import look_at_machine
from enginehouse.edges.progress import SilentProgress
from enginehouse.edges.records import Records
from enginehouse.engines import load_engines
from tests.unit.values import measurement

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
CLI = [sys.executable, "-m", "enginehouse"]
DEMO = "smollm2-135m"


class Home:
    """A user's folders, runtime and temporary ones included, and the program run in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.run_dir, self.tmp = (folder / name for name in ("state", "run", "tmp"))
        self.env = {
            **os.environ,
            "ENGINEHOUSE_STATE_DIR": str(self.state),
            "ENGINEHOUSE_CONFIG_DIR": str(folder / "config"),
            "XDG_RUNTIME_DIR": str(self.run_dir),
            "TMPDIR": str(self.tmp),
        }
        for made in (self.state, self.run_dir, self.tmp):
            made.mkdir()
        self.log = folder / "out.log"
        self.leased: set[Path] = set()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command with its talk in a log."""
        with self.log.open("wb") as out:
            return subprocess.Popen([*CLI, *arguments], env=self.env, stdout=out, stderr=out)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*CLI, *arguments], env=self.env, capture_output=True, text=True, check=False
        )

    def processes(self) -> list[int]:
        """Return the living processes that have this home in their environment."""
        wanted = f"ENGINEHOUSE_STATE_DIR={self.state}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def leases(self) -> list[Path]:
        """Return the leases there are; what they name is remembered."""
        folders = (self.state, Path(self.env.get("ENGINEHOUSE_CACHE_DIR", self.state)))
        found = [path for folder in dict.fromkeys(folders) for path in folder.glob("leases/*")]
        for path in found:
            try:
                self.leased |= {Path(file) for file in json.loads(path.read_text())["files"]}
            except (OSError, ValueError):
                continue  # just being written, or just gone
        return found

    def engine_log(self) -> str:
        """Return what the engine of the first trial wrote."""
        path = self.state / "trials" / "0001" / "engine.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def check_empty(self) -> None:
        """No process, socket, scratch folder, lease or temporary file is left."""
        assert self.processes() == []
        assert self.leases() == []
        assert [path for path in self.leased if path.exists()] == []
        assert list(self.run_dir.iterdir()) == []
        assert list(self.tmp.iterdir()) == []


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home of the test's own; the demo model is the one in the user's cache."""
    made = Home(tmp_path_factory.mktemp("h"))
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


def wait_until(home: Home, child: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    """Wait for an event while the command runs; remember the leases seen meanwhile."""
    ends = time.monotonic() + 120
    while not is_there():
        assert child.poll() is None, home.log.read_text()
        assert time.monotonic() < ends, home.log.read_text()
        home.leases()
        time.sleep(0.005)
    home.leases()


def moments(home: Home) -> dict[str, Callable[[], bool]]:
    """How each stage of the first trial is seen from outside.

    The first request is the first token's, the second warms up, the third is measured.
    """
    return {
        "look": lambda: "measuring" in home.log.read_text(),
        "start": lambda: "trial 1" in home.log.read_text(),
        "load": lambda: bool(home.engine_log()),
        "first token": lambda: "listening on" in home.engine_log(),
        "measure": lambda: home.engine_log().count("launch_slot_") >= 3,
    }


@pytest.mark.parametrize(
    "moment",
    [
        "start",
        "measure",
        *(pytest.param(m, marks=pytest.mark.long) for m in ("look", "load", "first token")),
    ],
)
def test_ctrl_c_in_a_trial_leaves_nothing(home: Home, moment: str) -> None:
    """Whatever the trial was doing: exit code 130, said in words, and nothing is left."""
    child = home.start("find", DEMO, "--budget", "60s")
    wait_until(home, child, moments(home)[moment])
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130, home.log.read_text()
    text = home.log.read_text()
    assert text.endswith("interrupted; nothing was lost\n")
    assert "Traceback" not in text
    home.check_empty()
    done = home.run("trials", "list", "--json")
    outcomes = {trial["outcome"] for trial in json.loads(done.stdout)["trials"]}
    assert outcomes <= {"interrupted"}
    assert "cleared: the engine" not in done.stderr


@pytest.mark.parametrize("setpriv", [pytest.param("with", marks=pytest.mark.long), "without"])
def test_a_kill_in_a_trial_is_cleared_by_the_next_command(home: Home, setpriv: str) -> None:
    """SIGKILL while the engine runs: the next command ends what is left, and says so.

    With setpriv the kernel ends the engine at once; without, the engine is really an orphan.
    """
    if setpriv == "without":
        hide_setpriv(home)
    child = home.start("find", DEMO, "--budget", "60s")
    wait_until(home, child, moments(home)["measure"])
    child.kill()
    child.wait()
    if setpriv == "without":
        assert home.processes()
    done = home.run("trials", "list", "--json")
    assert "cleared: the engine" in done.stderr
    assert f"(pid {child.pid})" in done.stderr
    assert "cleared: trial 1 was under way" in done.stderr
    (trial,) = json.loads(done.stdout)["trials"]
    assert trial["outcome"] == "interrupted"
    assert Path(trial["log_path"]).exists()
    home.check_empty()
    again = home.run("trials", "list")
    assert again.stderr == ""


def hide_setpriv(home: Home) -> None:
    """Give the home a PATH without util-linux."""
    folder = home.folder / "bin"
    folder.mkdir()
    for name in ("sh", "env", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    home.env["PATH"] = str(folder)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a choice of the minimal candidate, to be copied; nothing is measured."""
    state = tmp_path_factory.mktemp("chosen")
    records = Records(state / "records.sqlite")
    records.open()
    model = resolve_model(DEMO, records, cache_dir(), SilentProgress())
    build, machine = find_builds()[0], look_at_machine()
    records.store_choice(
        Choice(
            model.digest,
            model.name,
            "chat",
            machine.fingerprint(),
            machine.fingerprint_facts(),
            build,
            load_engines()[build.engine].minimal(build, model, WORKLOADS["chat"]),
            0,
            measurement(1.0),
            1.0,
        )
    )
    records.close()
    return state


def serve(home: Home, chosen: Path) -> subprocess.Popen[bytes]:
    """Serve the stored choice until it answers."""
    shutil.copytree(chosen, home.state, dirs_exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = home.start("serve", "--port", str(port))
    wait_until(home, child, lambda: f"serving {DEMO}" in home.log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        assert json.load(answer)["status"] == "ok"
    return child


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]
)
def test_ctrl_c_ends_serving(home: Home, chosen: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM are how a server is ended: exit code 0, and nothing is left."""
    child = serve(home, chosen)
    child.send_signal(number)
    assert child.wait(30) == 0, home.log.read_text()
    home.check_empty()
    assert home.run("trials", "list").stderr == ""


@pytest.mark.parametrize("setpriv", [pytest.param("with", marks=pytest.mark.long), "without"])
def test_a_kill_while_serving_is_cleared(home: Home, chosen: Path, setpriv: str) -> None:
    """SIGKILL while serving: the next command finds no orphan and says what it cleared."""
    if setpriv == "without":
        hide_setpriv(home)
    child = serve(home, chosen)
    child.kill()
    child.wait()
    done = home.run("trials", "list")
    assert f"cleared: the engine `{Path(sys.executable).name}`" in done.stderr
    assert ("ended 1 left process" in done.stderr) == (setpriv == "without")
    home.check_empty()
    assert home.run("trials", "list").stderr == ""


class SlowIndex(http.server.BaseHTTPRequestHandler):
    """A package index whose one wheel never comes to its end."""

    half_sent = threading.Event()
    end = threading.Event()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = "tinymodel-1.0-py3-none-any.whl"
        page = f'<html><body><a href="/{name}">{name}</a></body></html>'.encode()
        is_wheel = self.path.endswith(".whl")
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
        self.send_header("Content-Length", str(1 << 30 if is_wheel else len(page)))
        self.end_headers()
        self.wfile.write(b"PK" + bytes(1 << 20) if is_wheel else page)
        if is_wheel:
            self.half_sent.set()
            self.end.wait(60)


@pytest.fixture
def index(home: Home) -> Iterator[None]:
    """Let pip use the slow index, and the home a cache of its own."""
    SlowIndex.half_sent.clear()
    SlowIndex.end.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowIndex)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in [name for name in home.env if name.startswith("PIP_") or "proxy" in name.lower()]:
        del home.env[name]
    home.env["PIP_CONFIG_FILE"] = os.devnull
    home.env["PIP_INDEX_URL"] = f"http://127.0.0.1:{server.server_address[1]}/simple"
    home.env["ENGINEHOUSE_CACHE_DIR"] = str(home.folder / "cache")
    yield
    SlowIndex.end.set()
    server.shutdown()
    thread.join()
    server.server_close()


def is_fetching(home: Home) -> bool:
    """Whether half of the wheel was sent and pip has a file of it."""
    return SlowIndex.half_sent.is_set() and bool(list(home.folder.glob("cache/fetch-*/*")))


def test_ctrl_c_in_a_fetch_leaves_nothing(home: Home, index: None) -> None:
    """Ctrl-C in the middle of a download: exit code 130; pip and its files are gone."""
    child = home.start("find", "pypi:tinymodel")
    wait_until(home, child, lambda: is_fetching(home))
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130, home.log.read_text()
    assert "Traceback" not in home.log.read_text()
    home.check_empty()
    assert [p for p in (home.folder / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("setpriv", [pytest.param("with", marks=pytest.mark.long), "without"])
def test_a_kill_in_a_fetch_is_cleared(home: Home, index: None, setpriv: str) -> None:
    """SIGKILL in the middle of a download: the next command ends pip and removes its files."""
    if setpriv == "without":
        hide_setpriv(home)
    child = home.start("find", "pypi:tinymodel")
    wait_until(home, child, lambda: is_fetching(home))
    child.kill()
    child.wait()
    done = home.run("trials", "list")
    assert "cleared: the fetch of tinymodel" in done.stderr
    home.check_empty()
    assert list(home.folder.glob("cache/fetch-*")) == []
