"""A folder with an engine's source, such as a checkout: what it is of, and whether it is one."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from enginehouse.core.errors import UserError
from enginehouse.core.native_build import IK_LLAMA_CPP, LLAMA_CPP
from enginehouse.core.package_index import Sdist
from enginehouse.edges.digests import hash_file

GIT_LIMIT_S = 30
PROJECT = re.compile(r'^project\("?llama\.cpp"?\b', re.M)
"""What both projects call themselves in their `CMakeLists.txt`."""
FORKS_FOLDER = "ggml/src/iqk"
"""A folder that only the fork has."""
NO_VERSION = "source"


def read_tree(folder: Path, engine: str) -> Sdist:
    """Return what a folder holds: its version by git, its digest by all files but hidden ones.

    In a checkout those that it ignores do not count; without one all do, of a build in there too.

    Raises:
        UserError: `source.not_one`, when it is not the source of the engine.
    """
    lists = folder / "CMakeLists.txt"
    try:
        is_one = PROJECT.search(lists.read_text(errors="replace")) is not None
    except OSError as problem:
        raise _not_one(folder, engine, str(problem)) from problem
    if not is_one:
        raise _not_one(folder, engine, f"{lists} names no project llama.cpp")
    found = (IK_LLAMA_CPP if (folder / FORKS_FOLDER).is_dir() else LLAMA_CPP).engine
    if found != engine:
        command = f"enginehouse engines build {found} --source {folder}"
        raise _not_one(folder, engine, f"it is that of {found}", (command,))
    return Sdist(str(folder), _version(folder), folder.as_uri(), _digest(folder))


def _version(folder: Path) -> str:
    """Return the nearest tag and what was added, such as `b11549-3-g0a1b2c3`, else the commit."""
    if tag := _git(folder, "describe", "--tags").strip():
        return re.sub(r"[^\w.+-]", "-", tag)
    commit = _git(folder, "rev-parse", "--short", "HEAD").strip()
    return f"g{commit}" if commit else NO_VERSION


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(_files(folder)):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            whole.update(f"{name}\0{hash_file(path)}\n".encode())
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Return what git has or would add, without what a checkout ignores; else all files."""
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed:
        yield from (folder / name for name in listed.split("\0") if name)
    else:
        yield from folder.rglob("*")


def _git(folder: Path, *words: str) -> str:
    """Return what git says of a checkout, empty when the folder is none or there is no git."""
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_LIMIT_S,
            check=False,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _not_one(folder: Path, engine: str, why: str, remedies: tuple[str, ...] = ()) -> UserError:
    return UserError(
        "source.not_one",
        f"{folder} is not the source of {engine}",
        evidence=(why,),
        remedies=(
            *remedies,
            "name the folder that holds its CMakeLists.txt, or leave --source out",
        ),
    )
