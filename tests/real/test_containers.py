"""Real containers: podman with runc runs the real wheel, from an image made of this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from enginehouse.core.candidate import Build
from enginehouse.core.choice import Choice
from enginehouse.core.engine import Launch
from enginehouse.core.forms import Forms
from enginehouse.core.model import Model
from enginehouse.core.trial import Outcome
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.containers import Runtime, find_own_builds
from enginehouse.edges.launches import prepare
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.probes import look_at_machine
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.progress import SilentProgress
from enginehouse.edges.records import Records
from enginehouse.engines import load_engines
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.trials.bench import Bench, TokenRatio
from enginehouse.trials.run import run_trial
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.real import wheel_image
from tests.real.test_kill import DEMO, Home, serve
from tests.unit.values import MACHINE, MODEL, measurement

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(wheel_image.why_not()), reason=wheel_image.why_not()),
]
LIMIT_BYTES = 256 << 20
OWN = ("ps", "--all", "--filter", "label=enginehouse.run", "--format", "{{.Names}}")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image for podman with settings of its own; gone afterwards."""
    name = f"localhost/enginehouse-test:{os.getpid()}"
    more = wheel_image.write_settings(tmp_path_factory.mktemp("podman"))
    wheel_image.import_image(name, {**os.environ, **more})
    with pytest.MonkeyPatch.context() as patch:
        for key, value in more.items():
            patch.setenv(key, value)
        trying = ("podman", "run", "--rm", "--network", "none", name, "--help")
        done = subprocess.run(trying, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"podman runs no container here: {done.stderr.strip()[-200:]}")
        yield name
        subprocess.run(["podman", "rmi", "--force", name], capture_output=True)


@pytest.fixture
def home(podman: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home of the test's own that names the image; no container of ours may be left."""
    before = ours()
    made = Home(tmp_path_factory.mktemp("c"))
    made.env["ENGINEHOUSE_ENGINE_LLAMA_CPP_IMAGE"] = podman
    made.env["ENGINEHOUSE_ENGINE_CONTAINERS"] = "off"
    if (
        os.geteuid() and "XDG_RUNTIME_DIR" in os.environ
    ):  # rootless podman keeps its own things there
        made.env["XDG_RUNTIME_DIR"] = os.environ["XDG_RUNTIME_DIR"]
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)
    assert ours() == before


def ours() -> set[str]:
    """Return the containers with our label, of whatever run."""
    done = subprocess.run(["podman", *OWN], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def image_build(podman: str, command: str = "") -> Build:
    runtime = Runtime("/usr/bin/podman")
    (build,) = find_own_builds({"llama.cpp": f"{podman} {command}"}, [runtime])
    return build


def choose_container(home: Home, podman: str) -> Path:
    """Return a state folder with a choice of the image's minimal candidate; nothing is measured."""
    chosen = home.folder / "chosen"
    chosen.mkdir()
    records = Records(chosen / "records.sqlite")
    records.open()
    model = resolve_model(DEMO, records, cache_dir(), SilentProgress())
    build, machine = image_build(podman), look_at_machine()
    minimal = load_engines()[build.engine].minimal(build, model, WORKLOADS["chat"])
    records.store_choice(
        Choice(
            model.digest, model.name, "chat", machine.fingerprint(), machine.fingerprint_facts(),
            build, minimal, 0, measurement(1.0), 1.0,
        )
    )  # fmt: skip
    records.close()
    return chosen


@pytest.mark.long
def test_find_tries_the_image_beside_the_wheel(home: Home, podman: str) -> None:
    """A real search proves or measures the container, and records exactly which image it was."""
    done = home.run("find", DEMO, "--budget", "60s")
    assert done.returncode == 0, done.stderr
    said = home.run("trials", "list", "--json")
    trials = [
        json.loads(home.run("trials", "show", str(one["id"]), "--json").stdout)
        for one in json.loads(said.stdout)["trials"]
    ]
    contained = [one for one in trials if one["build"]["kind"] == "container"]
    good = {"proven", "measured", "pruned", "examined"}
    assert {one["outcome"] for one in contained} <= good, done.stderr
    digest = image_build(podman).digest
    assert {one["build"]["digest"] for one in contained} == {digest}
    (first, *_) = contained
    assert digest in " ".join(first["argv"])
    assert first["argv"][first["argv"].index("--network") + 1] == "none"
    assert first["fence"] == "container" or os.geteuid(), "root may make cgroups"
    wheel = next(one for one in trials if one["build"]["kind"] == "wheel")
    peaks = [max(s["pss_bytes"] for s in one["memory"]) for one in (first, wheel)]
    assert 0.5 < peaks[0] / peaks[1] < 2, peaks
    home.check_empty()


def test_a_choice_in_a_container_is_served_and_ended(home: Home, podman: str) -> None:
    """A client talks to the model in the container; SIGTERM leaves nothing of it."""
    child = serve(home, choose_container(home, podman))
    assert len(ours()) == 1
    text = home.log.read_text()
    port = text.partition("http://127.0.0.1:")[2][:5].strip("/ \n")
    body = {"model": DEMO, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"]
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0, home.log.read_text()
    home.check_empty()
    assert ours() == set()


def test_a_kill_while_serving_ends_the_container(home: Home, podman: str) -> None:
    """After SIGKILL the container is gone before any other command, which clears the rest."""
    child = serve(home, choose_container(home, podman))
    assert len(ours()) == 1
    child.kill()
    child.wait()
    ends = time.monotonic() + 30
    while ours() or home.processes():  # the shell that removes it does so twice
        assert time.monotonic() < ends
        time.sleep(0.1)
    done = home.run("trials", "list")
    assert "cleared: the engine `podman` in a container of a killed Enginehouse" in done.stderr
    home.check_empty()


@dataclasses.dataclass(frozen=True)
class Eater(LlamaCpp):
    """A program in the image that takes 1 GiB of memory."""

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Start the eater."""
        return launch.build.command


def model_in(folder: Path) -> Model:
    """Return a model whose file is there: one that is not cannot be mounted."""
    path = folder / "any.gguf"
    path.touch()
    return dataclasses.replace(MODEL, path=str(path))


class TightBench(Bench):
    """A bench that leaves its engines little room."""

    def room_bytes(self) -> int:
        """Return the same little room at all times."""
        return LIMIT_BYTES


async def test_a_trial_that_is_cancelled_at_any_moment_leaves_no_container(
    podman: str, tmp_path: Path
) -> None:
    """Ctrl-C while podman makes the container, starts it or has started it: nothing is left."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    bench = dataclasses.replace(
        bench_of(records, tmp_path, ()),
        engines={"llama.cpp": Eater()},
        forms=Forms((model_in(tmp_path),)),
    )
    build = image_build(podman, f"{wheel_image.python_in_image()} {wheel_image.EATER}")
    for delay_s in (0.01, 0.06, 0.12, 0.18, 0.24, 0.3, 0.4, 0.6):
        trying = asyncio.ensure_future(run_trial(bench, build, CANDIDATE, TokenRatio()))
        await asyncio.sleep(delay_s)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
    outcomes = {trial.outcome for trial in records.trials()}
    records.close()
    assert outcomes == {Outcome.INTERRUPTED}
    assert ours() == set()
    assert _eaters() == []
    assert not list((tmp_path / "leases").glob("*.json"))


async def test_the_limit_of_a_container_ends_the_trial_with_evidence(
    podman: str, tmp_path: Path
) -> None:
    """What wants more than the trial's limit is ended by the kernel, and the record says so."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    plain = bench_of(records, tmp_path, ())
    bench = TightBench(
        **{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    )
    bench = dataclasses.replace(
        bench,
        engines={"llama.cpp": Eater()},
        forms=Forms((model_in(tmp_path),)),
        deadlines=dataclasses.replace(plain.deadlines, load_s=20.0),
    )
    build = image_build(podman, f"{wheel_image.python_in_image()} {wheel_image.EATER}")
    trial = await run_trial(bench, build, CANDIDATE, TokenRatio())
    records.close()
    if trial.fence != "container":
        pytest.skip("podman keeps no memory limit here: it may not make cgroups")
    assert (trial.outcome, trial.signal) == (Outcome.GUARDED, "SIGKILL"), trial.detail
    assert "256 MiB" in trial.detail
    assert trial.diagnosis is not None
    assert trial.diagnosis.cause == "memory.host.insufficient"
    (evidence,) = trial.diagnosis.evidence
    assert "oom_kill" in evidence.text or "OOMKilled" in evidence.text
    assert LIMIT_BYTES / 4 < trial.peak_memory_bytes < LIMIT_BYTES * 1.1
    assert trial.log_path
    assert "eating" in Path(trial.log_path).read_text()
    assert ours() == set()


async def test_the_guards_kill_frees_a_containers_memory_at_once(
    podman: str, tmp_path: Path
) -> None:
    """From the guard's call to the end of the process in the container it takes no second."""
    build = image_build(podman, f"{wheel_image.python_in_image()} {wheel_image.EATER}")
    ready = prepare(Eater(), build, CANDIDATE, model_in(tmp_path), lambda: MACHINE, 1 << 30)
    process = EngineProcess(
        ready.argv, env={}, log_path=tmp_path / "log", leases=LeaseBook(tmp_path / "leases"),
        scratch=ready.scratch, container=ready.container,
    )  # fmt: skip
    await process.start()
    while process.memory()[0] < 100 << 20:
        assert process.is_running
        await asyncio.sleep(0.02)
    pids = [one.pid for one in process.family()]
    assert process.pid not in pids
    began = time.monotonic()
    process.kill()
    _wait_gone(pids)
    assert time.monotonic() - began < 1.0
    assert (await process.wait()).signal == "SIGKILL"
    assert ours() == set()


def _eaters() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wheel_image.EATER.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _wait_gone(pids: list[int]) -> None:
    while any(map(_is_alive, pids)):
        time.sleep(0.005)


def _is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
