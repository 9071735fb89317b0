"""Compose a machine out of facts."""

from __future__ import annotations

from enginehouse.core.facts import Facts
from enginehouse.core.machine import Gpu, GpuUser, Machine


def machine_of(facts: Facts) -> Machine:
    """Return the machine that the facts describe; what is not known is empty, 0 or None."""
    physical = facts.whole("cpu.physical_cores") or 1
    return Machine(
        architecture=_architecture(facts),
        cpu_model=_cpu_model(facts),
        isa=facts.texts("cpu.isa"),
        physical_cores=physical,
        usable_cores=facts.whole("cpu.usable_cores") or physical,
        memory_total_bytes=facts.whole("memory.total_bytes") or 0,
        memory_available_bytes=facts.whole("memory.available_bytes") or 0,
        memory_limit_bytes=facts.whole("memory.limit_bytes"),
        swap_used_bytes=facts.whole("memory.swap_used_bytes") or 0,
        swap_total_bytes=facts.whole("memory.swap_total_bytes") or 0,
        kernel=facts.text("machine.kernel"),
        os_name=facts.text("machine.os"),
        board=facts.text("machine.board"),
        l4t=facts.text("jetson.l4t"),
        gpus=tuple(_gpu(facts, member) for member in facts.members("gpu")),
        memory_bandwidth_bytes_per_s=facts.number("memory.bandwidth_bytes_per_s"),
        memory_free_bytes=facts.whole("memory.free_bytes") or 0,
        page_cache_bytes=facts.whole("memory.page_cache_bytes") or 0,
        zram_bytes=facts.whole("memory.zram_bytes") or 0,
        numa_nodes=facts.whole("cpu.numa_nodes") or 1,
        governor=facts.text("cpu.governor"),
        module=facts.text("jetson.module"),
        jetpack=facts.text("jetson.jetpack"),
        power_mode=facts.text("jetson.power_mode"),
        power_modes=facts.texts("jetson.power_modes"),
        kinds=facts.texts("machine.kinds"),
        stated_bandwidth_bytes_per_s=facts.number("memory.stated_bandwidth_bytes_per_s"),
        compute_flop_per_s=facts.number("cpu.compute_flop_per_s"),
    )


def users_of(facts: Facts, member: str) -> tuple[GpuUser, ...]:
    """Return the processes that hold memory of a GPU, the largest first."""
    users = []
    for line in facts.texts(f"{member}.users"):
        pid, size, name = line.split(" ", 2)
        users.append(GpuUser(name, int(pid), int(size) if size.isdecimal() else None))
    return tuple(sorted(users, key=lambda user: -(user.memory_bytes or 0)))


def _gpu(facts: Facts, member: str) -> Gpu:
    unified = facts.holds(f"{member}.unified")
    total, free = "memory.total_bytes", "memory.available_bytes"
    if not unified:
        total, free = f"{member}.memory_total_bytes", f"{member}.memory_free_bytes"
    return Gpu(
        name=facts.text(f"{member}.name") or "GPU",
        vendor=facts.text(f"{member}.vendor"),
        memory_total_bytes=facts.whole(total),
        memory_free_bytes=facts.whole(free),
        unified=unified,
        driver=facts.text(f"{member}.driver"),
        cuda=facts.text(f"{member}.cuda"),
        arch=facts.text(f"{member}.arch"),
        stated_bandwidth_bytes_per_s=facts.number(f"{member}.stated_bandwidth_bytes_per_s"),
        users=users_of(facts, member),
    )


def _architecture(facts: Facts) -> str:
    if told := facts.text("machine.machine"):
        return told
    return "aarch64" if "asimd" in facts.texts("cpu.isa") else "x86_64"


def _cpu_model(facts: Facts) -> str:
    model = facts.text("cpu.model")
    return model if model not in ("", "unknown") else facts.text("machine.board") or "unknown"
