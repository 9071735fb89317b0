"""Engines in containers: the whole run command in a table, and the image that fits a machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.candidate import Build, settings_of
from enginehouse.core.container import (
    Confines,
    ContainerState,
    contain,
    gpu_access,
    leftovers_argv,
    mounted_paths,
    parse_state,
    remove_argv,
    socket_in,
    stop_argv,
)
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.image import images_for
from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines import load_engines
from enginehouse.knowledge.containers import image_of, load_images
from tests.unit.values import MACHINE, MODEL

IMAGE = "ghcr.io/ggml-org/llama.cpp@sha256:" + "a" * 64
CONFINES = Confines("0123456789abcdef", "/run/e", (MODEL.path,), "1000:1000", memory_bytes=8 << 30)
FEW = (
    "--read-only --tmpfs /tmp:rw,nosuid,nodev,size=4294967296 --cap-drop ALL --security-opt "
    "no-new-privileges --pids-limit 4096"
)
LEAST = f"{FEW} --user 1000:1000"
OWN = "--env HOME=/tmp --env USER=enginehouse --env LOGNAME=enginehouse"
MOUNTS = (
    "--mount type=bind,source=/run/e,target=/run/e "
    "--mount type=bind,source=/models/tiny.gguf,target=/models/tiny.gguf,readonly"
)
ORIN = replace(
    MACHINE, architecture="aarch64", l4t="36.4.3", kinds=("jetson",),
    gpus=(Gpu("Orin", "nvidia", unified=True, driver="540.4.0", cuda="12.6", arch="8.7"),),
)  # fmt: skip
ADA = Gpu("RTX 4090", "nvidia", 24 << 30, driver="580.82", cuda="13.0", arch="8.9")


@pytest.mark.parametrize(
    ("argv", "env", "endpoint", "confines", "expected"),
    [
        (
            ("/usr/bin/docker", IMAGE, "/app/llama-server", "--host", "/run/e/engine.sock"),
            (),
            socket_in("/run/e"),
            CONFINES,
            "/usr/bin/docker run --rm --init --pull never --name enginehouse-0123456789ab "
            "--label enginehouse.run=0123456789abcdef --network none "
            f"{LEAST} --memory 8589934592 --memory-swap 8589934592 --shm-size 1073741824 {MOUNTS} "
            f"{OWN} --entrypoint /app/llama-server {IMAGE} --host /run/e/engine.sock",
        ),
        (
            ("/usr/bin/podman", IMAGE, "python3", "-m", "vllm", "--uds", "/run/e/engine.sock"),
            (("HF_HUB_OFFLINE", "1"),),
            socket_in("/run/e"),
            replace(CONFINES, memory_bytes=0, gpu="cdi"),
            "/usr/bin/podman run --rm --init --pull never --name enginehouse-0123456789ab "
            "--label enginehouse.run=0123456789abcdef --network none "
            f"{FEW} --user 0:0 --userns host --security-opt label=disable --shm-size 1073741824 "
            f"{MOUNTS} --device nvidia.com/gpu=all {OWN} --env HF_HUB_OFFLINE=1 --entrypoint "
            f"python3 {IMAGE} -m vllm --uds /run/e/engine.sock",
        ),
        (
            ("docker", IMAGE, "trtllm-serve", "/m", "--host", "127.0.0.1", "--port", "4711"),
            (("OLLAMA_HOST", "127.0.0.1:4711"),),
            Endpoint(port=4711),
            replace(CONFINES, gpu="jetson", memory_bytes=0),
            "docker run --rm --init --pull never --name enginehouse-0123456789ab "
            "--label enginehouse.run=0123456789abcdef --publish 127.0.0.1:4711:4711 "
            f"{LEAST} --shm-size 1073741824 {MOUNTS} --runtime nvidia --env "
            "NVIDIA_VISIBLE_DEVICES=all --env NVIDIA_DRIVER_CAPABILITIES=compute,utility "
            f"{OWN} --env OLLAMA_HOST=0.0.0.0:4711 --entrypoint trtllm-serve {IMAGE} /m --host "
            "0.0.0.0 --port 4711",
        ),
    ],
)
def test_the_run_command_is_whole(
    argv: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    endpoint: Endpoint,
    confines: Confines,
    expected: str,
) -> None:
    """An engine's argv becomes exactly this: no privileges, no writes, no network but its port."""
    assert " ".join(contain(argv, env, endpoint, confines)) == expected


def test_a_socket_elsewhere_is_not_taken() -> None:
    """A socket outside the launch's own folder would not be seen outside the container."""
    with pytest.raises(ValueError, match=r"is not in /run/e"):
        contain(("docker", IMAGE, "x"), (), Endpoint(socket_path="/tmp/e.sock"), CONFINES)


@pytest.mark.parametrize("engine", load_engines().values(), ids=load_engines())
def test_every_engine_can_be_contained(
    engine: object,
) -> None:
    """Any descriptor's argv can be wrapped: program and image first, its own words last."""
    engine = load_engines()[getattr(engine, "name", "")]
    build = Build(engine.name, "container", "1", "d" * 64, ("docker", IMAGE, "serve"), "image")
    model = MODEL if "gguf" in engine.formats else replace(MODEL, format="safetensors")
    endpoint = socket_in("/run/e") if engine.unix_socket else Endpoint(port=4711)
    candidate = engine.minimal(build, model, WORKLOADS["chat"])
    launch = Launch(build, candidate, model, endpoint, "/run/e")
    argv = contain(engine.argv(launch), engine.env(launch), endpoint, CONFINES)
    assert argv[:2] == ("docker", "run")
    assert argv.count(IMAGE) == 1
    assert "--privileged" not in argv
    assert candidate.settings == settings_of(dict(candidate.settings))


@pytest.mark.parametrize(
    ("program", "machine", "access"),
    [
        ("docker", MACHINE, "none"),
        ("docker", replace(MACHINE, gpus=(ADA,)), "docker"),
        ("/usr/bin/podman", replace(MACHINE, gpus=(ADA,)), "cdi"),
        ("docker", ORIN, "jetson"),
        ("docker", replace(MACHINE, gpus=(replace(ADA, vendor="amd"),)), "none"),
    ],
)
def test_the_gpu_is_reached_as_the_program_and_the_board_want_it(
    program: str, machine: Machine, access: str
) -> None:
    """Jetson needs the runtime, podman a CDI device; without an NVIDIA GPU nothing is passed."""
    assert gpu_access(program, machine) == access


@pytest.mark.parametrize(
    ("machine", "engine", "expected"),
    [
        (ORIN, "vllm", "ghcr.io/nvidia-ai-iot/vllm:latest-jetson-orin"),
        (replace(ORIN, l4t="39.2.0", gpus=(replace(ORIN.gpus[0], cuda="13.2"),)), "vllm",
         "vllm/vllm-openai:latest"),
        (replace(MACHINE, gpus=(ADA,)), "vllm", "vllm/vllm-openai:latest"),
        (replace(MACHINE, gpus=(replace(ADA, cuda="12.6"),)), "vllm", None),
        (MACHINE, "vllm", None),
        (MACHINE, "llama.cpp", "ghcr.io/ggml-org/llama.cpp:server"),
        (replace(MACHINE, gpus=(ADA,)), "llama.cpp",
         "ghcr.io/ggml-org/llama.cpp:server-cuda13"),
        (replace(MACHINE, gpus=(replace(ADA, cuda="12.6"),)), "llama.cpp",
         "ghcr.io/ggml-org/llama.cpp:server-cuda"),
        (ORIN, "llama.cpp", "ghcr.io/nvidia-ai-iot/llama_cpp:latest-jetson-orin"),
        (ORIN, "tensorrt-llm", None),
        (ORIN, "tensorrt-edge-llm", None),
        (replace(ORIN, l4t="39.2.0"), "tensorrt-edge-llm",
         "ghcr.io/nvidia-ai-iot/tensorrt_edge_llm:0.10.0-orin"),
    ],
)  # fmt: skip
def test_the_image_follows_from_the_machine(
    machine: Machine, engine: str, expected: str | None
) -> None:
    """The first image that fits L4T, GPU and driver is taken: the founding case's 36.4.3 gets
    NVIDIA's own for Orin and not the upstream one, which its driver refuses."""
    found = images_for(load_images(), machine, engine)
    assert (found[0].name if found else None) == expected


def test_every_known_image_is_of_a_known_engine() -> None:
    """The table names engines that there are, and each image once."""
    names = [image.name for image in load_images()]
    assert len(names) == len(set(names))
    assert {image.engine for image in load_images()} <= set(load_engines())


def test_a_misspelt_field_is_refused() -> None:
    """An entry with a field that nothing reads is an error, not ignored."""
    with pytest.raises(ValueError, match="unknown fields: l4t_form"):
        image_of({"name": "a:b", "l4t_form": "36"})


def test_containers_are_found_and_ended_by_our_label() -> None:
    """Leftovers are listed by our label alone, and ended by name."""
    assert leftovers_argv("docker", "r1")[3:5] == ("--filter", "label=enginehouse.run=r1")
    assert leftovers_argv("docker")[4] == "label=enginehouse.run"
    assert stop_argv("docker", "e") == ("docker", "stop", "-t", "10", "e")
    assert remove_argv("podman", "e") == ("podman", "rm", "--force", "e")


def test_a_snapshot_of_the_hub_is_mounted_with_its_blobs() -> None:
    """A file of Hugging Face's cache is a link, so the folder that holds its target is mounted."""
    folder = "/home/u/.cache/huggingface/hub/models--a--b"
    assert mounted_paths(f"{folder}/snapshots/abc") == (folder,)
    assert mounted_paths("/models/tiny.gguf") == ("/models/tiny.gguf",)


def test_all_parts_of_a_model_are_mounted() -> None:
    """An engine that is given the first of a model's files reads the others beside it."""
    assert mounted_paths("/m/big-00001-of-00002.gguf") == (
        "/m/big-00001-of-00002.gguf",
        "/m/big-00002-of-00002.gguf",
    )


def test_podman_runs_it_as_its_own_root_who_is_the_caller_outside() -> None:
    """The same for everybody: `keep-id` is refused to root and to users without further ids."""
    argv = ("podman", IMAGE, "x")
    as_root = contain(argv, (), socket_in("/run/e"), replace(CONFINES, user="0:0"))
    assert as_root == contain(argv, (), socket_in("/run/e"), CONFINES)
    assert "keep-id" not in as_root


def test_a_container_that_is_asked_how_it_ended_is_kept_until_then() -> None:
    """A kept container, another stop signal and a variable passed on stand in the command."""
    confines = replace(CONFINES, is_kept=True, stop_signal="SIGINT", passed_on=("MARK",))
    argv = contain(("docker", IMAGE, "x"), (), socket_in("/run/e"), confines)
    assert "--rm" not in argv
    assert argv[argv.index("--stop-signal") + 1] == "SIGINT"
    assert argv[argv.index("MARK") - 1] == "--env"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("4711 0 false\n", ContainerState(4711, 0, False)),
        ("0 137 true\n", ContainerState(0, 137, True)),
        ("", None),
        ("no such container", None),
        ("<no value> 0 false", None),
    ],
)
def test_a_containers_state_is_read_or_unknown(text: str, state: ContainerState | None) -> None:
    """What `inspect` prints is read exactly; anything else is no state."""
    assert parse_state(text) == state
