"""Ask llama.cpp itself what a model would take: `llama-fit-params` loads without allocating."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from enginehouse.core.candidate import Build

PROGRAM = "llama-fit-params"
LIMIT_S = 60.0
LINE = re.compile(r"^(\S+) (\d+) (\d+) (\d+) *$", re.MULTILINE)
"""Device, then the model's, the context's and the compute buffers' MiB (`common/fit.cpp`)."""


def ask_llama(
    path: str, context: int, sequences: int, kv_type: str, build: Build | None
) -> tuple[str, ...]:
    """Return in words what the program answered, or why it was not asked."""
    program = find_program(build)
    if program is None:
        return (f"{PROGRAM} was not asked: it is not on PATH, nor beside a llama-server",)
    command = [program, *dry_load_flags(path, context, sequences, kv_type)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S,
            check=False, text=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        return (f"{PROGRAM} was asked and did not answer: {problem}",)
    found = parse_answer(done.stdout)
    if not found:
        return (f"{PROGRAM} was asked and gave no figures (exit code {done.returncode})",)
    return tuple(
        f"{PROGRAM} says: {device} {sum(sizes):,} MiB = model {sizes[0]:,} + context {sizes[1]:,} "
        f"+ compute {sizes[2]:,}"
        for device, sizes in found
    )


def find_program(build: Build | None) -> str | None:
    """Return the program on PATH or beside the build's own."""
    if build is not None and build.kind == "binary":
        beside = Path(build.path).with_name(PROGRAM)
        if beside.exists():
            return str(beside)
    return shutil.which(PROGRAM)


def dry_load_flags(path: str, context: int, sequences: int, kv_type: str = "") -> list[str]:
    """Return the program's flags for a server with these slots."""
    flags = ["--model", path, "--ctx-size", str(context * sequences)]
    flags += ["--parallel", str(sequences), "--fit-print", "on"]
    if kv_type:
        flags += ["--cache-type-k", kv_type, "--cache-type-v", kv_type]
    return flags


def parse_answer(text: str) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Return each device with the MiB of model, context and compute buffers."""
    return tuple(
        (device, (int(model), int(context), int(compute)))
        for device, model, context, compute in LINE.findall(text)
    )
