"""The Ollama descriptor: whole argv, environment and calls in a table; its child's command line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from enginehouse.core.candidate import Build, Candidate, Setting, settings_of
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.model import TensorGroup
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.ollama import ENGINE, child_argv
from tests.unit.values import MACHINE, MODEL

STORE = "OLLAMA_MODELS=/cache/engines/ollama/models"
BUILD = Build(
    "ollama", "binary", "0.32.1", "o" * 64, ("/usr/bin/env", STORE, "/usr/bin/ollama"),
    "/usr/bin/ollama",
)  # fmt: skip
BARE = Build("ollama", "binary", "0.30.0", "p" * 64, ("/opt/ollama",), "/opt/ollama")
ALWAYS = (
    "OLLAMA_HOST=127.0.0.1:4711 HOME=/run/e OLLAMA_NOPRUNE=1 OLLAMA_NO_CLOUD=1 "
    "OLLAMA_KEEP_ALIVE=-1 OLLAMA_MAX_LOADED_MODELS=1 "
)


def launch(build: Build, settings: dict[str, Setting]) -> Launch:
    candidate = Candidate("ollama", build.digest, settings_of(settings))
    return Launch(build, candidate, MODEL, Endpoint(port=4711), "/run/e")


@pytest.mark.parametrize(
    ("build", "settings", "env", "parameters"),
    [
        (
            BUILD,
            {"context": 1024, "slots": 1},
            ALWAYS + "OLLAMA_NUM_PARALLEL=1 OLLAMA_CONTEXT_LENGTH=1024",
            {},
        ),
        (
            BARE,
            {"context": 512, "slots": 8, "batch": 1024, "threads": 2, "mmap": "on"},
            ALWAYS + "OLLAMA_NUM_PARALLEL=8 OLLAMA_CONTEXT_LENGTH=512 OLLAMA_MODELS=/run/e/models",
            {"num_batch": 1024, "num_thread": 2, "use_mmap": True},
        ),
        (
            BUILD,
            {"kv_type": "q8_0", "flash_attention": "on", "gpu_layers": 0},
            ALWAYS + "OLLAMA_NUM_PARALLEL=1 OLLAMA_CONTEXT_LENGTH=4096 OLLAMA_KV_CACHE_TYPE=q8_0 "
            "OLLAMA_FLASH_ATTENTION=1",
            {"num_gpu": 0},
        ),
    ],
)
def test_the_environment_and_the_import_are_whole(
    build: Build, settings: dict[str, Setting], env: str, parameters: dict[str, Setting]
) -> None:
    """Our own daemon gets exactly these variables, and its model exactly these parameters."""
    started = launch(build, settings)
    assert " ".join(f"{name}={value}" for name, value in ENGINE.env(started)) == env
    create, load = ENGINE.setup(started)
    assert (create.method, create.path) == ("POST", "/api/create")
    assert json.loads(create.json) == {
        "model": "tiny",
        "files": {"model.gguf": f"sha256:{MODEL.digest}"},
        "parameters": parameters,
        "stream": False,
    }
    assert (load.method, load.path) == ("POST", "/api/generate")
    assert json.loads(load.json) == {"model": "tiny", "keep_alive": -1, "stream": False}


def test_the_argv_links_the_model_and_becomes_the_daemon() -> None:
    """The argv sets the store, links the file under its digest, and is `ollama serve` then."""
    argv = ENGINE.argv(launch(BUILD, {}))
    assert argv[:4] == ("/usr/bin/env", STORE, "/bin/sh", "-c")
    assert argv[4] == (
        'mkdir -p "$OLLAMA_MODELS/blobs" && ln -sfn "$1" "$OLLAMA_MODELS/blobs/sha256-$2" '
        '&& exec "$0" serve'
    )
    assert argv[5:] == ("/usr/bin/ollama", MODEL.path, MODEL.digest)


def test_the_port_of_the_users_daemon_is_never_used() -> None:
    """Where our daemon listens is the launch's endpoint, never Ollama's own 11434."""
    assert ("OLLAMA_HOST", "127.0.0.1:4711") in ENGINE.env(launch(BUILD, {}))
    assert not ENGINE.unix_socket


@pytest.mark.parametrize(
    ("settings", "has_gpu", "expected"),
    [
        (
            {},
            False,
            "/bin/llama-server --model /models/tiny.gguf --port 4711 --host 127.0.0.1 --no-webui "
            "--offline -c 4096 -np 1 --log-verbosity 4 --no-log-prefix --no-log-timestamps "
            "--load-mode none --flash-attn auto -b 512 -ub 512 --context-shift --keep 4",
        ),
        (
            {"context": 1024, "slots": 16, "threads": 2, "kv_type": "q8_0"},
            False,
            "/bin/llama-server --model /models/tiny.gguf --port 4711 --host 127.0.0.1 --no-webui "
            "--offline -c 16384 -np 16 --log-verbosity 4 --no-log-prefix --no-log-timestamps "
            "--load-mode none --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn auto -b 512 "
            "-ub 512 -t 2 --context-shift --keep 4",
        ),
        (
            {"gpu_layers": 20, "flash_attention": "on"},
            True,
            "/bin/llama-server --model /models/tiny.gguf --port 4711 --host 127.0.0.1 --no-webui "
            "--offline -c 4096 -np 1 --log-verbosity 4 --no-log-prefix --no-log-timestamps "
            "--flash-attn on -b 512 -ub 512 -ngl 20 --context-shift --keep 4",
        ),
    ],
)
def test_the_childs_command_line_is_ollamas(
    settings: dict[str, Setting], has_gpu: bool, expected: str
) -> None:
    """The baseline is what Ollama gives its llama-server, flag by flag."""
    candidate = Candidate("ollama", "d", settings_of(settings))
    argv = child_argv("/bin/llama-server", MODEL, 4711, candidate, has_gpu)
    assert " ".join(argv) == expected


def test_slots_are_not_offered_where_ollama_serves_one_request_at_a_time() -> None:
    """A family that Ollama pins to one request gets no lever for more."""
    pinned = replace(MODEL, architecture="lfm2")
    for model, has_slots in ((MODEL, True), (pinned, False)):
        levers = ENGINE.levers(MACHINE, model, WORKLOADS["crowd"])
        names = {name for lever in levers for step in lever.steps for name, _ in step}
        assert ("slots" in names) == has_slots


def test_a_name_that_ollama_cannot_hold_is_refused() -> None:
    """A model whose name Ollama would reject is refused before anything is started."""
    assert ENGINE.refuse(MODEL, MACHINE) is None
    refusal = ENGINE.refuse(replace(MODEL, name="my model"), MACHINE)
    assert refusal is not None
    assert refusal.cause == "config.invalid_value"


def test_without_a_gpu_all_weights_stay() -> None:
    """Ollama reads the file instead of mapping it, so nothing of the weights can be given back."""
    candidate = ENGINE.minimal(BUILD, MODEL, WORKLOADS["chat"])
    repacked = TensorGroup("attention", "Q4_0", 1, 1 << 20, 90 << 20)
    model = replace(MODEL, groups=(repacked,))
    read = ENGINE.estimate_memory(model, candidate, MACHINE)
    mapped = ENGINE.estimate_memory(model, candidate.with_settings(mmap="on"), MACHINE)
    assert read.part("file pages").expected == 0
    assert mapped.part("file pages").expected > 0
    weights = read.part("weights").expected + read.part("weights in the CPU's layout").expected
    assert weights == MODEL.weight_bytes
    assert read.part("daemon").expected > 0
