"""Container run times, and whether what runs in them would reach the GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.seam import Reader, whole_of

DOCKER = (
    "docker", "info", "--format", "{{.ServerVersion}}|{{.DefaultRuntime}}|{{json .Runtimes}}",
)  # fmt: skip
IMAGES = ("docker", "images", "--format", "{{.Repository}}:{{.Tag}}")
PODMAN = ("podman", "--version")
DAEMON = "/etc/docker/daemon.json"
CDI = ("/etc/cdi/*.yaml", "/var/run/cdi/*.yaml", "/run/cdi/*.yaml", "/etc/cdi/*.json")
ENGINE_IMAGE = re.compile(
    r"vllm|llama[._-]?cpp|llama\.cpp|ollama|sglang|tensorrt|trt-?llm|l4t-|text-generation-inference"
)


def container_facts(reader: Reader) -> Iterator[Fact]:
    """Find Docker and Podman, their GPU run times, and the images of engines that are here."""
    devices = [path for pattern in CDI for path in reader.source.glob(pattern)]
    if devices:
        yield reader.from_file("container.cdi", tuple(devices), devices[0])
    yield from _docker(reader, bool(devices))
    said = reader.source.run(*PODMAN)
    if said is not None and said.worked:
        version = re.search(r"[\d.]+", said.output)
        yield reader.from_command("container.podman", version[0] if version else "?", *PODMAN)
        yield reader.fact("container.podman_reaches_gpu", bool(devices), "from container.cdi")


def _docker(reader: Reader, has_devices: bool) -> Iterator[Fact]:
    said = reader.source.run(*DOCKER)
    if said is None:
        return
    cells = said.output.split("|", 2)
    if not said.worked or len(cells) != 3 or not cells[0]:
        why = next(
            (line for line in said.output.splitlines() if "rror" in line or "denied" in line), ""
        )
        why = why or (
            "no answer in time" if said.exit_code is None else "the daemon does not answer"
        )
        yield reader.from_command("container.docker_refuses", why[:200], *DOCKER[:2])
        yield from _configured(reader)
        return
    version, default, runtimes = cells
    yield reader.from_command("container.docker", version, *DOCKER[:2])
    if (major := whole_of(version.split(".")[0])) is not None:
        yield reader.from_command("container.docker_major", major, *DOCKER[:2])
    yield reader.from_command("container.docker_default_runtime", default, *DOCKER[:2])
    names = _runtimes(runtimes)
    yield reader.from_command("container.docker_runtimes", names, *DOCKER[:2])
    reaches = "nvidia" in names or has_devices
    yield reader.fact("container.docker_reaches_gpu", reaches, "from run times and CDI files")
    listed = reader.source.run(*IMAGES)
    if listed is not None and listed.worked:
        found = [line for line in listed.output.splitlines() if ENGINE_IMAGE.search(line)]
        for number, image in enumerate(found):
            yield reader.from_command(f"image.{number}.name", image, *IMAGES[:2])


def _configured(reader: Reader) -> Iterator[Fact]:
    """Where the daemon cannot be asked: what it was configured with."""
    text = reader.text(DAEMON)
    if text:
        yield reader.from_file("container.docker_reaches_gpu", '"nvidia"' in text, DAEMON)


def _runtimes(text: str) -> tuple[str, ...]:
    line = next(iter(text.splitlines()), "")
    try:
        return tuple(sorted(json.loads(line)))
    except (ValueError, TypeError):
        return ()
