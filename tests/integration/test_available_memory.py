"""What the guard reads again and again: available memory under a cgroup's limit that may come."""

from __future__ import annotations

from pathlib import Path

from enginehouse.edges.probes import LIMITS_EVERY_S, AvailableMemory
from enginehouse.edges.seam import LiveSource

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_limit_that_is_set_later_is_seen_within_seconds(tmp_path: Path) -> None:
    """Without a limit only /proc/meminfo is read; what changed is looked up every few seconds."""
    now = [0.0]
    write(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n",
            "proc/self/cgroup": "0::/user\n",
            "sys/fs/cgroup/user/memory.max": "max\n",
        },
    )
    available = AvailableMemory(LiveSource(root=tmp_path), lambda: now[0])
    assert available.read() == 8 * GIB
    limited = {
        "sys/fs/cgroup/user/memory.max": str(3 * GIB),
        "sys/fs/cgroup/user/memory.current": str(2 * GIB),
        "sys/fs/cgroup/user/memory.stat": f"inactive_file {GIB // 2}\n",
    }
    write(tmp_path, limited)
    now[0] = LIMITS_EVERY_S - 0.1
    assert available.read() == 8 * GIB
    now[0] = LIMITS_EVERY_S
    assert available.read() == 3 * GIB - (2 * GIB - GIB // 2)
    write(tmp_path, {"sys/fs/cgroup/user/memory.current": str(3 * GIB)})
    assert available.read() == GIB // 2


def test_memory_that_goes_is_seen_at_once(tmp_path: Path) -> None:
    """Each look reads what is available now."""
    write(tmp_path, {"proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n"})
    available = AvailableMemory(LiveSource(root=tmp_path), lambda: 0.0)
    assert available.read() == 8 * GIB
    write(tmp_path, {"proc/meminfo": f"MemAvailable: {GIB // 1024} kB\n"})
    assert available.read() == GIB
