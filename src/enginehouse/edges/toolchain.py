"""Find what is there to build with: compiler, CMake, ninja, a CUDA toolkit.

CMake and ninja that are missing or too old come from the package index, into an environment of
their own under the cache, never into Enginehouse's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.native_build import Toolchain, Toolkit, read_nvcc_version, read_version
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.locks import hold
from enginehouse.edges.logged_child import run_logged
from enginehouse.edges.processes import read_tail
from enginehouse.edges.progress import Progress

LIMIT_S = 60.0
C_TEST = "int main(void) { return 0; }\n"
CXX_TEST = "#include <filesystem>\n#include <thread>\nint main() { return 0; }\n"
INSTALL_COMPILER = (
    "Debian, Ubuntu, Jetson: sudo apt install build-essential",
    "Fedora: sudo dnf install gcc-c++    Arch: sudo pacman -S base-devel",
)


def find_compiler() -> str:
    """Return the compilers' own names and versions, once both have made a program that links.

    `CC` and `CXX` name others than the usual, as CMake takes them.

    Raises:
        UserError: `build.no_compiler`.
    """
    found = [
        _checked("C", "CC", ("cc", "gcc", "clang"), ("-x", "c"), C_TEST),
        _checked("C++", "CXX", ("c++", "g++", "clang++"), ("-std=c++17", "-x", "c++"), CXX_TEST),
    ]
    return ", ".join(dict.fromkeys(found))


def _checked(
    language: str, variable: str, names: Sequence[str], flags: Sequence[str], text: str
) -> str:
    named = shlex.split(os.environ.get(variable, ""))
    program = named or [name for name in names if shutil.which(name)][:1]
    if not program:
        raise _no_compiler(f"no {language} compiler is found", f"not on PATH: {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="enginehouse-cc-") as folder:
        output = str(Path(folder) / "out")
        argv = [*program, *flags, "-", "-o", output, "-pthread"]
        code, said = _say(argv, text)
    if code != 0:
        shown = [line for line in said.splitlines() if line.strip()][-3:]
        what = f"the {language} compiler cannot make a program"
        raise _no_compiler(what, " ".join(argv), *shown)
    _, version = _say([*program, "--version"])
    return (version.splitlines() or [program[0]])[0].strip()


def _no_compiler(what: str, *evidence: str) -> UserError:
    return UserError("build.no_compiler", what, evidence=evidence, remedies=INSTALL_COMPILER)


def _say(argv: Sequence[str], text: str = "") -> tuple[int, str]:
    """Return a program's exit code and all that it prints; 127 where it cannot run."""
    try:
        done = subprocess.run(
            argv, input=text.encode(), capture_output=True, timeout=LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return 127, str(problem)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def find_toolkit() -> Toolkit | None:
    """Return the CUDA toolkit that is here: `CUDACXX`, PATH, `CUDA_HOME`, /usr/local/cuda."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [os.environ.get("CUDACXX") or "", "nvcc", *(f"{h}/bin/nvcc" for h in homes if h)]
    for place in filter(None, places):
        program = shutil.which(place)
        version = read_nvcc_version(_say([program, "--version"])[1]) if program else ()
        if program and version:
            return Toolkit(program, version)
    return None


def find_tools(oldest_cmake: tuple[int, ...], cache: Path, progress: Progress) -> Toolchain:
    """Return CMake and ninja from PATH, else from the tools' own environment, made on demand.

    Raises:
        MachineError: `build.no_tools`, when they can be had nowhere.
    """
    have = _tools_in(None)
    if have is None or have.cmake_version < oldest_cmake:
        folder = cache / "tools" / "cmake-ninja"
        have = _tools_in(folder / "bin")
        if have is None or have.cmake_version < oldest_cmake:
            with hold(cache / "tools" / "cmake-ninja.lock", "the installation of CMake"):
                _install_tools(folder, cache, progress)
            have = _tools_in(folder / "bin")
    if have is None:
        raise _no_tools(("the programs that were installed do not start",))
    return have


def _tools_in(folder: Path | None) -> Toolchain | None:
    where = str(folder) if folder else None
    cmake, ninja = shutil.which("cmake", path=where), shutil.which("ninja", path=where)
    if not cmake or not ninja or _say([ninja, "--version"])[0] != 0:
        return None
    code, said = _say([cmake, "--version"])
    return Toolchain(cmake, read_version(said), ninja) if code == 0 else None


def _install_tools(folder: Path, cache: Path, progress: Progress) -> None:
    log = cache / "tools" / "install.log"
    log.unlink(missing_ok=True)
    leases = LeaseBook(cache / "leases")
    shutil.rmtree(folder, ignore_errors=True)
    progress.begin("installing CMake and ninja into an environment of their own", None)
    try:
        for argv in (
            (sys.executable, "-m", "venv", str(folder)),
            (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input",
             "--disable-pip-version-check", "--only-binary", ":all:", "cmake", "ninja"),
        ):  # fmt: skip
            if run_logged(argv, log, leases).exit_code != 0:
                raise _no_tools(tuple(line for line in read_tail(log, 4) if line.strip()))
    finally:
        progress.end()


def _no_tools(evidence: tuple[str, ...]) -> MachineError:
    return MachineError(
        "build.no_tools",
        "CMake and ninja are not here and could not be fetched from the package index",
        evidence=evidence,
        remedies=(
            "Debian, Ubuntu, Jetson: sudo apt install cmake ninja-build",
            "check the network and pip's settings: pip config list",
        ),
    )
