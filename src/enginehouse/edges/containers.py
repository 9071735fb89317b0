"""Docker and Podman: which answers, which known images are here, pulling, and ending leftovers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Build
from enginehouse.core.container import leftovers_argv, remove_argv
from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.image import Image, images_for
from enginehouse.core.machine import Machine
from enginehouse.edges.paths import program_path
from enginehouse.knowledge.containers import load_images

PROGRAMS = ("docker", "podman")
LIST = ("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}|{{.Digest}}|{{.ID}}")
LIMIT_S = 10
ABOUT = ("image", "inspect", "--format", "{{.Id}}|{{json .Config.Entrypoint}}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Runtime:
    """A container program and whether its daemon answers; `problem` says what it said if not."""

    program: str
    problem: str = ""


def has_programs() -> bool:
    """Whether Docker or Podman is on PATH at all, which is quickly seen."""
    return any(shutil.which(name) for name in PROGRAMS)


def find_runtimes() -> tuple[Runtime, ...]:
    """Return Docker and Podman as far as they are on PATH, the one that answers first."""
    found = []
    for name in PROGRAMS:
        program = program_path(name)
        if program is not None:
            done = _run((program, "images", "--quiet"))  # podman's `info` takes 15 times as long
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


def find_own_builds(
    own: Mapping[str, str], runtimes: Sequence[Runtime] | None = None
) -> tuple[Build, ...]:
    """Return a build for each image that the user names: engine → `IMAGE [COMMAND…]`.

    Without a command it is what the image itself starts with, else what the engine's known images
    do.

    Raises:
        UserError: `engine.not_usable`, when an image is not here.
    """
    wanted = {engine: text for engine, text in own.items() if text.strip()}
    if not wanted:
        return ()
    runtimes = find_runtimes() if runtimes is None else runtimes
    return tuple(_own_build(engine, text, runtimes) for engine, text in wanted.items())


def _own_build(engine: str, text: str, runtimes: Sequence[Runtime]) -> Build:
    name, *command = shlex.split(text)
    for program in (runtime.program for runtime in runtimes if not runtime.problem):
        done = _run((program, *ABOUT, name))
        id, _, entry = done.stdout.strip().partition("|")
        if done.returncode == 0 and id:
            plain = _plain(name if ":" in name.rpartition("/")[2] else f"{name}:latest")
            start = tuple(command or _words(entry) or _usual_command(engine))
            image = Image(engine, plain, (), start)
            id = f"sha256:{id.removeprefix('sha256:')}"
            return build_of(program, image, list_images(program).get(plain, id))
    said = [f"{runtime.program}: {runtime.problem or 'has no such image'}" for runtime in runtimes]
    raise UserError(
        "engine.not_usable",
        f"the setting for {engine} names the image {name}, which is not here",
        evidence=tuple(said) or ("neither docker nor podman is on PATH",),
        remedies=(
            *(f"{runtime.program} pull {name}" for runtime in runtimes if not runtime.problem),
            "name an image that is here, or remove the setting",
        ),
    )


def _words(entry: str) -> tuple[str, ...]:
    try:
        words = json.loads(entry)
    except ValueError:
        return ()
    return tuple(map(str, words)) if isinstance(words, list) else ()


def _usual_command(engine: str) -> tuple[str, ...]:
    return next((image.command for image in load_images() if image.engine == engine), (engine,))


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
            name = _plain(name)
            repository = cells[0].rpartition(":")[0]
            has_digest = bool(DIGEST.fullmatch(digest))
            found[name] = f"{repository}@{digest}" if has_digest else id
    return found


def _plain(name: str) -> str:
    """Return an image's name without what the programs put before it by themselves."""
    for before in ("docker.io/", "library/", "localhost/"):
        name = name.removeprefix(before)
    return name


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
