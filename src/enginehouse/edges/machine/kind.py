"""What sort of machine it is: system, kernel, board, container, virtual machine, WSL."""

from __future__ import annotations

import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.seam import Reader

BOARD = "/proc/device-tree/model"
OS_RELEASE = "/etc/os-release"
VENDOR = "/sys/class/dmi/id/sys_vendor"
PRODUCT = "/sys/class/dmi/id/product_name"
VIRTUAL = {
    "QEMU": "QEMU/KVM", "KVM": "KVM", "VMware": "VMware", "VirtualBox": "VirtualBox",
    "innotek": "VirtualBox", "Xen": "Xen", "Amazon EC2": "Amazon EC2", "Google": "Google Compute",
    "Virtual Machine": "Hyper-V", "DigitalOcean": "DigitalOcean", "Parallels": "Parallels",
    "Bochs": "Bochs", "Hetzner": "Hetzner",
}  # fmt: skip


def kind_facts(reader: Reader) -> Iterator[Fact]:
    """Find what the machine is."""
    platform = reader.source.ask("platform") or {}
    kernel = platform.get("release") or reader.text("/proc/sys/kernel/osrelease")
    board = reader.text(BOARD)
    vendor, product = reader.text(VENDOR), reader.text(PRODUCT)
    for name in ("machine", "system"):
        if platform.get(name):
            yield reader.from_library(f"machine.{name}", str(platform[name]), "platform")
    yield reader.from_library("machine.kernel", kernel, "platform")
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', reader.text(OS_RELEASE), re.M)
    if match or platform.get("os"):
        found = match[1] if match else str(platform["os"])
        yield reader.from_file("machine.os", found, OS_RELEASE)
    if board:
        yield reader.from_file("machine.board", board, BOARD)
    elif product:
        named = product.replace("_", " ")
        whole = named if named.startswith(vendor) else f"{vendor} {named}".strip()
        yield reader.from_file("machine.board", whole, PRODUCT)
    virtual = _virtual(reader, f"{vendor} {product}")
    if virtual:
        yield reader.from_file("machine.virtual", virtual, PRODUCT if product else "/proc/cpuinfo")
    container = _container(reader)
    if container:
        yield reader.from_file("machine.container", container[0], container[1])
    found_kinds = {
        "jetson": "Jetson" in board or bool(reader.text("/etc/nv_tegra_release")),
        "raspberry-pi": "Raspberry Pi" in board,
        "wsl2": "microsoft" in kernel.lower(),
        "apple": platform.get("system") == "Darwin",
        "virtual-machine": bool(virtual),
        "container": container is not None,
    }
    kinds = tuple(name for name, holds in found_kinds.items() if holds)
    yield reader.fact("machine.kinds", kinds, "from board, kernel, DMI and container marks")


def _virtual(reader: Reader, maker: str) -> str:
    if "hypervisor" not in reader.text("/proc/cpuinfo") and not maker.strip():
        return ""
    named = next((name for mark, name in VIRTUAL.items() if mark in maker), "")
    kernel = reader.text("/proc/sys/kernel/osrelease").lower()
    if not named and "microsoft" in kernel:
        return ""
    hypervised = re.search(r"^flags\s*:.*\bhypervisor\b", reader.text("/proc/cpuinfo"), re.M)
    return named or ("a hypervisor" if hypervised else "")


def _container(reader: Reader) -> tuple[str, str] | None:
    """Return the kind of container with the mark that shows it, None outside of one."""
    for path, name in (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")):
        if reader.source.glob(path):
            return name, path
    if name := reader.text("/run/systemd/container"):
        return name, "/run/systemd/container"
    groups = reader.text("/proc/1/cgroup") or reader.text("/proc/self/cgroup")
    mark = re.search(r"docker|kubepods|libpod|lxc|containerd", groups)
    if mark:
        return mark[0], "/proc/1/cgroup"
    limited = re.search(r":memory:/\S", groups)
    return ("unnamed", "/proc/self/cgroup") if limited and "slice" not in groups else None
