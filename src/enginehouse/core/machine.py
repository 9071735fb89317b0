"""What a machine is, as facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One graphics processor; sizes in bytes, None where the driver does not say."""

    name: str
    vendor: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    unified: bool = False


@dataclass(frozen=True)
class Machine:
    """The machine in front of us, at one moment.

    `usable_cores` is the share this process may really use (affinity mask and cgroup quota, rounded
    up to at least 1); `memory_limit_bytes` is the cgroup's limit; `memory_available_bytes` is what
    can be had without swapping (MemAvailable, capped by what is left under the cgroup's limit).
    `memory_bandwidth_bytes_per_s` is measured, None where it has not been.
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

    def fingerprint(self) -> str:
        """Name the facts that make an old choice doubtful when they change (16 hex digits)."""
        return digest_of("|".join(f"{name}={value}" for name, value in self.fingerprint_facts()))

    def fingerprint_facts(self) -> tuple[tuple[str, str], ...]:
        """Return the facts behind `fingerprint`, so that a change can be named in words."""
        return (
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


def digest_of(text: str) -> str:
    """Return a short digest (16 hex digits) that names a value; not for security."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
