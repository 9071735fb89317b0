"""The limits that cgroups (v1 and v2) set on this process."""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginehouse.edges.seam import Reader, whole_of

UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class Cgroup:
    """The tightest limits over this process's cgroup and its parents, and where they stand."""

    limit_bytes: int | None = None
    used_bytes: int = 0
    cores: float | None = None
    limit_path: str = ""
    cores_path: str = ""

    @staticmethod
    def find(reader: Reader) -> Cgroup:
        """Read the tightest limits."""
        tightest = Cgroup()
        for line in reader.text("/proc/self/cgroup").splitlines():
            number, _, rest = line.partition(":")
            controllers, colon, path = rest.partition(":")
            names = controllers.split(",")
            for folder in _upwards(path) if colon else ():
                if number == "0":
                    tightest = tightest._tighter(_v2(reader, folder))
                if "memory" in names:
                    tightest = tightest._tighter(_v1_memory(reader, folder))
                if "cpu" in names:
                    tightest = tightest._tighter(_v1_cpu(reader, folder))
        return tightest

    def left_of(self, available_bytes: int) -> int:
        """Return what is left of the available memory under the limit."""
        if self.limit_bytes is None:
            return available_bytes
        return min(available_bytes, max(0, self.limit_bytes - self.used_bytes))

    def _tighter(self, other: Cgroup) -> Cgroup:
        memory, cpu = self, self
        if other.limit_bytes is not None and (
            self.limit_bytes is None or other.limit_bytes < self.limit_bytes
        ):
            memory = other
        if other.cores is not None and (self.cores is None or other.cores < self.cores):
            cpu = other
        return Cgroup(
            memory.limit_bytes, memory.used_bytes, cpu.cores, memory.limit_path, cpu.cores_path
        )


def _v2(reader: Reader, path: str) -> Cgroup:
    folder = f"/sys/fs/cgroup{path}"
    quota, _, period = reader.text(f"{folder}/cpu.max").partition(" ")
    cores, each = whole_of(quota), whole_of(period)
    return Cgroup(
        _real_limit(reader.whole(f"{folder}/memory.max")),
        _used(reader, folder, "memory.current", "inactive_file"),
        cores / each if cores and each else None,
        f"{folder}/memory.max",
        f"{folder}/cpu.max",
    )


def _v1_memory(reader: Reader, path: str) -> Cgroup:
    folder = f"/sys/fs/cgroup/memory{path}"
    return Cgroup(
        _real_limit(reader.whole(f"{folder}/memory.limit_in_bytes")),
        _used(reader, folder, "memory.usage_in_bytes", "total_inactive_file"),
        limit_path=f"{folder}/memory.limit_in_bytes",
    )


def _v1_cpu(reader: Reader, path: str) -> Cgroup:
    folder = f"/sys/fs/cgroup/cpu{path}"
    quota = reader.whole(f"{folder}/cpu.cfs_quota_us")
    period = reader.whole(f"{folder}/cpu.cfs_period_us")
    cores = quota / period if quota and quota > 0 and period else None
    return Cgroup(cores=cores, cores_path=f"{folder}/cpu.cfs_quota_us")


def _used(reader: Reader, folder: str, file: str, reclaimable: str) -> int:
    """Return the bytes in use without the file cache that the kernel would give back first."""
    match = re.search(rf"^{reclaimable} (\d+)$", reader.text(f"{folder}/memory.stat"), re.M)
    return max(0, (reader.whole(f"{folder}/{file}") or 0) - (int(match[1]) if match else 0))


def _upwards(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["".join(f"/{part}" for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _real_limit(limit: int | None) -> int | None:
    return limit if limit is not None and limit < UNLIMITED_BYTES else None
