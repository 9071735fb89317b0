"""Read the machine's facts. Every file is read below one root, so a recorded tree replays one."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.machine import Gpu, Machine

ISA = {
    "avx2": "avx2", "avx_vnni": "avx_vnni", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16", "amx_tile": "amx_tile", "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16", "neon": "neon", "asimd": "neon", "asimddp": "dotprod",
    "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
}  # fmt: skip
"""The kernel's CPU flags that matter to an engine, and the name they are known by."""

ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE", ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2", ("0x4e", "0x004"): "Carmel",
}  # fmt: skip
"""ARM cores by implementer and part, as MIDR_EL1 numbers them (the kernel's asm/cputype.h)."""

TEGRA_GPUS = {"tegra234": "Orin", "tegra194": "Xavier"}
"""What CUDA calls the GPU of a Tegra; one that is missing here is named after its board."""

UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class Probe:
    """Reads files below a root; what is missing or unreadable is an empty text."""

    root: Path = Path("/")

    def read(self, path: str) -> str:
        """Return a file's text without surrounding white space; NULs become ends of lines."""
        try:
            text = (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return text.replace("\0", "\n").strip()

    def integer(self, path: str) -> int | None:
        """Return a file's whole number, None when it holds none (`max`, say)."""
        text = self.read(path)
        return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None

    def find(self, folder: str, pattern: str) -> list[str]:
        """Return the paths below a folder that match a pattern, sorted."""
        found = sorted((self.root / folder.lstrip("/")).glob(pattern))
        return [f"/{path.relative_to(self.root)}" for path in found]


@dataclass(frozen=True)
class Pressure:
    """Share of the last 10 s, in %, that some or all tasks stood still for want of memory."""

    some_percent: float
    full_percent: float


def look_at_machine(root: Path = Path("/")) -> Machine:
    """Return the machine's facts now; memory in bytes.

    `root` may be a recorded tree of /proc, /sys and /etc, which replays the machine it is from.
    """
    probe = Probe(root)
    cpu = probe.read("/proc/cpuinfo")
    memory = read_meminfo(probe)
    cgroup = _Cgroup.find(probe, memory.get("MemTotal", 0))
    board = probe.read("/proc/device-tree/model")
    l4t = _l4t(probe)
    cores = _cores_allowed(probe, cpu)
    return Machine(
        architecture=_architecture(probe, cpu),
        cpu_model=_cpu_model(cpu) or board or "unknown",
        isa=_isa(cpu),
        physical_cores=_physical_cores(cpu),
        usable_cores=max(1, min(cores, math.ceil(cgroup.cores or cores))),
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=min(_mem_available(memory), cgroup.left(_mem_available(memory))),
        memory_limit_bytes=cgroup.limit_bytes,
        swap_used_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        swap_total_bytes=memory.get("SwapTotal", 0),
        kernel=probe.read("/proc/sys/kernel/osrelease"),
        os_name=_os_name(probe),
        board=board,
        l4t=l4t,
        gpus=_gpus(probe, board, l4t),
    )


def read_meminfo(probe: Probe) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    pairs = re.findall(r"^([\w()]+):\s+(\d+) kB", probe.read("/proc/meminfo"), re.M)
    return {name: int(kib) * 1024 for name, kib in pairs}


def read_available_bytes(probe: Probe | None = None) -> int:
    """Return MemAvailable now, capped by what the cgroup leaves; cheap enough for a guard."""
    probe = probe or Probe()
    memory = read_meminfo(probe)
    available = _mem_available(memory)
    return min(available, _Cgroup.find(probe, memory.get("MemTotal", 0)).left(available))


def read_psi(probe: Probe | None = None) -> Pressure | None:
    """Return the memory pressure of this process's cgroup, else the machine's; None without PSI."""
    probe = probe or Probe()
    own = re.search(r"^0::(/.*)$", probe.read("/proc/self/cgroup"), re.M)
    folder = f"/sys/fs/cgroup{own[1].rstrip('/')}" if own else "/sys/fs/cgroup"
    text = probe.read(f"{folder}/memory.pressure") or probe.read("/proc/pressure/memory")
    found = dict(re.findall(r"^(some|full) avg10=([\d.]+)", text, re.M))
    if "some" not in found:
        return None
    return Pressure(float(found["some"]), float(found.get("full", 0)))


def read_governor(probe: Probe | None = None) -> tuple[str, str]:
    """Return the first core's frequency governor and driver, empty where there is none."""
    probe = probe or Probe()
    folder = "/sys/devices/system/cpu/cpu0/cpufreq"
    return probe.read(f"{folder}/scaling_governor"), probe.read(f"{folder}/scaling_driver")


@dataclass(frozen=True)
class _Cgroup:
    """The tightest limits over this process's cgroup and its parents (v1 and v2).

    `left_bytes` is the least that any of them leaves: limit - usage + page cache that can go.
    """

    limit_bytes: int | None = None
    left_bytes: int | None = None
    cores: float | None = None

    def left(self, otherwise: int) -> int:
        """Return what the cgroups leave, `otherwise` when none limits memory."""
        return otherwise if self.left_bytes is None else self.left_bytes

    @staticmethod
    def find(probe: Probe, total_bytes: int) -> _Cgroup:
        """Walk from this process's cgroups upwards.

        Inside a container without a cgroup namespace the path is the host's and does not exist
        here; the walk then ends at the mount point, which holds the container's own limits.
        """
        found = []
        for line in probe.read("/proc/self/cgroup").splitlines():
            _, names, path = line.split(":", 2)
            controllers = names.split(",")
            for parent in _upwards(path):
                if not names:
                    found.append(_Cgroup._v2(probe, f"/sys/fs/cgroup{parent}"))
                if "memory" in controllers:
                    found.append(_Cgroup._v1_memory(probe, f"/sys/fs/cgroup/memory{parent}"))
                if "cpu" in controllers:
                    found += [
                        _Cgroup._v1_cpu(probe, f"/sys/fs/cgroup/{mount}{parent}")
                        for mount in dict.fromkeys(("cpu", names))
                    ]
        limited = [
            one for one in found if one.limit_bytes is not None and one.limit_bytes < total_bytes
        ]
        return _Cgroup(
            min((one.limit_bytes for one in limited if one.limit_bytes is not None), default=None),
            min((one.left_bytes for one in limited if one.left_bytes is not None), default=None),
            min((one.cores for one in found if one.cores is not None), default=None),
        )

    @staticmethod
    def _v2(probe: Probe, folder: str) -> _Cgroup:
        limit = probe.integer(f"{folder}/memory.max")
        used = probe.integer(f"{folder}/memory.current")
        stat = probe.read(f"{folder}/memory.stat") if limit is not None else ""
        quota, _, period = probe.read(f"{folder}/cpu.max").partition(" ")
        cores = int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
        return _Cgroup(limit, _left(limit, used, stat, "inactive_file"), cores)

    @staticmethod
    def _v1_memory(probe: Probe, folder: str) -> _Cgroup:
        limit = probe.integer(f"{folder}/memory.limit_in_bytes")
        if limit is None or limit >= UNLIMITED_BYTES:
            return _Cgroup()
        used = probe.integer(f"{folder}/memory.usage_in_bytes")
        stat = probe.read(f"{folder}/memory.stat")
        return _Cgroup(limit, _left(limit, used, stat, "total_inactive_file"))

    @staticmethod
    def _v1_cpu(probe: Probe, folder: str) -> _Cgroup:
        quota = probe.integer(f"{folder}/cpu.cfs_quota_us")
        period = probe.integer(f"{folder}/cpu.cfs_period_us")
        return _Cgroup(cores=quota / period if quota and quota > 0 and period else None)


def _upwards(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["".join(f"/{part}" for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _left(limit: int | None, used: int | None, stat: str, reclaimable: str) -> int | None:
    if limit is None:
        return None
    match = re.search(rf"^{reclaimable} (\d+)$", stat, re.M)
    return max(0, limit - max(0, (used or 0) - (int(match[1]) if match else 0)))


def _mem_available(memory: dict[str, int]) -> int:
    """Return MemAvailable; kernels before 3.14 do not say it, there free + cache stands for it."""
    rough = sum(memory.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    return memory.get("MemAvailable", rough)


def _architecture(probe: Probe, cpu: str) -> str:
    """Return the architecture by the tree; /proc/sys/kernel/arch is there since Linux 6.1."""
    if told := probe.read("/proc/sys/kernel/arch"):
        return told
    if probe.root == Path("/") or not cpu:
        return platform.machine()
    return "aarch64" if _field(cpu, "Features") else "x86_64"


def _cpu_model(cpu: str) -> str:
    """Name the CPU; on ARM by its part, since `model name` there is only `ARMv8 Processor`."""
    part = (_field(cpu, "CPU implementer"), _field(cpu, "CPU part"))
    if part in ARM_PARTS:
        return ARM_PARTS[part]
    unnamed = f"ARM implementer {part[0]} part {part[1]}" if all(part) else ""
    return _field(cpu, "model name") or unnamed


def _isa(cpu: str) -> tuple[str, ...]:
    flags = set((_field(cpu, "flags") or _field(cpu, "Features")).split())
    return tuple(dict.fromkeys(name for flag, name in ISA.items() if flag in flags))


def _physical_cores(cpu: str) -> int:
    """Count cores without their second threads: distinct pairs of socket and core."""
    pairs = {
        (_field(processor, "physical id"), core)
        for processor in cpu.split("\n\n")
        if (core := _field(processor, "core id"))
    }
    return len(pairs) or _processors(cpu)


def _processors(cpu: str) -> int:
    return len(re.findall(r"^processor\s*:", cpu, re.M)) or 1


def _cores_allowed(probe: Probe, cpu: str) -> int:
    """Count the cores this process may run on: affinity (the kernel keeps it in the cpuset).

    Cores that are offline (a Jetson's power mode) stay in the mask and are left out here.
    """
    allowed = _numbers(_field(probe.read("/proc/self/status"), "Cpus_allowed_list"))
    online = _numbers(probe.read("/sys/devices/system/cpu/online"))
    if allowed and online:
        return len(allowed & online) or 1
    return min(len(allowed) or _processors(cpu), _processors(cpu))


def _numbers(ranges: str) -> set[int]:
    """Return the numbers of a list such as `0-3,6`."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        found.update(range(int(first), int(last or first) + 1))
    return found


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*:[ \t]*(.+)$", text, re.M)
    return match[1].strip() if match else ""


def _os_name(probe: Probe) -> str:
    text = probe.read("/etc/os-release") or probe.read("/usr/lib/os-release")
    match = re.search(r"""^PRETTY_NAME=["']?([^"'\n]+)""", text, re.M)
    return match[1] if match else ""


def _l4t(probe: Probe) -> str:
    release = probe.read("/etc/nv_tegra_release")
    match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{match[1]}.{match[2]}" if match else ""


def _gpus(probe: Probe, board: str, l4t: str) -> tuple[Gpu, ...]:
    """Name the GPUs; a Tegra's is known by the device tree, whose text a carrier board may change.

    A container may hide the device tree; L4T's release file, where mounted, then tells as much.
    """
    tegra = re.search(r"nvidia,(tegra\d+)", probe.read("/proc/device-tree/compatible"))
    if tegra or l4t or "NVIDIA Jetson" in board:
        name = TEGRA_GPUS.get(tegra[1]) if tegra else None
        return (Gpu(name=name or board or "NVIDIA Tegra", vendor="nvidia", unified=True),)
    texts = [probe.read(path) for path in probe.find("/proc/driver/nvidia/gpus", "*/information")]
    return tuple(Gpu(name=_field(text, "Model") or "NVIDIA GPU", vendor="nvidia") for text in texts)
