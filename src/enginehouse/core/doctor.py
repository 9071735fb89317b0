"""What is wrong with a machine for serving models, ranked by how much it costs."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.machine import Machine


@dataclass(frozen=True)
class Problem:
    """One problem: its cost rank (3 the worst), what it is, the figures, and what to do."""

    id: str
    cost: int
    what: str
    evidence: str
    remedy: str


def find_problems(machine: Machine, free_disk_bytes: int) -> tuple[Problem, ...]:
    """Return the problems of this machine, the most costly first."""
    found = []
    total, available = machine.memory_total_bytes, machine.memory_available_bytes
    if available < 0.1 * total:
        found.append(
            Problem(
                "memory.nearly_full",
                3,
                "hardly any memory is available",
                f"{_gib(available)} of {_gib(total)} GiB is available",
                "end programs that hold memory: ps aux --sort=-rss | head",
            )
        )
    if machine.swap_used_bytes > 0.25 * (machine.swap_total_bytes or 1):
        found.append(
            Problem(
                "memory.swapping",
                3,
                "the machine swaps: an engine that is swapped out stalls",
                f"{_gib(machine.swap_used_bytes)} GiB of swap is in use",
                "end programs that hold memory before serving",
            )
        )
    if not {"avx2", "asimd"} & set(machine.isa):
        found.append(
            Problem(
                "cpu.no_vector_unit",
                3,
                "the CPU has neither AVX2 nor NEON",
                f"{machine.cpu_model}: {' '.join(machine.isa) or 'none of the sets looked for'}",
                "use a native build of llama.cpp; the wheel needs AVX2 on x86_64",
            )
        )
    if free_disk_bytes < 2 << 30:
        found.append(
            Problem(
                "disk.nearly_full",
                2,
                "hardly any disk space for models and records",
                f"{_gib(free_disk_bytes)} GiB is free",
                "free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",
            )
        )
    if machine.memory_limit_bytes is not None and machine.memory_limit_bytes < 0.5 * total:
        found.append(
            Problem(
                "container.memory_limit",
                2,
                "a cgroup limits this process to a part of the memory",
                f"{_gib(machine.memory_limit_bytes)} of {_gib(total)} GiB",
                "raise the container's memory limit",
            )
        )
    if machine.usable_cores < machine.physical_cores:
        found.append(
            Problem(
                "container.cpu_limit",
                1,
                "this process may use only some of the cores",
                f"{machine.usable_cores} of {machine.physical_cores}",
                "raise the container's CPU quota or its cpuset",
            )
        )
    return tuple(sorted(found, key=lambda problem: -problem.cost))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
