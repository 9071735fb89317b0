"""Docker and Podman as this machine has them, and as a program of our own plays them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse.edges.containers import (
    Runtime,
    end_leftovers,
    find_container_builds,
    find_runtimes,
    list_images,
)
from tests.unit.values import MACHINE

DIGEST = "sha256:" + "a" * 64
PLAYED = f"""#!/bin/sh
echo "$@" >> "$0.asked"
case "$1" in
images) [ -e "$0.dead" ] && {{ echo "Cannot connect to the Docker daemon" >&2; exit 1; }}
        echo "ghcr.io/ggml-org/llama.cpp:server|{DIGEST}|sha256:1"
        echo "localhost/mine:1|<none>|sha256:2"
        echo "vllm/vllm-openai:latest|{DIGEST}|sha256:3";;
ps) echo enginehouse-1; echo enginehouse-2;;
rm) [ "$3" = enginehouse-1 ];;
*) exit 9;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` on PATH that is a script, and no podman."""
    program = tmp_path / "docker"
    program.write_text(PLAYED)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


def test_a_known_image_that_is_here_is_a_build(docker: Path) -> None:
    """Images that fit the machine become builds by digest; nothing is pulled."""
    runtimes = [runtime for runtime in find_runtimes() if runtime.program == str(docker)]
    assert runtimes == [Runtime(str(docker))]
    (build,) = find_container_builds(replace(MACHINE, gpus=()), runtimes)
    reference = f"ghcr.io/ggml-org/llama.cpp@{DIGEST}"
    assert build.command == (str(docker), reference, "/app/llama-server")
    assert (build.engine, build.kind, build.digest) == ("llama.cpp", "container", "a" * 64)
    assert "pull" not in Path(f"{docker}.asked").read_text()


def test_an_image_built_here_is_named_by_its_id(docker: Path) -> None:
    """An image without a registry's digest is named by its own id."""
    assert list_images(str(docker))["mine:1"] == "sha256:2"


def test_a_daemon_that_does_not_answer_gives_no_builds(docker: Path) -> None:
    """Without its daemon a program is known, with what it says, and gives nothing."""
    Path(f"{docker}.dead").touch()
    (runtime,) = [found for found in find_runtimes() if found.program == str(docker)]
    assert "Cannot connect" in runtime.problem
    assert find_container_builds(MACHINE, [runtime]) == ()


def test_what_is_left_is_ended_and_named(docker: Path) -> None:
    """Each labelled container is removed; one that cannot be is not claimed to be."""
    assert end_leftovers(str(docker), "run") == ("enginehouse-1",)
    assert "label=enginehouse.run=run" in Path(f"{docker}.asked").read_text()


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker here")
def test_the_real_docker_says_whether_it_answers() -> None:
    """The docker of this machine is found, and what it says is kept when it does not answer."""
    (runtime,) = [r for r in find_runtimes() if os.path.basename(r.program) == "docker"]
    assert runtime.problem == "" or "daemon" in runtime.problem or "denied" in runtime.problem
