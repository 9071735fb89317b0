"""Find TensorRT-LLM and TensorRT Edge-LLM: their commands on PATH, and the distributions behind.

Nothing of them is executed: they import CUDA libraries for many seconds. What a command is comes
from the folders of its environment.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.edges.paths import program_path

LLM, EDGE = "tensorrt-llm", "tensorrt-edge-llm"
COMMANDS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (LLM, "trtllm-serve", "tensorrt_llm", ()),
    (EDGE, "trtedge", "tensorrt_edgellm", ("serve",)),
    (EDGE, "tensorrt-edgellm-serve", "tensorrt_edgellm", ()),
)
"""Engine, command, distribution, and the sub-command that serves."""


def find_tensorrt() -> tuple[Build, ...]:
    """Return the builds whose command is on PATH, one an engine."""
    found: dict[str, Build] = {}
    for engine, command, distribution, words in COMMANDS:
        program = program_path(command)
        build = _build_of(engine, Path(program), distribution, words) if program else None
        if build is not None:
            found.setdefault(engine, build)
    return tuple(found.values())


def _build_of(
    engine: str, program: Path, distribution: str, words: tuple[str, ...]
) -> Build | None:
    """Read the environment that a command belongs to; None when it is not of that distribution.

    The digest is that of the distribution's RECORD, which holds each file's own.
    """
    for bin_folder in dict.fromkeys((program.parent, program.resolve().parent)):
        for record in sorted(bin_folder.parent.glob(f"lib/python3*/*-packages/{distribution}-*")):
            match = re.fullmatch(rf"{distribution}-([0-9][^-]*)\.dist-info", record.name)
            if match and (record / "RECORD").is_file():
                return Build(
                    engine=engine,
                    kind="environment",
                    version=match[1],
                    digest=hashlib.sha256((record / "RECORD").read_bytes()).hexdigest(),
                    command=(str(program), *words),
                    path=str(program),
                )
    return None
