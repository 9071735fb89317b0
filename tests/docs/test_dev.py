"""`./dev` sets up once, says what is missing, and hands its arguments on.

It runs in a copy of the repository with a python3 that only writes down how it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.documents import ROOT

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in
*sys.version_info*) exit "${TOO_OLD:-0}" ;;
-V) echo "Python 3.8.1" ;;
"-m venv .venv")
    [ -z "${NO_VENV:-}" ] || exit 1
    mkdir -p .venv/bin
    for name in python pip enginehouse ruff mypy lint-imports; do cp "$0" ".venv/bin/$name"; done
    ;;
esac
"""


@dataclass(frozen=True)
class Copy:
    """A copy of `dev` in a folder of its own."""

    folder: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `./dev` with the fake python3 first on PATH."""
        calls = self.folder / "calls"
        calls.write_text("")
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(self.folder / "dev"), *arguments],
            env={"PATH": path, "CALLS": str(calls), **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return how the fakes were called, without the look at the version."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if "version_info" not in line]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    shutil.copy(ROOT / "dev", tmp_path / "dev")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "defaults.py").write_text("")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(FAKE)
    python.chmod(0o755)
    return Copy(tmp_path)


INSTALL = "python -m pip install --quiet --disable-pip-version-check -e "


def test_up_sets_up_once_and_passes_its_arguments_on(copy: Copy) -> None:
    """The first `up` makes .venv and installs; the second one starts at once."""
    assert copy.run("up", "a model", "--port", "1").returncode == 0
    assert copy.calls() == [
        "python3 -m venv .venv",
        INSTALL + ".",
        "enginehouse up a model --port 1",
    ]
    copy.run("up")
    assert copy.calls() == ["enginehouse up"]


def test_test_adds_the_tools_that_up_does_not_need(copy: Copy) -> None:
    """After `up`, `test` installs the dev tools into the same .venv, once."""
    copy.run("up")
    copy.run("test", "-q")
    assert copy.calls() == [INSTALL + ".[dev]", "python -m pytest -q"]
    copy.run("test")
    assert copy.calls() == ["python -m pytest"]


def test_a_changed_pyproject_is_installed_again(copy: Copy) -> None:
    """New dependencies arrive without being asked for."""
    copy.run("up")
    (copy.folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    copy.run("up")
    assert INSTALL + "." in copy.calls()


def test_check_runs_every_check(copy: Copy) -> None:
    """Format, lint, types, walls and unit tests, in this order."""
    copy.run("check")
    assert copy.calls()[-5:] == [
        "ruff format --check .",
        "ruff check .",
        "mypy ",
        "lint-imports ",
        "python -m pytest -q tests/unit",
    ]


def test_bench_runs_the_named_script_or_lists_them(copy: Copy) -> None:
    """A benchmark is named by its file; a wrong name gets the right ones, before any set-up."""
    copy.run("bench", "defaults", "--rounds", "2")
    assert copy.calls()[-1] == "python benchmarks/defaults.py --rounds 2"
    for arguments in (("bench",), ("bench", "nothing")):
        ended = copy.run(*arguments)
        assert (ended.returncode, copy.calls()) == (2, [])
        assert "name a benchmark: defaults" in ended.stderr


def test_an_old_python_or_a_missing_venv_module_is_named(copy: Copy) -> None:
    """What is missing is said in a sentence, with exit code 2."""
    ended = copy.run("up", TOO_OLD="1")
    assert ended.returncode == 2
    assert "Python 3.10 or newer is needed as python3 (found: Python 3.8.1)" in ended.stderr
    ended = copy.run("up", NO_VENV="1")
    assert ended.returncode == 2
    assert "install the venv module" in ended.stderr


def test_help_needs_nothing(copy: Copy) -> None:
    """Help is printed without any set-up; an unknown command prints it to stderr and fails."""
    ended = copy.run("help")
    assert (ended.returncode, copy.calls()) == (0, [])
    assert "usage: ./dev COMMAND" in ended.stdout
    wrong = copy.run("frobnicate")
    assert (wrong.returncode, wrong.stderr) == (2, ended.stdout)
