"""What engines that run on NVIDIA's GPUs alone have in common: what they refuse."""

from __future__ import annotations

from enginehouse.core.engine import Refusal
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model

CONTEXT_STEP = 256


def capability(arch: str) -> float:
    """Return a compute capability (`8.7`) as a number, 0 for what is none (`gfx1151`)."""
    try:
        return float(arch)
    except ValueError:
        return 0.0


def needs_safetensors(label: str, model: Model) -> Refusal | None:
    """Refuse what is no safetensors checkpoint."""
    if model.format == "safetensors":
        return None
    return Refusal("format.unsupported", f"{label} reads safetensors, not {model.format}")


def needs_nvidia(label: str, machine: Machine, least: float) -> Refusal | None:
    """Refuse a machine without an NVIDIA GPU of at least a compute capability.

    A GPU whose capability is not known is given the benefit of the doubt: a trial will tell.
    """
    gpus = [gpu for gpu in machine.gpus if gpu.vendor.lower() == "nvidia"]
    if not gpus:
        return Refusal("driver.device_not_visible", f"{label} needs an NVIDIA GPU; none is seen")
    known = [capability(gpu.arch) for gpu in gpus if capability(gpu.arch)]
    if known and max(known) < least:
        return Refusal(
            "gpu.arch_unsupported",
            f"{label} needs compute capability {least:g}; {gpus[0].name} has {max(known):g}",
        )
    return None
