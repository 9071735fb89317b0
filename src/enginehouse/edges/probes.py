"""Read the machine's facts. Every file is read below one root, so a recorded tree replays one."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.machine import Gpu, Machine

ISA = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class Probe:
    """Reads files below a root; what is missing or unreadable is an empty text."""

    root: Path = Path("/")

    def read(self, path: str) -> str:
        """Return a file's text without NULs and surrounding white space, empty when missing."""
        try:
            text = (self.root / path.lstrip("/")).read_text(errors="replace")
        except OSError:
            return ""
        return text.replace("\0", "").strip()

    def integer(self, path: str) -> int | None:
        """Return a file's whole number, None when it holds none (`max`, say)."""
        text = self.read(path)
        return int(text) if text.lstrip("-").isdigit() else None


def look_at_machine(root: Path = Path("/")) -> Machine:
    """Return the machine's facts now; memory in bytes."""
    probe = Probe(root)
    cpu = probe.read("/proc/cpuinfo")
    memory = read_meminfo(probe)
    cgroup = _Cgroup.find(probe)
    available = memory.get("MemAvailable", 0)
    if cgroup.limit_bytes is not None:
        available = min(available, max(0, cgroup.limit_bytes - cgroup.used_bytes))
    flags = set((_field(cpu, "flags") or _field(cpu, "Features")).split())
    release = probe.read("/etc/nv_tegra_release")
    l4t = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    board = probe.read("/proc/device-tree/model")
    physical = len(set(re.findall(r"^core id\s*:\s*(\d+)", cpu, re.M)))
    processors = len(re.findall(r"^processor\s*:", cpu, re.M)) or 1
    live = root == Path("/")
    affinity = len(os.sched_getaffinity(0)) if live else processors
    return Machine(
        architecture=platform.machine() if live else ("aarch64" if "Features" in cpu else "x86_64"),
        cpu_model=_field(cpu, "model name") or board or "unknown",
        isa=tuple(name for name in ISA if name in flags),
        physical_cores=physical or processors,
        usable_cores=max(1, min(affinity, math.ceil(cgroup.cores or affinity))),
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=available,
        memory_limit_bytes=cgroup.limit_bytes,
        swap_used_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        swap_total_bytes=memory.get("SwapTotal", 0),
        kernel=platform.release() if live else probe.read("/proc/sys/kernel/osrelease"),
        os_name=_os_name(probe.read("/etc/os-release")),
        board=board,
        l4t=f"{l4t[1]}.{l4t[2]}" if l4t else "",
        gpus=_gpus(probe, board),
    )


def read_meminfo(probe: Probe) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    pairs = re.findall(r"^(\w+):\s+(\d+) kB", probe.read("/proc/meminfo"), re.M)
    return {name: int(kib) * 1024 for name, kib in pairs}


def read_available_bytes() -> int:
    """Return MemAvailable now, capped by the cgroup; cheap enough for a guard."""
    probe = Probe()
    available = read_meminfo(probe).get("MemAvailable", 0)
    cgroup = _Cgroup.find(probe)
    if cgroup.limit_bytes is None:
        return available
    return min(available, max(0, cgroup.limit_bytes - cgroup.used_bytes))


@dataclass(frozen=True)
class _Cgroup:
    """The tightest limits over this process's cgroup and its parents (v1 and v2)."""

    limit_bytes: int | None = None
    used_bytes: int = 0
    cores: float | None = None

    @staticmethod
    def find(probe: Probe) -> _Cgroup:
        tightest = _Cgroup()
        for line in probe.read("/proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                folders = [f"/sys/fs/cgroup{p}" for p in _upwards(path)]
                found = [_Cgroup._v2(probe, folder) for folder in folders]
            elif "memory" in controllers.split(","):
                found = [_Cgroup._v1_memory(probe, p) for p in _upwards(path)]
            elif "cpu" in controllers.split(","):
                found = [_Cgroup._v1_cpu(probe, p) for p in _upwards(path)]
            else:
                continue
            for one in found:
                tightest = tightest._tighter(one)
        return tightest

    def _tighter(self, other: _Cgroup) -> _Cgroup:
        limit, used = self.limit_bytes, self.used_bytes
        if other.limit_bytes is not None and (limit is None or other.limit_bytes < limit):
            limit, used = other.limit_bytes, other.used_bytes
        quotas = [cores for cores in (self.cores, other.cores) if cores is not None]
        return _Cgroup(limit, used, min(quotas, default=None))

    @staticmethod
    def _v2(probe: Probe, folder: str) -> _Cgroup:
        used = (probe.integer(f"{folder}/memory.current") or 0) - _reclaimable(
            probe.read(f"{folder}/memory.stat"), "inactive_file"
        )
        quota, _, period = probe.read(f"{folder}/cpu.max").partition(" ")
        cores = int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
        return _Cgroup(_real_limit(probe.integer(f"{folder}/memory.max")), max(0, used), cores)

    @staticmethod
    def _v1_memory(probe: Probe, path: str) -> _Cgroup:
        folder = f"/sys/fs/cgroup/memory{path}"
        used = (probe.integer(f"{folder}/memory.usage_in_bytes") or 0) - _reclaimable(
            probe.read(f"{folder}/memory.stat"), "total_inactive_file"
        )
        limit = _real_limit(probe.integer(f"{folder}/memory.limit_in_bytes"))
        return _Cgroup(limit, max(0, used), None)

    @staticmethod
    def _v1_cpu(probe: Probe, path: str) -> _Cgroup:
        quota = probe.integer(f"/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us")
        period = probe.integer(f"/sys/fs/cgroup/cpu{path}/cpu.cfs_period_us")
        return _Cgroup(cores=quota / period if quota and quota > 0 and period else None)


def _upwards(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["".join(f"/{part}" for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _real_limit(limit: int | None) -> int | None:
    return limit if limit is not None and limit < UNLIMITED_BYTES else None


def _reclaimable(stat: str, name: str) -> int:
    match = re.search(rf"^{name} (\d+)$", stat, re.M)
    return int(match[1]) if match else 0


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.M)
    return match[1].strip() if match else ""


def _os_name(text: str) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.M)
    return match[1] if match else ""


def _gpus(probe: Probe, board: str) -> tuple[Gpu, ...]:
    if "Jetson" in board:
        return (Gpu(name=board, vendor="nvidia", unified=True),)
    folder = probe.root / "proc/driver/nvidia/gpus"
    found = sorted(folder.glob("*/information")) if folder.is_dir() else []
    texts = [probe.read(str(path.relative_to(probe.root))) for path in found]
    return tuple(Gpu(name=_field(text, "Model") or "NVIDIA GPU", vendor="nvidia") for text in texts)
