"""What is known of machines beyond what they say themselves, and how it joins their facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from enginehouse.core.conditions import parts_of
from enginehouse.core.facts import Fact, Facts


@dataclass(frozen=True)
class Release:
    """One L4T release: which JetPack it is, and the CUDA and driver that it ships."""

    l4t: str
    jetpack: str
    cuda: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Module:
    """One Jetson module by its part number; memory and bandwidth as its vendor states them."""

    part: str
    name: str
    bandwidth_gb_per_s: float


@dataclass(frozen=True)
class MemorySpeed:
    """The stated bandwidth of a GPU's or a machine's memory, found by a name.

    `of` says where the name is looked for: `gpu` or `cpu` or `board`.
    """

    of: str
    name: str
    gb_per_s: float


@dataclass(frozen=True)
class EngineImage:
    """What a container image needs of the machine: the driver's major version, or L4T's."""

    pattern: str
    needs_driver_major: int = 0
    needs_l4t_major: int = 0
    for_l4t_major: int = 0
    for_l4t_before: str = ""
    instead: str = ""


IMAGE_PARTS = (
    "needs_driver_major",
    "needs_l4t_major",
    "for_l4t_major",
    "for_l4t_before",
    "instead",
)


@dataclass(frozen=True)
class Known:
    """All tables of `knowledge/machine`."""

    releases: tuple[Release, ...] = ()
    modules: tuple[Module, ...] = ()
    speeds: tuple[MemorySpeed, ...] = ()
    images: tuple[EngineImage, ...] = ()


def enrich(facts: Facts, known: Known) -> Facts:
    """Add what the tables say about what was found."""
    facts = facts.plus(_release_facts(facts, known.releases))
    facts = facts.plus(_module_facts(facts, known.modules))
    facts = facts.plus(_speed_facts(facts, known.speeds))
    facts = facts.plus(_image_facts(facts, known.images))
    facts = facts.plus(_shared_facts(facts))
    return facts.plus(_engine_facts(facts))


def _release_facts(facts: Facts, releases: tuple[Release, ...]) -> Iterator[Fact]:
    l4t = facts.text("jetson.l4t")
    release = release_of(l4t, releases) if l4t else None
    if release is None:
        return
    origin = "knowledge jetpack.toml"
    yield Fact("jetson.jetpack", release.jetpack, origin, _age(facts))
    if "gpu.nvidia0.name" not in facts:
        return
    for part in ("cuda", "driver"):
        stated: str = getattr(release, part)
        if stated and f"gpu.nvidia0.{part}" not in facts:
            yield Fact(f"gpu.nvidia0.{part}", stated, origin, _age(facts))
            yield Fact(f"gpu.nvidia0.{part}_major", parts_of(stated)[0], origin, _age(facts))


def release_of(l4t: str, releases: tuple[Release, ...]) -> Release | None:
    """Return the release, by its whole number or else by the longest beginning of it."""
    fitting = [one for one in releases if l4t == one.l4t or l4t.startswith(f"{one.l4t}.")]
    return max(fitting, key=lambda one: len(one.l4t), default=None)


def _module_facts(facts: Facts, modules: tuple[Module, ...]) -> Iterator[Fact]:
    part = facts.text("jetson.part")
    module = next((one for one in modules if part and part == one.part), None)
    if module is None:
        return
    origin = "knowledge modules.toml"
    yield Fact("jetson.module", module.name, origin, _age(facts))
    speed = module.bandwidth_gb_per_s * 1e9
    yield Fact("memory.stated_bandwidth_bytes_per_s", speed, origin, _age(facts))


def _speed_facts(facts: Facts, speeds: tuple[MemorySpeed, ...]) -> Iterator[Fact]:
    origin = "knowledge bandwidth.toml"
    places = {"cpu": facts.text("cpu.model"), "board": facts.text("machine.board")}
    for member in facts.members("gpu"):
        name = facts.text(f"{member}.name")
        speed = _speed("gpu", name, speeds)
        if speed is not None:
            yield Fact(f"{member}.stated_bandwidth_bytes_per_s", speed, origin, _age(facts))
            if facts.holds(f"{member}.unified"):
                yield Fact("memory.stated_bandwidth_bytes_per_s", speed, origin, _age(facts))
    for place, name in places.items():
        speed = _speed(place, name, speeds)
        if speed is not None:
            yield Fact("memory.stated_bandwidth_bytes_per_s", speed, origin, _age(facts))


def _speed(of: str, name: str, speeds: tuple[MemorySpeed, ...]) -> float | None:
    """Return the speed in bytes/s of the longest known name that stands in this one as words."""
    fitting = [
        one
        for one in speeds
        if one.of == of and re.search(rf"(?<!\w){re.escape(one.name)}(?!\w)", name)
    ]
    best = max(fitting, key=lambda one: len(one.name), default=None)
    return None if best is None else best.gb_per_s * 1e9


def _image_facts(facts: Facts, images: tuple[EngineImage, ...]) -> Iterator[Fact]:
    for member in facts.members("image"):
        name = facts.text(f"{member}.name")
        image = next((one for one in images if re.search(one.pattern, name)), None)
        if image is None:
            continue
        for part in IMAGE_PARTS:
            if value := getattr(image, part):
                yield Fact(f"{member}.{part}", value, "knowledge images.toml", _age(facts))


def _shared_facts(facts: Facts) -> Iterator[Fact]:
    """Say whether memory is unified, and give the unified GPU the machine's stated bandwidth."""
    unified = [member for member in facts.members("gpu") if facts.holds(f"{member}.unified")]
    if facts.members("gpu"):
        yield Fact("memory.unified", bool(unified), "from gpu.*.unified", _age(facts))
    stated = facts.fact("memory.stated_bandwidth_bytes_per_s")
    for member in unified:
        if stated and f"{member}.stated_bandwidth_bytes_per_s" not in facts:
            yield Fact(
                f"{member}.stated_bandwidth_bytes_per_s", stated.value, stated.origin, _age(facts)
            )


def _engine_facts(facts: Facts) -> Iterator[Fact]:
    """Say whether a GPU that engines can use is here, and no engine that uses it."""
    vendors = {facts.text(f"{member}.vendor") for member in facts.members("gpu")}
    if not vendors & {"nvidia", "amd"} or not facts.members("engine"):
        return
    built = [facts.get(f"{member}.built_for") for member in facts.members("engine")]
    reached = facts.holds("container.docker_reaches_gpu") and bool(facts.members("image"))
    without = not reached and all(backends == ("CPU",) for backends in built)
    origin = "from engine.*.built_for and image.*"
    yield Fact("machine.gpu_without_engine", without, origin, _age(facts))


def _age(facts: Facts) -> float:
    return max((fact.read_at for fact in facts), default=0.0)
