"""Native builds, of a small project with llama.cpp's names from an index on the loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginehouse.core.native_build import TARGETS
from enginehouse.edges.leases import MARKER
from enginehouse.edges.locks import hold
from tests.integration.houses import House
from tests.integration.package_index import PROJECT, Index, forks_sdist, sdist, serve

MISSING = [name for name in ("cmake", "ninja", "cc", "c++") if shutil.which(name) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")
BUILD = ("engines", "build", "llama.cpp", "--no-cuda")
PATIENCE_S = 60.0


@pytest.fixture
def index() -> Iterator[Index]:
    """An index with the small source."""
    with serve(Index(sdist())) as served:
        yield served


@pytest.fixture
def house(tmp_path: Path, index: Index) -> House:
    """A house whose pip knows that index and no other."""
    house = House(tmp_path)
    house.env = {k: v for k, v in house.env.items() if not k.startswith(("PIP_", "CC", "CXX"))}
    house.env |= {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull}
    house.env |= {"no_proxy": "127.0.0.1"}
    return house


def cache_of(house: House) -> Path:
    """The house's cache folder."""
    return house.folder / "cache"


def error_of(house: House, *arguments: str, **more: Any) -> tuple[int, dict[str, Any]]:
    """Run a command with --json that must fail, and return its exit code and error."""
    done = house.run(*arguments, "--json", **more)
    assert done.returncode not in (0, 1), done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    return done.returncode, error


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


@needs_tools
def test_a_build_is_made_once_and_then_found(house: House, index: Index) -> None:
    """The programs run, the record tells what they are of; the same build is not made again."""
    document = house.run_json(*BUILD)
    folder, record = Path(document["folder"]), document["build"]
    assert document["is_new"] is True
    assert folder.parent == cache_of(house) / "engines" / "llama.cpp"
    assert folder.name.startswith("b11549-")
    assert record == json.loads((folder / "build.json").read_text())
    assert set(record["programs"]) == set(TARGETS)
    for program in TARGETS:
        assert subprocess.run([folder / "bin" / program, "--version"]).returncode == 0
    assert record["source_digest"] in index.page("xllamacpp").decode()
    assert "-DGGML_NATIVE=ON" in record["flags"]
    assert "[" in (folder / "build.log").read_text()
    assert not list((cache_of(house) / "build" / "llama.cpp").glob("*/"))
    assert not list((cache_of(house) / "leases").glob("*.json"))

    fetched = [asked for asked in index.asked if asked.path.startswith("/files/")]
    again = house.run_json(*BUILD)
    assert again["is_new"] is False
    assert again["build"] == record
    assert [asked for asked in index.asked if asked.path.startswith("/files/")] == fetched

    listed = {engine["name"]: engine for engine in house.run_json("engines", "list")["engines"]}
    (native,) = [b for b in listed["llama.cpp"]["builds"] if b["kind"] == "native"]
    assert native["path"] == str(folder / "bin" / "llama-server")
    assert native["digest"] == record["digest"]
    assert native["version"] == "b11549"


@needs_tools
def test_the_fork_is_built_from_its_own_package(house: House, index: Index) -> None:
    """It is an engine of its own, whole although its package has lost a script of its build."""
    index.files |= forks_sdist()
    planned = house.run_json("engines", "build", "ik_llama.cpp", "--no-cuda", "--dry-run")
    assert planned["version"] == "0.1.5"
    document = house.run_json("engines", "build", "ik_llama.cpp", "--no-cuda")
    folder, record = Path(document["folder"]), document["build"]
    assert folder.parent == cache_of(house) / "engines" / "ik_llama.cpp"
    assert (record["engine"], record["version"]) == ("ik_llama.cpp", "0.1.5")
    assert record["source"] == "ik_llama_cpp_python-0.1.5.tar.gz"
    listed = {engine["name"]: engine for engine in house.run_json("engines", "list")["engines"]}
    (native,) = listed["ik_llama.cpp"]["builds"]
    assert native["path"] == str(folder / "bin" / "llama-server")
    assert not [b for b in listed["llama.cpp"]["builds"] if b["kind"] == "native"]


def checkout(folder: Path, *changes: tuple[str, str]) -> Path:
    """A checkout of the small project, tagged b12000, with what was changed since."""
    folder.mkdir()
    for name, text in (*PROJECT.items(), (".gitignore", "/build/\n")):
        (folder / name).write_text(text)
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "all"), ("tag", "b12000")):
        subprocess.run(("git", "-C", folder, *words), check=True)
    for name, text in changes:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@needs_tools
def test_a_checkout_is_built_where_it_lies(house: House, index: Index) -> None:
    """Nothing is fetched; its tag is the version, and what git ignores is no part of it."""
    tree = checkout(house.folder / "llama.cpp")
    document = house.run_json(*BUILD, "--source", str(tree))
    record = document["build"]
    assert Path(document["folder"]).name.startswith("b12000-")
    assert (record["version"], record["source"]) == ("b12000", str(tree))
    assert sorted(path.name for path in tree.iterdir()) == sorted((".git", ".gitignore", *PROJECT))
    assert index.asked == []

    same = checkout(house.folder / "same", ("build/objects", "ignored"))
    again = house.run_json(*BUILD, "--source", str(same), "--dry-run")
    assert (again["folder"], again["is_here"]) == (document["folder"], True)
    other = checkout(house.folder / "other", ("first.cpp", "int first() { return 0; } // mine\n"))
    changed = house.run_json(*BUILD, "--source", str(other), "--dry-run")
    assert (changed["version"], changed["is_here"]) == ("b12000", False)
    shutil.rmtree(other / ".git")
    plain = house.run_json(*BUILD, "--source", str(other), "--dry-run")
    assert (plain["version"], plain["source_digest"]) == ("source", changed["source_digest"])


def test_a_folder_that_is_not_the_engines_source_is_refused(house: House) -> None:
    """It says what it lacks, or whose source it is."""
    nothing, fork = house.folder / "nothing", checkout(house.folder / "fork")
    nothing.mkdir()
    (fork / "ggml" / "src" / "iqk").mkdir(parents=True)
    for folder, why in ((nothing, "No such file"), (fork, "it is that of ik_llama.cpp")):
        code, error = error_of(house, *BUILD, "--source", str(folder))
        assert (code, error["id"]) == (2, "source.not_one")
        assert why in error["evidence"][0]
    (nothing / "CMakeLists.txt").write_text("project(other)\n")
    assert "names no project" in error_of(house, *BUILD, "--source", str(nothing))[1]["evidence"][0]


@needs_tools
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL]
)
def test_an_interrupted_build_goes_on(house: House, number: signal.Signals) -> None:
    """After Ctrl-C, and after a kill, no process is left; the next build keeps what was built."""
    gate = house.folder / "gate"
    command = [sys.executable, "-m", "enginehouse", *BUILD]
    with subprocess.Popen(command, env={**house.env, "GATE": str(gate)}) as first:
        wait_for(Path(f"{gate}.reached"))
        first.send_signal(number)
        code = first.wait(PATIENCE_S)
    assert code == (130 if number is signal.SIGINT else -signal.SIGKILL)
    (work,) = (cache_of(house) / "build" / "llama.cpp").glob("*/")
    (built,) = work.rglob("first.cpp.o")
    before = built.stat().st_mtime_ns
    if number is signal.SIGINT:
        assert not list((cache_of(house) / "leases").glob("*.json"))
        assert not processes_of(house)

    done = house.run(*BUILD)
    assert done.returncode == 0, done.stderr
    assert not processes_of(house)
    log = next((cache_of(house) / "engines").rglob("build.log")).read_text()
    assert "gate.cpp" in log
    assert "first.cpp.o" not in log
    assert before > 0


def processes_of(house: House) -> list[int]:
    """The processes that work in a house's folders for a build."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if MARKER in environment and str(house.folder) in environment.get("GATE", ""):
            found.append(process.pid)
    return found


@needs_tools
def test_a_broken_transfer_goes_on_where_it_broke(house: House, index: Index) -> None:
    """Only the rest is asked for; the whole is checked and built."""
    index.breaks_after = 100
    assert house.run_json(*BUILD)["is_new"] is True
    files = [asked.range for asked in index.asked if asked.path.startswith("/files/")]
    assert files == ["", "bytes=100-"]


@needs_tools
def test_a_source_with_another_digest_is_not_built(house: House, index: Index) -> None:
    """What the index does not vouch for is neither unpacked nor kept."""
    (name,) = index.files
    index.sha256[name] = "0" * 64
    code, error = error_of(house, *BUILD)
    assert (code, error["id"]) == (2, "source.digest")
    assert not list(cache_of(house).rglob("*.tar.gz*.part"))
    assert not list(cache_of(house).rglob("*.tar.gz"))
    assert not list((cache_of(house) / "engines").rglob("build.json"))


def test_without_a_compiler_it_says_what_to_install(house: House) -> None:
    """Nothing is fetched before there is a compiler that works."""
    code, error = error_of(house, *BUILD, env={"PATH": "/nowhere"})
    assert (code, error["id"]) == (2, "build.no_compiler")
    assert any("build-essential" in remedy for remedy in error["remedies"])


@needs_tools
def test_a_compiler_that_makes_no_program_is_none(house: House, index: Index) -> None:
    """A compiler is what can make a program, not what has the name of one."""
    code, error = error_of(house, *BUILD, env={"CXX": "false"})
    assert (code, error["id"]) == (2, "build.no_compiler")
    assert error["what"] == "the C++ compiler cannot make a program"
    assert index.asked == []


@needs_tools
def test_a_failed_build_is_explained(house: House, index: Index) -> None:
    """The house's form of an error: cause, the line, the log, what to try; the log is kept."""
    index.files = sdist({"first.cpp": "int first() { return missing_name; }\n"})
    code, error = error_of(house, *BUILD)
    assert code == 3
    assert "building llama.cpp b11549 failed" in error["what"]
    log = Path(error["evidence"][-1])
    assert "missing_name" in log.read_text()
    assert any("missing_name" in line for line in error["evidence"])
    assert error["id"].startswith("build.")


@needs_tools
def test_one_build_at_a_time(house: House) -> None:
    """A second build of the same does not touch the first one's folder."""
    plan = house.run_json(*BUILD, "--dry-run")
    name = Path(plan["folder"]).name
    assert plan["is_here"] is False
    with hold(cache_of(house) / "build" / "llama.cpp" / f"{name}.lock", "a test"):
        code, error = error_of(house, *BUILD)
    assert (code, error["id"]) == (4, "work.under_way")
    assert str(os.getpid()) in error["evidence"][0]


@needs_tools
def test_what_runs_is_not_removed_and_the_rest_is(house: House) -> None:
    """`remove` takes builds, unfinished ones and fetched sources, but nothing that is in use."""
    folder = Path(house.run_json(*BUILD)["folder"])
    code, error = error_of(house, "engines", "remove", "vllm", "--yes")
    assert (code, error["id"]) == (2, "engine.not_installed")
    assert f"llama.cpp/{folder.name}" in error["evidence"][0]
    with subprocess.Popen([folder / "bin" / "llama-server"]) as server:
        code, error = error_of(house, "engines", "remove", "llama.cpp", "--yes")
        server.terminate()
    assert (code, error["id"]) == (4, "engine.in_use")
    assert folder.exists()
    assert house.run("engines", "remove", "llama.cpp").returncode == 130
    assert folder.exists()
    assert house.run_json("engines", "remove", folder.name, "--yes")["removed"] == [str(folder)]
    assert not folder.exists()
    assert not list(cache_of(house).rglob("*.tar.gz"))


@needs_tools
@pytest.mark.long
def test_without_a_network_the_kept_source_is_built(house: House, index: Index) -> None:
    """An index that cannot be reached is no reason to stop when the source is here."""
    folder = Path(house.run_json(*BUILD)["folder"])
    shutil.rmtree(folder)
    house.env["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    assert house.run_json(*BUILD)["folder"] == str(folder)
    code, error = error_of(house, *BUILD, "--version", "2026.1.10000")
    assert (code, error["id"]) == (4, "network.unreachable")
