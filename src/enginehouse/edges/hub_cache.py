"""The Hugging Face cache on this machine: from a repository's name or folder to its snapshot.

Layout: `models--OWNER--REPO/{refs/main,snapshots/COMMIT,blobs}` (huggingface_hub's guide
"Understand caching").
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from enginehouse.edges.byte_sources import file_error

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_cache() -> Path:
    """Return the cache's folder, as huggingface_hub finds it: HF_HUB_CACHE, HF_HOME, XDG."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def find_snapshot(repository: str) -> Path | None:
    """Return the snapshot of `owner/repo` in the cache, None when it is not there."""
    folder = hub_cache() / ("models--" + repository.replace("/", "--"))
    return snapshot_of(folder) if is_cache_folder(folder) else None


def is_cache_folder(path: Path) -> bool:
    """Whether a folder is one repository of such a cache."""
    return path.name.startswith("models--") and (path / "snapshots").is_dir()


def snapshot_of(folder: Path) -> Path:
    """Return a repository's snapshot: the one of `refs/main`, else the newest.

    Raises:
        UserError: `model.file.missing` when the folder has none.
    """
    reference = folder / "refs" / "main"
    if reference.is_file() and reference.stat().st_size < 100:
        commit = reference.read_text(errors="replace").strip()
        if re.fullmatch(r"\w{1,64}", commit) and (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    found = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    if not found:
        raise file_error(folder.name, str(folder), "missing", "it has no snapshot")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
