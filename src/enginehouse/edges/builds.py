"""Find the engine builds that are installed here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.core.candidate import Build
from enginehouse.core.errors import UserError
from enginehouse.edges.builds_vllm import find_vllm
from enginehouse.edges.paths import cache_dir

ENGINE = "llama.cpp"
VERSION_LIMIT_S = 10
VERSION = re.compile(r"version:\s*(?:(\d+)\s*\((\w+)\)|\S+ \(build (\d+), commit (\w+)\))")
"""As llama-server prints it: `version: 11434 (abc123)`, and `version: 0.6.0 (build 11549, commit
abc123)` since llama.cpp numbers its releases."""


def find_builds(llama_server: str = "", vllm_python: str = "") -> tuple[Build, ...]:
    """Return llama.cpp's builds (the wheel, then a `llama-server` named here or on PATH), vLLM's.

    Raises:
        UserError: `engine.not_usable`, when the named program cannot be one.
    """
    found = [build for build in (_wheel(), _binary(llama_server)) if build is not None]
    return (*found, *find_vllm(vllm_python))


def _wheel() -> Build | None:
    try:
        distribution = importlib.metadata.distribution("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None
    libraries = [f for f in distribution.files or () if f.name.endswith(".abi3.so")]
    if not libraries:
        return None
    path = Path(str(distribution.locate_file(libraries[0])))
    return Build(
        engine=ENGINE,
        kind="wheel",
        version=distribution.version,
        digest=digest_file(path),
        command=(sys.executable, "-m", "enginehouse.edges.wheel_server"),
        path=str(path),
    )


def _binary(named: str) -> Build | None:
    program = shutil.which(named or "llama-server")
    if program is None:
        if named:
            raise UserError(
                "engine.not_usable",
                f"engine.llama_cpp.path names {named}, which is not a program",
                evidence=(f"{named}: no such file, or it may not be executed",),
                remedies=("give the path of a llama-server, or remove the setting",),
            )
        return None
    text = _run_version(program)
    version = VERSION.search(text)
    if version is None:
        if not named:
            return None
        raise UserError(
            "engine.not_usable",
            f"{program} does not say its version as a llama-server does",
            evidence=(f"`{program} --version` printed {text.strip()[:120]!r}",),
            remedies=("give the path of a llama-server, or remove the setting",),
        )
    return Build(
        engine=ENGINE,
        kind="binary",
        version=f"b{version[1] or version[3]} ({version[2] or version[4]})",
        digest=digest_file(Path(program)),
        command=(program,),
        path=program,
    )


def _run_version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return (done.stdout + done.stderr).decode(errors="replace")


def digest_file(path: Path) -> str:
    """Return a file's SHA-256; computed once per (path, size, modification time)."""
    memory = cache_dir() / "digests.json"
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    try:
        known = msgspec.json.decode(memory.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        known = {}
    if key not in known:
        known[key] = hash_file(path)
        draft = memory.with_name(f"digests.{known[key][:8]}.draft")
        draft.write_bytes(msgspec.json.encode(known))
        draft.replace(memory)
    return known[key]


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda done: None) -> str:
    """Return a file's SHA-256, telling how many bytes are done."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            on_bytes(done)
    return digest.hexdigest()
