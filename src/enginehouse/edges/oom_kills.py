"""Whether the kernel's memory killer struck in an engine's memory cgroup (v1 or v2).

The kernel counts it there for everybody to read, while its log is often root's alone.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
V1 = re.compile(r"^\d+:(?:[\w,]+,)?memory(?:,[\w,]+)?:(/.*)$", re.MULTILINE)
V2 = re.compile(r"^0::(/.*)$", re.MULTILINE)
COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The count of one process's cgroup, from the first look on; a process may be moved."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def look(self, pid: int) -> None:
        """Note where the process is counted, and how often the killer struck there before."""
        for file in _files_of(pid):
            if file not in self._files and (count := _count(file)) is not None:
                self._files[file] = count

    def describe(self) -> str:
        """Say that the killer has struck since, with the figures; empty when it did not."""
        for file, before in self._files.items():
            now = _count(file)
            if now is not None and now > before:
                return f"{file}: oom_kill {before} before, {now} after"
        return ""


def read_limit(pid: int) -> int | None:
    """Return the memory limit in bytes of a process's own cgroup, None where there is none."""
    for file in _files_of(pid):
        for name in ("memory.limit_in_bytes", "memory.max"):
            with suppress(OSError, ValueError):
                return int((file.parent / name).read_text())
    return None


def _files_of(pid: int) -> tuple[Path, ...]:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ()
    v1, v2 = V1.search(text), V2.search(text)
    found = []
    if v1:
        found.append(CGROUPS / "memory" / v1[1].lstrip("/") / "memory.oom_control")
    if v2:
        found.append(CGROUPS / v2[1].lstrip("/") / "memory.events")
    return tuple(found)


def _count(file: Path) -> int | None:
    try:
        found = COUNT.search(file.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
