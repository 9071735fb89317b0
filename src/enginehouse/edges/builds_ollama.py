"""Find an installed Ollama; the daemon that may be running is not asked anything."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.core.errors import UserError
from enginehouse.edges.paths import engines_dir, program_path

ENGINE = "ollama"
VERSION = re.compile(r"version is (\d[\w.+-]*)")
"""`ollama --version` says the running daemon's version, or warns and says the program's own; the
last one named is the program's (`cmd/cmd.go`)."""
VERSION_LIMIT_S = 10
NOWHERE = "127.0.0.1:1"
"""Where no daemon is, so that the program speaks of itself."""


def find_ollama(named: str = "") -> tuple[Build, ...]:
    """Return the Ollama named here or on PATH, with a store of Enginehouse's own.

    Raises:
        UserError: `engine.not_usable`, when the named program cannot be one.
    """
    program = program_path(named or ENGINE)
    said = _ask_version(program) if program else f"{named}: no such file, or not executable"
    versions = VERSION.findall(said) if program else []
    if program is None or not versions:
        if not named:
            return ()
        raise UserError(
            "engine.not_usable",
            f"engine.ollama.path names {named}, which is not an Ollama",
            evidence=(said.strip()[:200],),
            remedies=("give the path of the program `ollama`, or remove the setting",),
        )
    from enginehouse.edges.digests import digest_file  # which asks this module in its turn

    return (
        Build(
            engine=ENGINE,
            kind="binary",
            version=versions[-1],
            digest=digest_file(Path(program)),
            command=("/usr/bin/env", f"OLLAMA_MODELS={store_dir()}", program),
            path=program,
        ),
    )


def store_dir() -> Path:
    """Return the store of our own daemons: on the disk, since an import copies the model there."""
    return engines_dir() / ENGINE / "models"


def _ask_version(program: str) -> str:
    try:
        done = subprocess.run(
            ["/usr/bin/env", f"OLLAMA_HOST={NOWHERE}", program, "--version"],
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return (done.stdout + done.stderr).decode(errors="replace")
