"""NVIDIA GPUs: by NVML where `nvidia-ml-py` is installed, else by nvidia-smi, else by /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from enginehouse.core.facts import Fact
from enginehouse.edges.machine.cpu import field
from enginehouse.edges.seam import Answer, Reader, whole_of

PROGRAMS = ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi")
QUERY = "--query-gpu=name,driver_version,memory.total,memory.free,compute_cap"
USERS = "--query-compute-apps=pid,process_name,used_memory"
FORM = "--format=csv,noheader,nounits"
TEGRA = {  # (GPU, compute capability) by a word of the device tree's `compatible`
    "tegra264": ("NVIDIA Thor", "11.0"),
    "tegra234": ("NVIDIA Orin", "8.7"),
    "tegra194": ("NVIDIA Xavier", "7.2"),
    "tegra186": ("NVIDIA TX2", "6.2"),
    "tegra210": ("NVIDIA Tegra X1", "5.3"),
}
SHARED_MEMORY = ("GB10", "Thor", "Orin", "Xavier", "Tegra")
COHERENT_MEMORY = ("GH200", "GB200", "GB300")


def nvidia_facts(reader: Reader) -> Iterator[Fact]:
    """Find the NVIDIA GPUs."""
    nvml = reader.source.ask("nvml")
    words = reader.text("/proc/device-tree/compatible").replace("nvidia,", " ").split()
    tegra = next((TEGRA[word] for word in words if word in TEGRA), None)
    if nvml and nvml.get("devices") and not tegra:
        yield from _by_nvml(reader, nvml)
    elif tegra:
        yield from _tegra(reader, *tegra)
    else:
        yield from _by_smi(reader)


def _by_nvml(reader: Reader, nvml: dict[str, Any]) -> Iterator[Fact]:
    for number, device in enumerate(nvml["devices"]):
        users = tuple(
            f"{pid} {'-' if size is None else size} {name}" for pid, name, size in device["users"]
        )
        values = {
            "name": device["name"],
            "driver": nvml["driver"],
            "cuda": nvml["cuda"],
            "arch": device["arch"],
            "memory_total_bytes": device["memory_total_bytes"],
            "memory_free_bytes": device["memory_free_bytes"],
            "users": users or None,
        }
        yield from _gpu(reader, number, values, "library NVML")


def _by_smi(reader: Reader) -> Iterator[Fact]:
    for program in PROGRAMS:
        said = reader.source.run(program, QUERY, FORM)
        if said is not None and said.worked:
            yield from _smi_rows(reader, program, said)
            return
        if said is not None:
            first = next(iter(said.output.splitlines()), "it took too long")
            yield reader.from_command("nvidia.smi_error", first, program, QUERY)
    folder = "/proc/driver/nvidia/gpus/*/information"
    for number, path in enumerate(reader.source.glob(folder)):
        name = field(reader.text(path), "Model") or "NVIDIA GPU"
        yield from _gpu(reader, number, {"name": name}, f"file {path}")


def _smi_rows(reader: Reader, program: str, said: Answer) -> Iterator[Fact]:
    banner = reader.source.run(program)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", banner.output if banner else "")
    rows = [[cell.strip() for cell in row.split(",")] for row in said.output.splitlines()]
    users = _smi_users(reader, program)
    for number, row in enumerate(row for row in rows if len(row) == 5):
        name, driver, total, free, arch = row
        values = {
            "name": name,
            "driver": driver,
            "cuda": cuda[1] if cuda else None,
            "arch": arch if re.fullmatch(r"\d+\.\d+", arch) else None,
            "memory_total_bytes": _mib(total),
            "memory_free_bytes": _mib(free),
            "users": users if number == 0 and users else None,
        }
        yield from _gpu(reader, number, values, f"command {program} {QUERY}")


def _smi_users(reader: Reader, program: str) -> tuple[str, ...]:
    said = reader.source.run(program, USERS, FORM)
    if said is None or not said.worked:
        return ()
    rows = [[cell.strip() for cell in row.split(",")] for row in said.output.splitlines()]
    return tuple(
        f"{pid} {_mib(size) or '-'} {name.rsplit('/', 1)[-1]}"
        for pid, name, size in (row for row in rows if len(row) == 3)
        if whole_of(pid) is not None
    )


def _tegra(reader: Reader, name: str, arch: str) -> Iterator[Fact]:
    """Describe Tegra's GPU; its memory is the machine's, and nvidia-smi cannot say more."""
    values: dict[str, Any] = {"name": name, "arch": arch}
    version = "/proc/driver/nvidia/version"
    match = re.search(r"Kernel Module\D*(\d+\.\d+(?:\.\d+)?)", reader.text(version))
    banner = reader.source.run("nvidia-smi")
    said = banner.output if banner and banner.worked else ""
    driver = re.search(r"Driver Version:\s*([\d.]+)", said)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", said)
    if driver or match:
        values["driver"] = driver[1] if driver else match[1] if match else None
    if cuda:
        values["cuda"] = cuda[1]
    knows_users = bool(said) and "(nvgpu)" not in said
    if knows_users:
        values["users"] = _smi_users(reader, "nvidia-smi") or None
    origin = "file /proc/device-tree/compatible"
    yield from _gpu(reader, 0, values, f"{origin}, command nvidia-smi" if said else origin)
    if said:
        blind = "Not Supported" in said or "N/A" in said
        yield reader.from_command("nvidia.smi_lacks_memory", blind, "nvidia-smi")
        yield reader.from_command("nvidia.smi_lacks_users", not knows_users, "nvidia-smi")


def _gpu(reader: Reader, number: int, values: dict[str, Any], origin: str) -> Iterator[Fact]:
    group = f"gpu.nvidia{number}"
    name = str(values["name"])
    shared = any(mark in name for mark in SHARED_MEMORY)
    yield reader.fact(f"{group}.name", name, origin)
    yield reader.fact(f"{group}.vendor", "nvidia", origin)
    yield reader.fact(f"{group}.unified", shared, "from its name")
    if any(mark in name for mark in COHERENT_MEMORY):
        yield reader.fact(f"{group}.coherent", True, "from its name")
    for part, value in values.items():
        if part != "name" and value is not None and not (shared and part.startswith("memory_")):
            yield reader.fact(f"{group}.{part}", value, origin)
    for part in ("cuda", "driver"):
        major = whole_of(str(values.get(part) or "").split(".")[0])
        if major is not None:
            yield reader.fact(f"{group}.{part}_major", major, f"from {group}.{part}")


def _mib(text: str) -> int | None:
    size = whole_of(text)
    return None if size is None else size << 20
