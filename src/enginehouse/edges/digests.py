"""SHA-256 of files, the large ones computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.edges.paths import cache_dir


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
