"""What can quantize on this machine, and one run of it as a child that ends with us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.core.quant_types import FORMATS
from enginehouse.edges.ggml_library import NEEDED, find_library
from enginehouse.edges.leases import MARKER
from enginehouse.edges.processes import die_with_parent

POLL_S = 0.1
MOST_THREADS = 16
PROGRAM = "llama-quantize"


@dataclass(frozen=True)
class Tool:
    """One way to quantize: `llama-quantize`, or the wheel's shared library."""

    name: str
    path: str
    version: str = ""

    @property
    def is_wheel(self) -> bool:
        """Whether it is the wheel's own routines."""
        return self.name == "wheel"


@dataclass(frozen=True)
class Tools:
    """What can quantize here; None where there is none."""

    program: Tool | None = None
    library: Tool | None = None

    def best(self) -> Tool | None:
        """Return `llama-quantize` where there is one: it knows every architecture's rules."""
        return self.program or self.library

    @property
    def means(self) -> str:
        """How variants are made, "" where they cannot be."""
        tool = self.best()
        return tool.name if tool else ""


def thread_count() -> int:
    """Return how many threads quantize here."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def find_tools(builds: Sequence[Build] = ()) -> Tools:
    """Return the `llama-quantize` beside one of the builds, and the wheel's routines."""
    return Tools(_program(builds), _library(builds))


def _program(builds: Sequence[Build]) -> Tool | None:
    for build in builds:
        beside = Path(build.path).with_name(PROGRAM)
        is_program = build.engine == "llama.cpp" and build.kind in ("binary", "native")
        if is_program and os.access(beside, os.X_OK):
            return Tool(PROGRAM, str(beside), build.version)
    found = shutil.which(PROGRAM)
    return Tool(PROGRAM, found) if found else None


def _library(builds: Sequence[Build]) -> Tool | None:
    path = find_library()
    if path is None or not _exports(path, NEEDED):
        return None
    versions = [build.version for build in builds if build.path == str(path)]
    return Tool("wheel", str(path), versions[0] if versions else "")


def _exports(path: Path, names: Sequence[bytes]) -> bool:
    """Tell whether a library's symbol names hold all of these; it is searched, not loaded."""
    import mmap

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(data.find(b"\0" + name + b"\0") >= 0 for name in names)


def run_tool(
    tool: Tool, source: Path, quantization: str, draft: Path, tell: Callable[[], None], lease: str
) -> None:
    """Write the draft, calling `tell` as it grows; whatever `tell` raises ends the child.

    Raises:
        OSError: it failed; the text is the end of what it said.
    """
    log = draft.with_suffix(".log")
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*die_with_parent(), *_command(tool, source, quantization, draft)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, MARKER: lease},
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                tell()
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            said = log.read_text(errors="replace")
            log.unlink(missing_ok=True)
    if child.returncode != 0:
        end = " | ".join(said.strip().splitlines()[-4:])
        raise OSError(f"{tool.name} ended with exit code {child.returncode}: {end[-500:]}")


def _command(tool: Tool, source: Path, quantization: str, draft: Path) -> tuple[str, ...]:
    threads = str(thread_count())
    if tool.is_wheel:
        return (
            sys.executable, "-m", "enginehouse.edges.quantize_child",
            tool.path, str(source), quantization, str(draft), threads,
        )  # fmt: skip
    draft.unlink(missing_ok=True)
    draft.with_suffix(".journal").unlink(missing_ok=True)
    form = FORMATS[quantization]
    mixture = ["--pure"] if form.is_pure else []
    if form.values:
        mixture += ["--tensor-type", f"attn_v.weight={form.values}"]
    kind = str(form.file_type)
    return (tool.path, "--allow-requantize", *mixture, str(source), str(draft), kind, threads)
