"""What every engine descriptor must hold, whichever engine it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.engine import PROVEN, UNPROVEN, Endpoint, Engine, Launch
from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines import load_engines
from tests.unit.values import MACHINE, MODEL

ENGINES = load_engines()
GPU = Gpu("a GPU", "nvidia", 24 << 30, 22 << 30, driver="580.82", cuda="13.0", arch="8.9")
GPU_MACHINE = replace(MACHINE, gpus=(GPU,))
CHECKPOINT = replace(MODEL, path="/models/tiny", format="safetensors", quantization="bf16")

every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def build_of(engine: Engine) -> Build:
    return Build(engine.name, "binary", "1.0", "b" * 64, ("/opt/engine",), "/opt/engine")


def model_for(engine: Engine) -> Model:
    return MODEL if "gguf" in engine.formats else CHECKPOINT


def launches(engine: Engine, machine: Machine) -> list[Launch]:
    """The minimal candidate and each lever's every step on it, for every workload."""
    model, build = model_for(engine), build_of(engine)
    endpoint = Endpoint(socket_path="/run/e.sock") if engine.unix_socket else Endpoint(port=4711)
    found = []
    for workload in WORKLOADS.values():
        minimal = engine.minimal(build, model, workload)
        steps = [
            step
            for lever in engine.levers(machine, model, workload)
            for step in (*lever.steps, *lever.spare, *lever.more)
        ]
        candidates = [minimal, *(minimal.with_settings(**dict(step)) for step in steps)]
        found += [Launch(build, candidate, model, endpoint, "/run/e") for candidate in candidates]
    return found


@every_engine
def test_an_engine_says_what_it_is(engine: Engine) -> None:
    """Name, status, formats, stop signal and readiness are of the values that the house knows."""
    assert ENGINES[engine.name] is engine
    assert engine.status in (PROVEN, UNPROVEN)
    assert engine.formats
    assert set(engine.formats) <= {"gguf", "safetensors"}
    assert engine.stop_signal in ("SIGTERM", "SIGINT")
    assert engine.ready_path.startswith("/")


@every_engine
def test_tunables_are_declared_once_and_explained(engine: Engine) -> None:
    """Each tunable has one declaration, with words that say what it does."""
    names = [tunable.name for tunable in engine.tunables]
    assert len(names) == len(set(names))
    assert all(tunable.summary for tunable in engine.tunables)


@every_engine
@pytest.mark.parametrize("machine", [MACHINE, GPU_MACHINE], ids=["cpu", "gpu"])
def test_every_setting_that_is_proposed_is_declared_and_legal(
    engine: Engine, machine: Machine
) -> None:
    """What minimal and the levers set is a tunable, within its values and its least."""
    tunables = {tunable.name: tunable for tunable in engine.tunables}
    for launch in launches(engine, machine):
        for name, value in launch.candidate.settings:
            tunable = tunables[name]
            assert not tunable.values or value in tunable.values, name
            assert tunable.least is None or int(value) >= tunable.least, name


@every_engine
def test_argv_and_environment_follow_from_the_launch_alone(engine: Engine) -> None:
    """The same launch gives the same argv, environment and calls, all of them text."""
    for launch in launches(engine, GPU_MACHINE):
        argv = engine.argv(launch)
        assert argv == engine.argv(launch)
        assert engine.env(launch) == engine.env(launch)
        assert engine.setup(launch) == engine.setup(launch)
        assert argv[: len(launch.build.command)] == launch.build.command or argv[-3:] == (
            *launch.build.command, launch.model.path, launch.model.digest,
        )  # fmt: skip
        assert launch.model.path in argv
        assert all(isinstance(word, str) for word in argv)
        names = [name for name, _ in engine.env(launch)]
        assert len(names) == len(set(names))


@every_engine
def test_an_engine_listens_on_the_loopback_or_a_socket_only(engine: Engine) -> None:
    """No descriptor lets an engine listen where another machine could reach it."""
    for launch in launches(engine, GPU_MACHINE):
        words = [*engine.argv(launch), *(value for _, value in engine.env(launch))]
        assert not any("0.0.0.0" in word for word in words)
        where = launch.endpoint.socket_path or str(launch.endpoint.port)
        assert any(where in word for word in words)


@every_engine
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_minimal_candidate_holds_the_workload(engine: Engine, name: str) -> None:
    """The minimal candidate is the engine's own and refuses nothing of itself."""
    minimal = engine.minimal(build_of(engine), model_for(engine), WORKLOADS[name])
    assert minimal.engine == engine.name
    assert int(minimal.get("context") or 0) >= WORKLOADS[name].context_tokens
    assert engine.refuse_settings(minimal) is None


@every_engine
@pytest.mark.parametrize("machine", [None, MACHINE, GPU_MACHINE], ids=["none", "cpu", "gpu"])
def test_predicted_memory_is_ordered_and_holds_the_weights(
    engine: Engine, machine: Machine | None
) -> None:
    """A prediction has low, expected and high in order, and is no less than the weights."""
    model = model_for(engine)
    minimal = engine.minimal(build_of(engine), model, WORKLOADS["chat"])
    estimate = engine.estimate_memory(model, minimal, machine)
    for part in estimate.parts:
        assert 0 <= part.bytes.low <= part.bytes.expected <= part.bytes.high, part.name
    assert estimate.resident.high >= model.weight_bytes


@every_engine
def test_a_wrong_format_is_refused_with_its_cause(engine: Engine) -> None:
    """A model in a format that the engine does not load is refused, with the reason."""
    for form in ("gguf", "safetensors"):
        refusal = engine.refuse(replace(MODEL, format=form), GPU_MACHINE)
        if form not in engine.formats:
            assert refusal is not None
            assert refusal.cause == "format.unsupported"
            assert form in refusal.reason.lower()


@every_engine
def test_shared_slots_are_none_without_settings(engine: Engine) -> None:
    """An engine seats requests in slots only where a setting says so."""
    assert engine.shared_slots(Candidate(engine.name, "b", ())) == 0
