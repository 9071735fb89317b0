"""The processor: model, instruction sets, cores, the share that this process may use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.machine.cgroup import Cgroup
from enginehouse.edges.seam import Reader, whole_of

ISA = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
ARM_PARTS = {
    "0x41/0xd0b": "Cortex-A76", "0x41/0xd42": "Cortex-A78AE", "0x41/0xd83": "Neoverse-V3AE",
    "0x41/0xd4f": "Neoverse-V2", "0x41/0xd85": "Cortex-X925", "0x41/0xd87": "Cortex-A725",
    "0x41/0xd08": "Cortex-A72", "0x41/0xd07": "Cortex-A57", "0x41/0xd03": "Cortex-A53",
    "0x41/0xd40": "Neoverse-V1", "0x41/0xd0c": "Neoverse-N1", "0x41/0xd49": "Neoverse-N2",
    "0x4e/0x004": "Carmel", "0x4e/0x003": "Denver 2",
}  # fmt: skip
"""Implementer/part of /proc/cpuinfo, as in the kernel's arch/arm64/include/asm/cputype.h."""
INFO = "/proc/cpuinfo"
PRESENT = "/sys/devices/system/cpu/present"
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
DRIVER = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
APPLE = ("sysctl", "-n", "machdep.cpu.brand_string", "hw.physicalcpu", "hw.memsize")


def cpu_facts(reader: Reader) -> Iterator[Fact]:
    """Find the CPU's facts."""
    info = reader.text(INFO)
    if not info:
        yield from _apple(reader)
        return
    flags = set((field(info, "flags") or field(info, "Features")).split())
    processors = len(re.findall(r"^processor\s*:", info, re.M)) or 1
    allowed = count_cpus(field(reader.text("/proc/self/status"), "Cpus_allowed_list"))
    cgroup = Cgroup.find(reader)
    yield reader.from_file("cpu.model", field(info, "model name") or _arm_name(info), INFO)
    yield reader.from_file("cpu.isa", tuple(name for name in ISA if name in flags), INFO)
    yield reader.from_file("cpu.logical_cores", processors, INFO)
    present = count_cpus(reader.text(PRESENT))
    if present > processors:
        yield reader.from_file("cpu.offline_cores", present - processors, PRESENT)
    yield reader.from_file("cpu.physical_cores", _physical(info) or processors, INFO)
    if allowed:
        yield reader.from_file("cpu.allowed_cores", allowed, "/proc/self/status")
    if cgroup.cores is not None:
        yield reader.from_file("cpu.quota_cores", round(cgroup.cores, 2), cgroup.cores_path)
    usable = min(allowed or processors, math.ceil(cgroup.cores or processors))
    yield reader.fact("cpu.usable_cores", max(1, usable), "from affinity and cgroup quota")
    if governor := reader.text(GOVERNOR):
        yield reader.from_file("cpu.governor", governor, GOVERNOR)
    if driver := reader.text(DRIVER):
        yield reader.from_file("cpu.frequency_driver", driver, DRIVER)
    nodes = count_cpus(reader.text("/sys/devices/system/node/online"))
    if nodes:
        yield reader.from_file("cpu.numa_nodes", nodes, "/sys/devices/system/node/online")


def _apple(reader: Reader) -> Iterator[Fact]:
    said = reader.source.run(*APPLE)
    lines = said.output.splitlines() if said and said.worked else []
    cores = whole_of(lines[1]) if len(lines) == 3 else None
    if cores is not None:
        yield reader.from_command("cpu.model", lines[0], *APPLE)
        yield reader.from_command("cpu.isa", ("asimd",) if "Apple" in lines[0] else (), *APPLE)
        yield reader.from_command("cpu.physical_cores", cores, *APPLE)
        yield reader.from_command("cpu.logical_cores", cores, *APPLE)
        yield reader.from_command("cpu.usable_cores", cores, *APPLE)


def field(text: str, name: str) -> str:
    """Return the value of the first `name : value` line, empty when there is none."""
    match = re.search(rf"^{re.escape(name)}\s*:[ \t]*(.+)$", text, re.M)
    return match[1].strip() if match else ""


def count_cpus(ranges: str) -> int:
    """Count the members of a kernel list such as `0-3,7`.

    >>> count_cpus("0-3,7"), count_cpus("")
    (5, 0)
    """
    count = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        count += int(last or first) - int(first) + 1
    return count


def _physical(info: str) -> int:
    package, cores = "0", set()
    for name, value in re.findall(r"^(physical id|core id)\s*:\s*(\d+)", info, re.M):
        if name == "physical id":
            package = value
        else:
            cores.add((package, value))
    return len(cores)


def _arm_name(info: str) -> str:
    parts = zip(
        re.findall(r"^CPU implementer\s*:\s*(\S+)", info, re.M),
        re.findall(r"^CPU part\s*:\s*(\S+)", info, re.M),
        strict=False,
    )
    names = (ARM_PARTS.get(f"{maker}/{part}", f"ARM {maker}/{part}") for maker, part in parts)
    return " + ".join(dict.fromkeys(names)) or "unknown"
