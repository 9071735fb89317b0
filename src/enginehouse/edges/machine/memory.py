"""The main memory: what is there, available, limited, swapped, compressed, under pressure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.machine.cgroup import Cgroup
from enginehouse.edges.seam import Reader, whole_of

INFO = "/proc/meminfo"
PRESSURE = "/proc/pressure/memory"
SWAPPINESS = "/proc/sys/vm/swappiness"


def memory_facts(reader: Reader) -> Iterator[Fact]:
    """Find the memory's facts, in bytes."""
    info = read_meminfo(reader)
    if not info:
        yield from _by_library(reader)
        return
    cgroup = Cgroup.find(reader)
    sizes = {
        "total": info.get("MemTotal", 0),
        "free": info.get("MemFree", 0),
        "page_cache": page_cache_bytes(info),
        "swap_total": info.get("SwapTotal", 0),
        "swap_used": info.get("SwapTotal", 0) - info.get("SwapFree", 0),
    }
    for name, size in sizes.items():
        yield reader.from_file(f"memory.{name}_bytes", size, INFO)
    if "CmaTotal" in info:
        yield reader.from_file("memory.cma_total_bytes", info["CmaTotal"], INFO)
        yield reader.from_file("memory.cma_free_bytes", info.get("CmaFree", 0), INFO)
    available = cgroup.left_of(info.get("MemAvailable", 0))
    if cgroup.limit_bytes is not None:
        yield reader.from_file("memory.limit_bytes", cgroup.limit_bytes, cgroup.limit_path)
        yield reader.from_file("memory.limit_used_bytes", cgroup.used_bytes, cgroup.limit_path)
    origin = f"{INFO} and {cgroup.limit_path}" if cgroup.limit_bytes is not None else INFO
    yield reader.from_file("memory.available_bytes", available, origin)
    yield from _zram(reader)
    yield from _pressure(reader)
    if (swappiness := reader.whole(SWAPPINESS)) is not None:
        yield reader.from_file("memory.swappiness", swappiness, SWAPPINESS)


def read_meminfo(reader: Reader) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    pairs = re.findall(r"^([\w()]+):\s+(\d{1,15}) kB", reader.text(INFO), re.M)
    return {name: int(kib) * 1024 for name, kib in pairs}


def page_cache_bytes(info: dict[str, int]) -> int:
    """Return what the kernel could give back of the file cache (shared memory cannot be)."""
    kept = info.get("Cached", 0) + info.get("Buffers", 0) + info.get("SReclaimable", 0)
    return max(0, kept - info.get("Shmem", 0))


def read_unlimited(reader: Reader) -> int:
    """Return MemAvailable in bytes, whatever a cgroup allows of it."""
    return read_meminfo(reader).get("MemAvailable", 0)


def _by_library(reader: Reader) -> Iterator[Fact]:
    """Where there is no /proc: psutil's view."""
    for name, size in (reader.source.ask("memory") or {}).items():
        yield reader.from_library(f"memory.{name}_bytes", int(size), "psutil")


def _zram(reader: Reader) -> Iterator[Fact]:
    devices = reader.source.glob("/sys/block/zram*/disksize")
    sizes = [reader.whole(path) or 0 for path in devices]
    if any(sizes):
        yield reader.from_file("memory.zram_bytes", sum(sizes), devices[0])
        stats = [reader.text(path.replace("disksize", "mm_stat")).split() for path in devices]
        used = sum(whole_of(fields[2]) or 0 for fields in stats if len(fields) > 2)
        path = devices[0].replace("disksize", "mm_stat")
        yield reader.from_file("memory.zram_used_bytes", used, path)


def _pressure(reader: Reader) -> Iterator[Fact]:
    text = reader.text(PRESSURE)
    for kind, share in re.findall(r"^(some|full) avg10=(\d{1,3}\.\d+)", text, re.M):
        yield reader.from_file(f"memory.pressure_{kind}_percent", float(share), PRESSURE)
