"""What a machine is, as facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GpuUser:
    """A process that holds memory of a GPU; the size is None where the driver does not say."""

    name: str
    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Gpu:
    """One graphics processor; sizes in bytes, None where the driver does not say.

    On unified memory total and free are the machine's own: `Machine.memory_total_bytes` and
    `memory_available_bytes`. `cuda` is the highest CUDA that the driver serves, `arch` is
    `8.7` (compute capability) or `gfx1151`. `stated_bandwidth_bytes_per_s` is what the vendor
    states for its memory: an upper bound, not a measurement.
    """

    name: str
    vendor: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    unified: bool = False
    driver: str = ""
    cuda: str = ""
    arch: str = ""
    stated_bandwidth_bytes_per_s: float | None = None
    users: tuple[GpuUser, ...] = ()


@dataclass(frozen=True)
class Machine:
    """The machine in front of us, at one moment.

    `usable_cores` is the share this process may really use (affinity mask and cgroup quota, rounded
    up to at least 1); `memory_limit_bytes` is the cgroup's limit; `memory_available_bytes` is what
    can be had without swapping (MemAvailable, capped by what is left under the cgroup's limit).
    `memory_free_bytes` is MemFree, which CUDA calls free on unified memory; `page_cache_bytes` is
    what the kernel could give back of it. `memory_bandwidth_bytes_per_s` and
    `compute_flop_per_s` (single precision, all usable cores) are measured, None where they have
    not been; `stated_bandwidth_bytes_per_s` is the vendor's figure for the main memory. `kinds` are
    words such as `jetson`, `wsl2`, `container`, `virtual-machine`, `raspberry-pi`, `apple`.
    """

    architecture: str
    cpu_model: str
    isa: tuple[str, ...]
    physical_cores: int
    usable_cores: int
    memory_total_bytes: int
    memory_available_bytes: int
    memory_limit_bytes: int | None = None
    swap_used_bytes: int = 0
    swap_total_bytes: int = 0
    kernel: str = ""
    os_name: str = ""
    board: str = ""
    l4t: str = ""
    gpus: tuple[Gpu, ...] = ()
    memory_bandwidth_bytes_per_s: float | None = None
    memory_free_bytes: int = 0
    page_cache_bytes: int = 0
    zram_bytes: int = 0
    numa_nodes: int = 1
    governor: str = ""
    module: str = ""
    jetpack: str = ""
    power_mode: str = ""
    power_modes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    stated_bandwidth_bytes_per_s: float | None = None
    compute_flop_per_s: float | None = None

    @property
    def has_unified_memory(self) -> bool:
        """Whether a GPU shares the main memory, so that there is one budget for everything."""
        return any(gpu.unified for gpu in self.gpus)

    @property
    def decode_bandwidth_bytes_per_s(self) -> float | None:
        """What the CPU's (or unified memory's) roofline rests on: measured, else stated, or None.

        A measurement by the CPU does not bound a GPU on unified memory: there the stated figure
        counts, where there is one.
        """
        measured, stated = self.memory_bandwidth_bytes_per_s, self.stated_bandwidth_bytes_per_s
        return stated or measured if self.has_unified_memory else measured or stated

    def with_measured(self, bandwidth: object, compute: object) -> Machine:
        """Return the machine with what was measured of it earlier (None where it was not)."""
        return replace(
            self,
            memory_bandwidth_bytes_per_s=bandwidth if isinstance(bandwidth, float) else None,
            compute_flop_per_s=compute if isinstance(compute, float) else None,
        )

    def fingerprint(self) -> str:
        """Name the facts that make an old choice doubtful when they change (16 hex digits)."""
        return digest_of("|".join(f"{name}={value}" for name, value in self.fingerprint_facts()))

    def fingerprint_facts(self) -> tuple[tuple[str, str], ...]:
        """Return the facts behind `fingerprint`, so that a change can be named in words.

        Facts that came later stand in it only where they are known, so that a choice that was made
        before them on a machine without them still holds.
        """
        steady = (
            ("architecture", self.architecture),
            ("CPU", self.cpu_model),
            ("instruction sets", " ".join(self.isa)),
            ("usable cores", str(self.usable_cores)),
            ("memory", f"{self.memory_total_bytes / 2**30:.0f} GiB"),
            ("memory limit", f"{(self.memory_limit_bytes or 0) / 2**30:.1f} GiB"),
            ("GPUs", ", ".join(gpu.name for gpu in self.gpus)),
            ("board", self.board),
            ("L4T", self.l4t),
        )
        later = (
            ("power mode", self.power_mode),
            ("GPU driver", " ".join(dict.fromkeys(gpu.driver for gpu in self.gpus if gpu.driver))),
        )
        return steady + tuple(fact for fact in later if fact[1])


def digest_of(text: str) -> str:
    """Return a short digest (16 hex digits) that names a value; not for security."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
