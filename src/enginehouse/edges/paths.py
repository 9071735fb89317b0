"""Where Enginehouse keeps things: the user's state, cache and settings folders (XDG)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import platformdirs

from enginehouse.core.errors import MachineError

KEYS_NAME, REQUEST_LOG_NAME, ALIASES_NAME = "keys.json", "requests.sqlite", "aliases.json"
"""Files of the state folder beside the records."""


def state_dir() -> Path:
    """Return the folder of records, leases and logs (ENGINEHOUSE_STATE_DIR overrides)."""
    return _folder("ENGINEHOUSE_STATE_DIR", platformdirs.user_state_dir("enginehouse"))


def cache_dir() -> Path:
    """Return the folder of fetched models (ENGINEHOUSE_CACHE_DIR overrides)."""
    return _folder("ENGINEHOUSE_CACHE_DIR", platformdirs.user_cache_dir("enginehouse"))


def engines_dir() -> Path:
    """Return the folder of the engines that Enginehouse built or installed; it may not exist."""
    return cache_dir() / "engines"


def config_dir() -> Path:
    """Return the folder of config.toml (ENGINEHOUSE_CONFIG_DIR overrides); it may not exist."""
    return Path(
        os.environ.get("ENGINEHOUSE_CONFIG_DIR") or platformdirs.user_config_dir("enginehouse")
    )


def program_path(name: str) -> str | None:
    """Return a program's absolute path, by its name on PATH or by a path; None when there is none.

    Engines run in folders of their own, and what is recorded is started from others than this one.
    """
    found = shutil.which(name)
    return os.path.abspath(found) if found else None


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or default).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise MachineError(
            "disk.cannot_write",
            f"the folder {folder} cannot be used",
            evidence=(str(problem),),
            remedies=(f"set {variable} to a folder that you may write to",),
        ) from problem
    return folder
