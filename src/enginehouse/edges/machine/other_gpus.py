"""GPUs of AMD, Intel and Apple: recognised by name and memory (sysfs, lspci, KFD, sysctl)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.machine.cpu import APPLE
from enginehouse.edges.seam import Reader

VENDORS = {"0x1002": "amd", "0x8086": "intel"}
LSPCI = ("lspci", "-mm")
KFD_NODES = "/sys/class/kfd/kfd/topology/nodes/*/properties"
APU_ARCHS = {
    "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103", "gfx1150",
    "gfx1151", "gfx1152",
}  # fmt: skip
"""Architectures of GPUs inside a processor (LLVM's AMDGPU processor table)."""
SMALL_CARVE_OUT = 4
"""The memory that is carved out for an APU is unified with the rest in practice when it is less
than a quarter of what the GPU can map besides (GTT); a large one is a pool of its own."""
INTEL_INTEGRATED = "0000:00:02.0"
"""Where Intel's integrated GPU sits on the PCI bus; cards sit elsewhere."""


def other_gpu_facts(reader: Reader) -> Iterator[Fact]:
    """Find GPUs that are not NVIDIA's."""
    counts: dict[str, int] = {}
    for path in reader.source.glob("/sys/class/drm/card*/device/vendor"):
        vendor = VENDORS.get(reader.text(path))
        folder = path.removesuffix("/vendor")
        if vendor and re.search(r"/card\d+/device$", folder):
            number = counts[vendor] = counts.get(vendor, -1) + 1
            yield from _card(reader, folder, vendor, f"gpu.{vendor}{number}")
    platform = reader.source.ask("platform") or {}
    if platform.get("system") == "Darwin" and platform.get("machine") == "arm64":
        said = reader.source.run(*APPLE)
        chip = next(iter(said.output.splitlines()), "") if said and said.worked else ""
        yield reader.from_command("gpu.apple0.name", f"{chip or 'Apple'} GPU", *APPLE)
        yield reader.from_library("gpu.apple0.vendor", "apple", "platform")
        yield reader.from_library("gpu.apple0.unified", True, "platform")


def _card(reader: Reader, folder: str, vendor: str, group: str) -> Iterator[Fact]:
    device = reader.text(f"{folder}/device")
    name, origin = _name(reader, folder, vendor, device)
    vram = reader.whole(f"{folder}/mem_info_vram_total")
    gtt = reader.whole(f"{folder}/mem_info_gtt_total")
    arch = _gfx(reader) if vendor == "amd" else ""
    if vendor == "amd":
        inside = arch in APU_ARCHS if arch else vram is not None
        unified = inside and vram is not None and vram * SMALL_CARVE_OUT < (gtt or 0)
    else:
        unified = f"PCI_SLOT_NAME={INTEL_INTEGRATED}" in reader.text(f"{folder}/uevent")
    yield reader.fact(f"{group}.name", name, origin)
    yield reader.from_file(f"{group}.vendor", vendor, f"{folder}/vendor")
    yield reader.fact(f"{group}.unified", unified, f"from sizes in {folder}")
    if vram is not None:
        path = f"{folder}/mem_info_vram_total"
        total, used = vram, reader.whole(f"{folder}/mem_info_vram_used") or 0
        if unified:
            yield reader.from_file(f"{group}.carve_out_bytes", vram, path)
            yield reader.from_file(
                f"{group}.mappable_bytes", gtt or 0, f"{folder}/mem_info_gtt_total"
            )
        else:
            yield reader.from_file(f"{group}.memory_total_bytes", total, path)
            yield reader.from_file(f"{group}.memory_free_bytes", max(0, total - used), path)
    if arch:
        yield reader.from_file(f"{group}.arch", arch, KFD_NODES)


def _name(reader: Reader, folder: str, vendor: str, device: str) -> tuple[str, str]:
    product = f"{folder}/product_name"
    if text := reader.text(product):
        return text, f"file {product}"
    slot = re.search(r"^PCI_SLOT_NAME=(?:0000:)?(\S+)$", reader.text(f"{folder}/uevent"), re.M)
    said = reader.source.run(*LSPCI)
    if slot and said and said.worked:
        for line in said.output.splitlines():
            cells = re.findall(r'"([^"]*)"', line)
            if line.startswith(slot[1]) and len(cells) > 2:
                return _short(cells[2]), f"command {' '.join(LSPCI)}"
    label = {"amd": "AMD", "intel": "Intel"}[vendor]
    return f"{label} GPU {device}".strip(), f"file {folder}/device"


def _short(name: str) -> str:
    """Take the name people know out of lspci's: what stands in the last brackets."""
    inner = re.findall(r"\[([^\]]+)\]", name)
    return str(inner[-1]) if inner else name


def _gfx(reader: Reader) -> str:
    for path in reader.source.glob(KFD_NODES):
        version = re.search(r"^gfx_target_version ([1-9]\d+)$", reader.text(path), re.M)
        if version:
            number = int(version[1])
            return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"
    return ""
