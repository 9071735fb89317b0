"""A `llama-server` is llama.cpp's or its fork's: told by what small programs say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.edges.builds_llama_cpp import find_binary

OLD, NEW, UNTOLD = "4112 (abc123)", "11549 (abc123)", "0 (unknown)"
FORKS_HELP = "  -rtr,  --run-time-repack        repack tensors"


def program(folder: Path, version: str, help_text: str) -> str:
    """Write a program with those two answers, and a note of what it was asked."""
    path = folder / "llama-server"
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$1" >> "{folder}/asked"\n'
        f'if [ "$1" = --version ]; then echo "version: {version}" >&2; '
        f'else echo "{help_text}"; fi\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("version", "help_text", "engine"),
    [
        (OLD, FORKS_HELP, "ik_llama.cpp"),
        (UNTOLD, FORKS_HELP, "ik_llama.cpp"),
        (OLD, "  --no-mmap", "llama.cpp"),
        (NEW, "  --load-mode", "llama.cpp"),
    ],
)
def test_the_fork_is_told_by_its_flags(
    tmp_path: Path, version: str, help_text: str, engine: str
) -> None:
    """The name and the version are alike; a number that the fork has not reached says enough."""
    build = find_binary(program(tmp_path, version, help_text))
    assert build is not None
    assert (build.engine, build.kind) == (engine, "binary")
    asked = (tmp_path / "asked").read_text().split()
    assert asked == (["--version"] if version is NEW else ["--version", "--help"])
