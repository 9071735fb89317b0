"""A memory cgroup around one engine, where this user may make one; else none.

Three ways, the first that works: cgroup v2 (a folder of the root's, or a delegated one), cgroup v1
(a folder below our own), or a scope of the user's systemd. The engine is put into the group before
its program begins (a shell writes its own process id and becomes the program), so that nothing it
allocates or forks is outside. The group is removed with the engine; one whose owner died is
removed at the next start.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
V1_LINE = re.compile(r"^\d+:(?:[\w,]+,)?memory(?:,[\w,]+)?:(/.*)$", re.MULTILINE)
V2_LINE = re.compile(r"^0::(/.*)$", re.MULTILINE)
NAME = re.compile(r"enginehouse-(\d+)-\d+")
OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
ENTER = 'echo $$ > "$1" && shift && exec "$@"'
REMOVE_LIMIT_S = 2.0
SYSTEMD_LIMIT_S = 3.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Fence:
    """A memory limit around one engine: `way` is how, `prefix` the head of the engine's argv."""

    way: str
    prefix: tuple[str, ...]
    limit_bytes: int = 0
    folder: Path | None = None

    def has_struck(self) -> bool:
        """Whether the kernel ended something in the group for its limit."""
        if self.folder is None:
            return False
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                found = OOM_KILLS.search((self.folder / name).read_text())
                return bool(found) and int(found[1]) > 0  # type: ignore[index]
        return False

    def remove(self) -> None:
        """Remove the group once it is empty; a process that is just dying is waited for."""
        if self.folder is not None:
            _remove(self.folder, REMOVE_LIMIT_S)


NO_FENCE = Fence("watcher", ())


def raise_fence(limit_bytes: int) -> Fence:
    """Make a memory cgroup with a limit; without the right to, only the watcher guards."""
    for make in (_make_v2, _make_v1):
        folder = make(limit_bytes)
        if folder is not None:
            way = "cgroup v2" if make is _make_v2 else "cgroup v1"
            prefix = ("/bin/sh", "-c", ENTER, "engine", str(folder / "cgroup.procs"))
            return Fence(way, prefix, limit_bytes, folder)
    if has_user_systemd():
        limits = ("-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0")
        scope = ("systemd-run", "--user", "--scope", "--quiet", "--collect", *limits, "--")
        return Fence("systemd scope", scope, limit_bytes)
    return NO_FENCE


@cache
def has_user_systemd() -> bool:
    """Whether the user's systemd answers and may limit memory; asked once."""
    if shutil.which("systemd-run") is None or "XDG_RUNTIME_DIR" not in os.environ:
        return False
    try:
        done = subprocess.run(
            ["systemd-run", "--user", "--scope", "--quiet", "-p", "MemoryMax=1G", "--", "true"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=SYSTEMD_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _make_v1(limit_bytes: int) -> Path | None:
    own = _own_path(V1_LINE)
    parent = ROOT / "memory" / own.lstrip("/") if own is not None else ROOT / "memory"
    for place in (parent, ROOT / "memory"):
        folder = _make(place, {"memory.limit_in_bytes": limit_bytes})
        if folder is not None:
            with suppress(OSError):  # only where swap is accounted
                (folder / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
            return folder
    return None


def _make_v2(limit_bytes: int) -> Path | None:
    if not (ROOT / "cgroup.controllers").exists():
        return None
    own = (_own_path(V2_LINE) or "/").lstrip("/")
    for parent in ((ROOT / own).parent if own else ROOT, ROOT):
        with suppress(OSError):
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                folder = _make(parent, {"memory.max": limit_bytes, "memory.swap.max": 0})
                if folder is not None:
                    return folder
    return None


def _make(parent: Path, values: dict[str, int]) -> Path | None:
    """Make a group with these limits; None where that is not permitted."""
    try:
        _sweep(parent)
        folder = parent / f"enginehouse-{os.getpid()}-{next(_numbers)}"
        folder.mkdir()
    except OSError:
        return None
    try:
        for name, value in values.items():
            (folder / name).write_text(str(value))
        if not os.access(folder / "cgroup.procs", os.W_OK):
            raise PermissionError
    except OSError:
        _remove(folder, 0.0)
        return None
    return folder


def _sweep(parent: Path) -> None:
    """Remove the groups of an Enginehouse that is gone."""
    for folder in parent.glob("enginehouse-*"):
        match = NAME.fullmatch(folder.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(folder, 0.0)


def _remove(folder: Path, limit_s: float) -> None:
    ends_at = time.monotonic() + limit_s
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= ends_at:
                return
            time.sleep(0.01)
        else:
            return


def _own_path(line: re.Pattern[str]) -> str | None:
    try:
        found = line.search(Path("/proc/self/cgroup").read_text())
    except OSError:
        return None
    return found[1] if found else None
