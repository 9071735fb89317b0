"""The engines that are here, and those that are built or removed by Enginehouse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.core.candidate import Build
from enginehouse.core.engine import Engine
from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.machine import Machine
from enginehouse.core.native_build import SOURCES, choose_recipe
from enginehouse.core.settings import Settings
from enginehouse.edges.installed import folders_of, remove, users_of
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.progress import Progress
from enginehouse.engines import load_engines

if TYPE_CHECKING:
    from enginehouse.edges.native_build import NativeBuild, Wanted


OWN_IMAGES = {
    "llama.cpp": "engine.llama_cpp.image",
    "vllm": "engine.vllm.image",
    "tensorrt-llm": "engine.tensorrt_llm.image",
}
"""The settings that name an image of the user's own, by engine."""


@dataclass(frozen=True)
class Offer:
    """What can be had here: the command, and in words what it gives."""

    command: str
    says: str


@dataclass(frozen=True)
class Listed:
    """An engine with its builds here and what more can be had."""

    name: str
    status: str
    formats: tuple[str, ...]
    builds: tuple[Build, ...]
    offers: tuple[Offer, ...]


def find_installed(settings: Settings) -> tuple[Build, ...]:
    """Return the engine builds that are installed here, without those in container images."""
    from enginehouse.edges.builds import find_builds

    return find_builds(
        settings.text("engine.llama_cpp.path"),
        settings.text("engine.vllm.python"),
        settings.text("engine.ollama.path"),
    )


def find_in_images(settings: Settings, look: Callable[[], Machine]) -> tuple[Build, ...]:
    """Return the builds in container images that are here: the user's own, then known ones.

    Each image once. Docker and Podman are asked, which takes up to a second.
    """
    from enginehouse.edges.containers import (
        find_container_builds,
        find_own_builds,
        find_runtimes,
        has_programs,
    )

    own = {engine: settings.text(key) for engine, key in OWN_IMAGES.items()}
    is_off = settings.text("engine.containers") == "off"
    if not any(own.values()) and (is_off or not has_programs()):
        return ()
    runtimes = find_runtimes()
    known = () if is_off else find_container_builds(look(), runtimes)
    builds = (*find_own_builds(own, runtimes), *known)
    return tuple({(build.engine, build.digest): build for build in reversed(builds)}.values())[::-1]


def list_engines(
    builds: Sequence[Build], machine: Machine, installers: Sequence[str]
) -> tuple[Listed, ...]:
    """Return every engine with its builds; `installers` name those that can be installed."""
    from enginehouse.edges.builds_llama_cpp import find_native
    from enginehouse.edges.toolchain import find_toolkit

    known = {build.digest for build in builds}
    natives = (build for name in SOURCES for build in find_native(name))
    builds = (*builds, *(build for build in natives if build.digest not in known))
    why = choose_recipe(machine, find_toolkit(), None).why
    offers = {
        name: (Offer(f"enginehouse engines build {name}", f"a native build {why}"),)
        for name in SOURCES
    }
    for name in installers:
        said = Offer(f"enginehouse engines install {name}", "an environment of its own")
        offers[name] = (*offers.get(name, ()), said)
    for name, image in _images_to_pull(builds, machine):
        said = Offer(image, "an image, which `find` then tries in a container")
        offers[name] = (*offers.get(name, ()), said)
    return tuple(
        _listed(engine, builds, offers.get(engine.name, ())) for engine in load_engines().values()
    )


def _images_to_pull(builds: Sequence[Build], machine: Machine) -> Iterator[tuple[str, str]]:
    """Return for each engine without an image here the command that fetches the preferred one."""
    from enginehouse.core.image import images_for
    from enginehouse.edges.containers import find_runtimes
    from enginehouse.knowledge.containers import load_images

    answering = [Path(found.program).name for found in find_runtimes() if not found.problem]
    if not answering:
        return
    has_image = {build.engine for build in builds if build.kind == "container"}
    for name in load_engines():
        if name not in has_image:
            for image in images_for(load_images(), machine, name)[:1]:
                yield name, f"{answering[0]} pull {image.name}"


def _listed(engine: Engine, builds: Sequence[Build], offers: tuple[Offer, ...]) -> Listed:
    own = tuple(build for build in builds if build.engine == engine.name)
    return Listed(engine.name, engine.status, engine.formats, own, offers)


def prepare_build(engine: str, machine: Machine, wanted: Wanted, progress: Progress) -> NativeBuild:
    """Return the native build of an engine that its `make` makes here, unless it is here."""
    from enginehouse.edges.fetch_sdist import open_index
    from enginehouse.edges.native_build import prepare

    return prepare(machine, wanted, cache_dir(), open_index(), progress, SOURCES[engine])


def removable(name: str) -> tuple[Path, ...]:
    """Return the folders that `engines remove` takes away for a name.

    A name is an engine's (`llama.cpp`: all that Enginehouse made of it), or one folder's
    (`llama.cpp/b11549-0a1b2c3d4e5f`, or just its last part).

    Raises:
        UserError: `engine.not_installed`.
    """
    folders = folders_of(cache_dir())
    found = tuple(
        folder
        for folder in folders
        if name in (folder.parent.name, folder.name, f"{folder.parent.name}/{folder.name}")
    )
    if not found:
        names = dict.fromkeys(f"{folder.parent.name}/{folder.name}" for folder in folders)
        raise UserError(
            "engine.not_installed",
            f"Enginehouse has built or installed no {name}",
            evidence=(f"what it has: {', '.join(names) or 'nothing'}",),
            remedies=("see `enginehouse engines list`",),
        )
    return found


def remove_engines(folders: Sequence[Path]) -> None:
    """Remove built or installed engines, and fetched sources once nothing built is left.

    Raises:
        MachineError: `engine.in_use`; then nothing was removed.
    """
    users = [user for folder in folders for user in users_of(folder)]
    if users:
        raise MachineError(
            "engine.in_use",
            "an engine that shall be removed is running",
            evidence=tuple(users),
            remedies=("end it first",),
        )
    for folder in folders:
        remove(folder)
    if not folders_of(cache_dir()):
        shutil.rmtree(cache_dir() / "sources", ignore_errors=True)
