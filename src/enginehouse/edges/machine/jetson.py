"""Jetson: L4T, module, power mode, clocks, temperatures, users of NvMap."""

from __future__ import annotations

import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.seam import Reader

RELEASE = "/etc/nv_tegra_release"
PACKAGE = ("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core")
MODE = ("nvpmodel", "-q")
MODES = "/etc/nvpmodel.conf"
CLIENTS = "/sys/kernel/debug/nvmap/iovmm/clients"
EMC = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"
EMC_CAP = "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap"
GPU_CLOCKS = ("/sys/class/devfreq/*gpu*/max_freq", "/sys/class/devfreq/*gv11b/max_freq")
TARGET = ("systemctl", "get-default")
CUDA = "/usr/local/cuda/version.json"
PART = re.compile(r"p?(3767|3701|3668|2888|3448|3834|3310)-?(\d{4})")
"""A module's part number; other numbers beside it are the carrier board's."""
PART_FILES = (
    "/proc/device-tree/nvidia,boardids",
    "/proc/device-tree/nvidia,dtsfilename",
    "/etc/nv_boot_control.conf",
    "/proc/device-tree/compatible",
)


def jetson_facts(reader: Reader) -> Iterator[Fact]:
    """Find what only a Jetson has; nothing on any other machine."""
    release = reader.text(RELEASE)
    if not release and "Jetson" not in reader.text("/proc/device-tree/model"):
        return
    yield from _versions(reader, release)
    yield from _module(reader)
    target = reader.source.run(*TARGET)
    if target is not None and target.worked:
        yield reader.from_command("jetson.default_target", target.output, *TARGET)
    yield from _power(reader)
    yield from _clocks(reader)
    yield from _temperatures(reader)
    yield from _nvmap(reader)


def _versions(reader: Reader, release: str) -> Iterator[Fact]:
    first = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    said = reader.source.run(*PACKAGE)
    package = re.match(r"(\d+\.\d+\.\d+)", said.output) if said and said.worked else None
    if first:
        yield reader.from_file("jetson.l4t", f"{first[1]}.{first[2]}", RELEASE)
        yield reader.from_file("jetson.l4t_major", int(first[1]), RELEASE)
    elif package:
        yield reader.from_command("jetson.l4t", package[1], *PACKAGE)
        yield reader.from_command("jetson.l4t_major", int(package[1].split(".")[0]), *PACKAGE)
    if package:
        yield reader.from_command("jetson.l4t_package", package[1], *PACKAGE)
        if first:
            mixed = package[1] != f"{first[1]}.{first[2]}"
            yield reader.fact("jetson.l4t_mixed", mixed, "from jetson.l4t and jetson.l4t_package")
    toolkit = re.search(
        r'"cuda(?:_nvcc)?"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', reader.text(CUDA)
    )
    if toolkit:
        yield reader.from_file("jetson.cuda_toolkit", toolkit[1], CUDA)


def _module(reader: Reader) -> Iterator[Fact]:
    soc = reader.text("/proc/device-tree/compatible").split()
    if soc:
        path = "/proc/device-tree/compatible"
        names = [word.removeprefix("nvidia,") for word in soc]
        chip = next((name for name in names if re.fullmatch(r"tegra\d+", name)), names[-1])
        yield reader.from_file("jetson.soc", chip, path)
    for path in PART_FILES:
        match = PART.search(reader.text(path))
        if match:
            yield reader.from_file("jetson.part", f"p{match[1]}-{match[2]}", path)
            return


def _power(reader: Reader) -> Iterator[Fact]:
    text = reader.text(MODES)
    modes = re.findall(r"^<\s*POWER_MODEL ID=(\d+) NAME=(\S+)\s*>", text, re.M)
    if modes:
        yield reader.from_file("jetson.power_modes", tuple(name for _, name in modes), MODES)
        best = best_mode(modes)
        yield reader.from_file("jetson.best_power_mode", best[1], MODES)
        yield reader.from_file("jetson.best_power_mode_id", best[0], MODES)
    said = reader.source.run(*MODE)
    current = re.search(r"NV Power Mode:\s*(\S+)", said.output if said else "")
    if current:
        yield reader.from_command("jetson.power_mode", current[1], *MODE)
        if modes:
            is_best = current[1].removeprefix("MODE_") == best_mode(modes)[1].removeprefix("MODE_")
            yield reader.fact("jetson.power_mode_is_best", is_best, f"from {MODES}")


def best_mode(modes: list[tuple[str, str]]) -> tuple[str, str]:
    """Return (id, name) of the fastest mode: a MAXN one, else that with most watts and cores.

    Ids cannot be trusted: 0 is the fastest on some boards and 15 W on others.
    """

    def rank(mode: tuple[str, str]) -> tuple[bool, bool, int, int]:
        watts, cores = re.search(r"(\d+)W", mode[1]), re.search(r"(\d+)CORE", mode[1])
        return (
            "MAXN_SUPER" in mode[1],
            "MAXN" in mode[1],
            int(watts[1]) if watts else 0,
            int(cores[1]) if cores else 0,
        )

    return max(modes, key=rank)


def _clocks(reader: Reader) -> Iterator[Fact]:
    for path in [found for name in GPU_CLOCKS for found in reader.source.glob(name)]:
        for part, file in (("max", path), ("now", path.replace("max_freq", "cur_freq"))):
            if (rate := reader.whole(file)) is not None:
                yield reader.from_file(f"jetson.gpu_clock_{part}_hz", rate, file)
        file = path.replace("max_freq", "available_frequencies")
        table = [int(word) for word in re.findall(r"\b[0-9]{1,18}\b", reader.text(file))]
        if table:
            yield reader.from_file("jetson.gpu_clock_best_hz", max(table), file)
        break
    if (rate := reader.whole(EMC)) is not None:
        yield reader.from_file("jetson.memory_clock_hz", rate, EMC)
    if cap := reader.whole(EMC_CAP):
        yield reader.from_file("jetson.memory_clock_cap_hz", cap, EMC_CAP)


def _temperatures(reader: Reader) -> Iterator[Fact]:
    zones = []
    for path in reader.source.glob("/sys/class/thermal/thermal_zone*/type"):
        degrees = reader.whole(path.replace("/type", "/temp"))
        if degrees is not None:
            zones.append((reader.text(path), degrees / 1000))
    if zones:
        origin = "/sys/class/thermal/thermal_zone*"
        listed = tuple(f"{name} {degrees:.0f} °C" for name, degrees in zones)
        yield reader.from_file("jetson.temperatures", listed, origin)
        hottest = max(degrees for _, degrees in zones)
        yield reader.from_file("jetson.hottest_celsius", hottest, origin)


def _nvmap(reader: Reader) -> Iterator[Fact]:
    text = reader.source.read(CLIENTS)
    if text is None:
        yield reader.from_file("jetson.nvmap_readable", False, CLIENTS)
        return
    rows = re.findall(r"^user\s+(\S+)\s+(\d+)\s+(\d+)K", text, re.M)
    users = tuple(f"{pid} {int(size) << 10} {name}" for name, pid, size in rows)
    yield reader.from_file("jetson.nvmap_readable", True, CLIENTS)
    if users:
        yield reader.from_file("gpu.nvidia0.users", users, CLIENTS)
    total = re.search(r"^total\s+(\d+)K", text, re.M)
    if total:
        yield reader.from_file("jetson.nvmap_bytes", int(total[1]) << 10, CLIENTS)
