"""Docker and Podman: which answers, which known images are here, pulling, and ending leftovers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Build
from enginehouse.core.container import leftovers_argv, remove_argv
from enginehouse.core.errors import MachineError
from enginehouse.core.image import Image, images_for
from enginehouse.core.machine import Machine
from enginehouse.knowledge.containers import load_images

PROGRAMS = ("docker", "podman")
LIST = ("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}|{{.Digest}}|{{.ID}}")
LIMIT_S = 10
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Runtime:
    """A container program and whether its daemon answers; `problem` says what it said if not."""

    program: str
    problem: str = ""


def find_runtimes() -> tuple[Runtime, ...]:
    """Return Docker and Podman as far as they are on PATH, the one that answers first."""
    found = []
    for name in PROGRAMS:
        program = shutil.which(name)
        if program is not None:
            done = _run((program, "info", "--format", "json"))
            found.append(Runtime(program, "" if done.returncode == 0 else _first_line(done)))
    return tuple(sorted(found, key=lambda runtime: bool(runtime.problem)))


def find_container_builds(
    machine: Machine, runtimes: Sequence[Runtime] | None = None
) -> tuple[Build, ...]:
    """Return a build for each known image that is here and fits the machine; nothing is pulled.

    Where both programs have an image, the first that answers runs it.
    """
    builds: dict[str, Build] = {}
    for runtime in find_runtimes() if runtimes is None else runtimes:
        if runtime.problem:
            continue
        here = list_images(runtime.program)
        for image in images_for(load_images(), machine):
            reference = here.get(image.name)
            if reference is not None:
                builds.setdefault(image.name, build_of(runtime.program, image, reference))
    return tuple(builds.values())


def build_of(program: str, image: Image, reference: str) -> Build:
    """Return the build that an image is; its digest is the image's."""
    found = DIGEST.search(reference)
    return Build(
        engine=image.engine,
        kind="container",
        version=image.name.rsplit("/", 1)[-1],
        digest=found[0].removeprefix("sha256:") if found else reference,
        command=(program, reference, *image.command),
        path=image.name,
    )


def list_images(program: str) -> dict[str, str]:
    """Return the images that are here, by tag: how to name each by its digest.

    An image that was built here has no digest of a registry's, and is named by its id.
    """
    done = _run((program, *LIST))
    found = {}
    for line in done.stdout.splitlines():
        cells = line.split("|")
        if len(cells) == 3 and done.returncode == 0:
            name, digest, id = cells
            name = name.removeprefix("docker.io/").removeprefix("localhost/")
            repository = cells[0].rpartition(":")[0]
            has_digest = bool(DIGEST.fullmatch(digest))
            found[name] = f"{repository}@{digest}" if has_digest else id
    return found


def pull(program: str, name: str) -> None:
    """Fetch an image, because the user asked for it; its progress goes to stderr.

    Raises:
        MachineError: `container.cannot_pull`, when it did not come.
    """
    done = subprocess.run((program, "pull", name), stdout=2, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise MachineError(
            "container.cannot_pull",
            f"the image {name} could not be fetched",
            evidence=(f"`{program} pull {name}` ended with exit code {done.returncode}",),
            remedies=("look at its message above", f"{program} pull {name}"),
        )


def end_leftovers(program: str, run_id: str = "") -> tuple[str, ...]:
    """End the containers that carry our label (of one run, or of all), and return their names."""
    done = _run(leftovers_argv(program, run_id))
    names = tuple(done.stdout.split()) if done.returncode == 0 else ()
    return tuple(name for name in names if _run(remove_argv(program, name)).returncode == 0)


def own_user() -> str:
    """Return who we are as a container's `--user`."""
    return f"{os.getuid()}:{os.getgid()}"


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return subprocess.CompletedProcess(argv, 1, "", str(problem))


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    wrong = [line for line in lines if "annot" in line or "rror" in line or "denied" in line]
    return (wrong or lines or ["it does not answer"])[0][:200]
