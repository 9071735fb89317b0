"""`--generate` prints the exact command of a choice, and starts nothing."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from enginehouse.app_generate import Command, command_of
from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.choice import Choice
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.edges.records import Records
from enginehouse.engines.llama_cpp import ENGINE
from tests.integration.houses import House, write_model
from tests.unit.values import MACHINE, MODEL, WHEEL, measurement

CANDIDATE = Candidate("llama.cpp", WHEEL.digest, (("context", 1024), ("slots", 4)))
IMAGE = Build(
    "llama.cpp", "container", "server", "c" * 64,
    ("/usr/bin/docker", "ghcr.io/x/server@sha256:" + "c" * 64, "/app/llama-server"), "x/server",
)  # fmt: skip
"""An image that no runtime here has: only its command line is looked at."""


def choice_of(build: Build, digest: str = MODEL.digest) -> Choice:
    candidate = dataclasses.replace(CANDIDATE, build_digest=build.digest)
    return Choice(
        digest, MODEL.name, "chat", MACHINE.fingerprint(), MACHINE.fingerprint_facts(), build,
        candidate, 1, measurement(40.0), 0.0,
    )  # fmt: skip


def test_the_command_is_what_the_engine_would_be_started_with() -> None:
    """The argv is the descriptor's own, for the endpoint that is told."""
    command = command_of(choice_of(WHEEL), MODEL, MACHINE)
    assert command.listens_on.endswith(".sock")
    folder = next((w for w in command.argv if w == command.folder), command.folder)
    (socket,) = [w for w in command.argv if w == command.listens_on]
    assert not Path(socket).exists()
    assert not folder or not Path(folder).exists()
    assert "--ctx-size" in command.argv or "-c" in command.argv


def test_a_shell_reads_back_what_was_meant() -> None:
    """Blanks, quotes and dollars in paths and in the environment survive the shell."""
    argv, env = ("/opt/my engine/run", "--model", "it's $HOME.gguf"), (("A", "b c; d"),)
    command = Command(argv, env, "/run/a b", "/run/x.sock")
    words = shlex.split(command.shell)
    assert words[:4] == ["mkdir", "-p", "/run/a b", "&&"]
    assert words[4:] == ["env", "A=b c; d", *argv]
    assert Command(argv, (), "", "").shell == shlex.join(argv)


def test_a_container_is_the_whole_line_of_its_runtime() -> None:
    """Docker's run with the image by digest, the model read-only, no network, the engine last."""
    command = command_of(choice_of(IMAGE), MODEL, MACHINE)
    assert command.argv[:2] == ("/usr/bin/docker", "run")
    assert command.env == ()
    assert command.argv[command.argv.index("--network") + 1] == "none"
    mount = f"type=bind,source={MODEL.path},target={MODEL.path},readonly"
    assert mount in command.argv
    image = command.argv.index(IMAGE.command[1])
    assert command.argv[image - 2 : image] == ("--entrypoint", "/app/llama-server")
    endpoint = Endpoint(socket_path=command.listens_on)
    launch = Launch(IMAGE, choice_of(IMAGE).candidate, MODEL, endpoint, command.folder)
    assert command.argv[image + 1 :] == ENGINE.argv(launch)[3:]
    assert command.listens_on.startswith(f"{command.folder}/")


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A house of the test's own."""
    return House(tmp_path)


@pytest.mark.parametrize("name", ["up", "serve"])
def test_the_program_prints_one_line_and_starts_nothing(
    house: House, tmp_path: Path, name: str
) -> None:
    """stdout is the command alone, ready for a file; without a choice nothing is searched for."""
    path = write_model(tmp_path / "tiny.gguf")
    missing = house.run(name, str(path), "--generate")
    assert missing.returncode == 2
    assert "serve.no_choice" in missing.stderr
    digest = house.run_json("models", "show", str(path))["digest"]
    records = Records(tmp_path / "state" / "records.sqlite")
    with records.opened():
        records.store_choice(choice_of(WHEEL, digest))
    done = house.run(name, str(path), "--generate")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    words = shlex.split(line)
    assert str(path) in words
    document = house.run_json(name, str(path), "--generate")
    assert shlex.split(document["shell"])[-len(document["argv"]) :] == document["argv"]
    assert house.run_json("trials", "list") == {"trials": []}
