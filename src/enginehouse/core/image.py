"""Which container image of an engine fits a machine, as reviewed facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.conditions import parts_of
from enginehouse.core.machine import Machine


@dataclass(frozen=True)
class Image:
    """An image by its tag, and the machines it is for; an empty condition holds everywhere.

    `gpu` is `any` (an NVIDIA GPU) or a compute capability. `l4t_from` and `l4t_below` concern
    Jetsons only; `no_l4t` shuts them out. `cuda_from` is the least CUDA that the driver serves; a
    driver that does not say fits.
    """

    engine: str
    name: str
    architectures: tuple[str, ...]
    command: tuple[str, ...]
    gpu: str = ""
    l4t_from: str = ""
    l4t_below: str = ""
    no_l4t: bool = False
    cuda_from: str = ""
    sources: tuple[str, ...] = ()
    status: str = "reported"
    checked: str = ""


def images_for(images: Sequence[Image], machine: Machine, engine: str = "") -> tuple[Image, ...]:
    """Return the images that fit a machine, in the order in which they are preferred."""
    return tuple(image for image in images if engine in ("", image.engine) and fits(image, machine))


def fits(image: Image, machine: Machine) -> bool:
    """Whether an image is for a machine of this kind."""
    if machine.architecture not in image.architectures:
        return False
    if machine.l4t and not _fits_l4t(image, parts_of(machine.l4t)):
        return False
    if not image.gpu:
        return True
    gpus = [gpu for gpu in machine.gpus if gpu.vendor.lower() == "nvidia"]
    if image.gpu != "any":
        gpus = [gpu for gpu in gpus if gpu.arch == image.gpu]
    cuda = [gpu.cuda for gpu in gpus if gpu.cuda]
    newest = max(map(parts_of, cuda), default=None)
    return bool(gpus) and (newest is None or newest >= parts_of(image.cuda_from))


def _fits_l4t(image: Image, l4t: tuple[int, ...]) -> bool:
    below = parts_of(image.l4t_below)
    return not image.no_l4t and l4t >= parts_of(image.l4t_from) and (not below or l4t < below)
