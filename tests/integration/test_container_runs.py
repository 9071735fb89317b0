"""Trials and servers in containers, over a fake container program that does as docker does.

What runs in there is no child of the client, and outlives it. `tests/real/test_containers.py` runs
the same with the real podman.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from enginehouse.app_engines import find_in_images
from enginehouse.core.candidate import Build
from enginehouse.core.engine import Launch
from enginehouse.core.errors import UserError
from enginehouse.core.lifecycle import State
from enginehouse.core.settings import Given, resolve
from enginehouse.core.trial import Outcome
from enginehouse.edges.container_run import ContainerRun
from enginehouse.edges.launches import prepare
from enginehouse.edges.leases import MARKER, LeaseBook, find_marked
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.records import Records
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.gateway.supervisor import Supervisor
from enginehouse.trials.bench import TokenRatio
from enginehouse.trials.run import run_trial
from tests import fake_container
from tests.integration.conftest import FAKE_ENGINE, fake_plan
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.unit.values import MACHINE, MODEL


@dataclasses.dataclass(frozen=True)
class Contained(LlamaCpp):
    """The fake engine as the command of an image."""

    script: tuple[str, ...] = ()

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Start the fake engine."""
        return (*launch.build.command, "--host", launch.endpoint.socket_path, *self.script)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Path]:
    """A fake docker of the test's own; no container and nothing of one may be left."""
    program = fake_container.install(tmp_path)
    yield program
    assert [path for path in (tmp_path / "containers").iterdir() if path.is_dir()] == []


def build_of(docker: Path) -> Build:
    image = (str(docker), fake_container.IMAGE_ID, sys.executable, FAKE_ENGINE)
    return Build("llama.cpp", "container", "llama:1", "c" * 64, image, fake_container.IMAGE)


def process_of(docker: Path, folder: Path, *script: str) -> EngineProcess:
    """Return the fake engine in a fake container, not started."""
    ready = prepare(Contained(script=script), build_of(docker), CANDIDATE, MODEL, lambda: MACHINE)
    return EngineProcess(
        ready.argv, env={}, log_path=folder / "engine.log", leases=LeaseBook(folder / "leases"),
        files=ready.files, scratch=ready.scratch, container=ready.container,
    )  # fmt: skip


async def until(is_there: Callable[[], object]) -> None:
    """Wait for an event of another process."""
    ends = time.monotonic() + 20
    while not is_there():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


async def test_a_trial_in_a_container_is_measured(
    docker: Path, records: Records, tmp_path: Path
) -> None:
    """Its memory is that of what runs in there, and its record has the whole command.

    The limit that a cgroup would have is asked for; since nobody keeps it, the watcher guards.
    """
    bench = dataclasses.replace(bench_of(records, tmp_path, ()), engines={"llama.cpp": Contained()})
    trial = await run_trial(bench, build_of(docker), CANDIDATE, TokenRatio())
    assert trial.outcome is Outcome.MEASURED, trial.detail
    assert trial.argv[:2] == (str(docker), "run")
    assert trial.fence == "watcher"
    assert int(trial.argv[trial.argv.index("--memory") + 1]) > 0
    assert trial.build.digest == "c" * 64
    assert trial.peak_memory_bytes > 8 << 20
    assert not list((tmp_path / "leases").glob("*.json"))
    assert not Path(trial.argv[trial.argv.index("--host") + 1]).parent.exists()


async def test_what_the_killer_ended_is_guarded_with_its_evidence(
    docker: Path, records: Records, tmp_path: Path
) -> None:
    """Exit code 137 with State.OOMKilled is the kernel's work at the limit that we set."""
    (tmp_path / "containers" / "oom").touch()
    script = ("--load-s", "60")
    engine = Contained(script=script)
    bench = dataclasses.replace(bench_of(records, tmp_path, ()), engines={"llama.cpp": engine})
    trying = asyncio.ensure_future(run_trial(bench, build_of(docker), CANDIDATE, TokenRatio()))
    folders = tmp_path / "containers"
    await until(lambda: list(folders.glob("*/pid")))
    (pid,) = [int(path.read_text()) for path in folders.glob("*/pid")]
    os.kill(pid, signal.SIGKILL)
    trial = await trying
    assert (trial.outcome, trial.signal) == (Outcome.GUARDED, "SIGKILL")
    assert trial.diagnosis is not None
    assert trial.diagnosis.cause == "memory.host.insufficient"
    assert "State.OOMKilled of enginehouse-" in trial.diagnosis.evidence[0].text
    (folders / "oom").unlink()


async def test_an_exit_code_comes_out_of_the_container(
    docker: Path, records: Records, tmp_path: Path
) -> None:
    """A failed start ends the trial with the engine's own exit code and log."""
    engine = Contained(script=("--fail", "something odd"))
    bench = dataclasses.replace(bench_of(records, tmp_path, ()), engines={"llama.cpp": engine})
    trial = await run_trial(bench, build_of(docker), CANDIDATE, TokenRatio())
    assert (trial.outcome, trial.exit_code) == (Outcome.EXITED, 3)
    assert "something odd" in Path(trial.log_path).read_text()
    assert trial.detail == "the engine ended during load with exit code 3"


async def test_the_guards_kill_reaches_what_is_in_the_container(
    docker: Path, tmp_path: Path
) -> None:
    """Killing the client would leave the engine: its first process is killed directly."""
    process = process_of(docker, tmp_path, "--ignore-sigterm")
    await process.start()
    await until(lambda: process.engine_pid)
    pid = process.engine_pid
    assert pid is not None
    assert psutil.Process(pid) in process.family()
    assert process.pid not in [one.pid for one in process.family()]
    process.kill()
    ended = await process.wait()
    assert ended.signal == "SIGKILL"
    assert not psutil.pid_exists(pid)


async def test_a_stop_asks_first_and_insists_later(docker: Path, tmp_path: Path) -> None:
    """An engine that ends when asked has its own end; one that does not is killed."""
    for script, signal_name in (((), "SIGTERM"), (("--ignore-sigterm",), "SIGKILL")):
        process = process_of(docker, tmp_path, *script)
        await process.start()
        socket = Path(process._argv[process._argv.index("--host") + 1])
        await until(socket.exists)
        assert (await process.stop(1.0)).signal == signal_name
        assert not socket.exists()


async def test_a_stop_before_the_container_is_there_leaves_none(
    docker: Path, tmp_path: Path
) -> None:
    """A container that would come after its client was killed is removed too."""
    process = process_of(docker, tmp_path)
    await process.start()
    lease = process._lease
    assert lease is not None
    await process.stop(1.0)
    assert find_marked((lease.id,)) == {}


async def test_a_container_that_dies_is_started_again_when_serving(
    docker: Path, tmp_path: Path
) -> None:
    """The supervisor holds a container as any engine, and shows its memory."""
    ready = prepare(Contained(), build_of(docker), CANDIDATE, MODEL, lambda: MACHINE)
    plan = dataclasses.replace(
        fake_plan(tmp_path), argv=ready.argv, endpoint=ready.endpoint,
        scratch=Path(ready.launch.scratch), container=ready.container,
    )  # fmt: skip
    supervisor = Supervisor(plan, LeaseBook(tmp_path / "leases"))
    running = asyncio.ensure_future(supervisor.run())
    assert await supervisor.wait_settled() is State.READY
    await until(lambda: supervisor.memory(0.0) > 8 << 20)
    (pid,) = [int(path.read_text()) for path in (tmp_path / "containers").glob("*/pid")]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: supervisor.state is not State.READY)
    assert "its container ended with exit code 137" in supervisor.reason
    assert await supervisor.wait_settled() is State.READY
    assert supervisor.restarts == 1
    await supervisor.stop()
    await running


LEAVER = """
import asyncio, dataclasses, sys
from pathlib import Path
from tests.integration.test_container_runs import process_of
async def main():
    process = process_of(Path(sys.argv[1]), Path(sys.argv[2]))
    await process.start()
    while process.engine_pid is None:
        await asyncio.sleep(0.01)
    print(process.engine_pid, process._container._reaper.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("has_reaper", [True, False])
def test_a_killed_owner_leaves_no_container(docker: Path, tmp_path: Path, has_reaper: bool) -> None:
    """The shell that waits for our end removes it at once; without that the next start does."""
    command = [sys.executable, "-c", LEAVER, str(docker), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, reaper = map(int, owner.stdout.readline().split())
        if not has_reaper:
            os.kill(reaper, signal.SIGKILL)
        owner.kill()
    if has_reaper:
        ends = time.monotonic() + 20
        while psutil.pid_exists(pid) or psutil.pid_exists(reaper):
            assert time.monotonic() < ends
            time.sleep(0.01)
    else:
        assert psutil.pid_exists(pid)
    (said,) = LeaseBook(tmp_path / "leases").clear_leftovers()
    assert "the engine `docker` in a container of a killed Enginehouse" in said
    assert not psutil.pid_exists(pid)


def test_a_process_without_our_mark_is_not_taken_for_the_engine(tmp_path: Path) -> None:
    """A daemon may be another machine's: its process ids mean nothing here, and are not killed."""
    from enginehouse.core.container import Container

    run = ContainerRun(Container("docker", "enginehouse-x"))
    run._mark = f"{MARKER}=nobody".encode()
    run._take(os.getpid())
    assert run.pid is None
    assert run.family() == []


def test_an_image_of_the_users_own_is_a_build(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts as it is told, else as the image itself does; one that is not here is an error."""
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    key = "engine.llama_cpp.image"

    def find(text: str) -> list[Build]:
        off = Given("engine.containers", "off", "test")
        builds = find_in_images(resolve((off, Given(key, text, "test"))), lambda: MACHINE)
        return list(builds)

    (plain,) = find(fake_container.IMAGE)
    assert plain.command == (str(docker), fake_container.IMAGE_ID, sys.executable)
    assert (plain.digest, plain.path) == ("c" * 64, fake_container.IMAGE)
    (told,) = find(f"{fake_container.IMAGE} /opt/llama-server --verbose")
    assert told.command[2:] == ("/opt/llama-server", "--verbose")
    with pytest.raises(UserError) as caught:
        find("nowhere/llama:1")
    assert caught.value.report.id == "engine.not_usable"
    assert f"{docker} pull nowhere/llama:1" in caught.value.report.remedies


def test_without_images_no_program_is_asked(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`engine.containers = "off"` without an own image asks nobody."""
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    off = Given("engine.containers", "off", "test")
    assert find_in_images(resolve((off,)), lambda: MACHINE) == ()
    assert not (docker.parent / "asked").exists()
