"""An engine inside a container: the least-privilege `run` command around its argv.

A container build's `command` is the container program (docker or podman), the image by its digest,
and what to run in it; an engine's descriptor puts its flags behind that as behind any command, and
`contain` turns the whole into the real one. Nothing is pulled (`--pull never`), nothing is kept
(`--rm`, or whoever started it removes it), and no network is there where the engine listens on a
unix socket.

Flags: https://docs.docker.com/reference/cli/docker/container/run/ and podman-run(1). On Jetson
`--runtime nvidia` instead of `--gpus`, which does not work there
(NVIDIA-AI-IOT/jetson-device-skills:skills/jetson-llm-serve); podman takes the GPU as a CDI device
(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/cdi-support.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.engine import Endpoint
from enginehouse.core.gguf_split import split_name
from enginehouse.core.machine import Machine

LABEL = "enginehouse.run"
HOME = "/tmp"
MOST_PROCESSES = 4096
ROOT_OF_PODMAN = "0:0"
"""Root in podman's own user namespace is the user who called it, without any privilege outside.
`keep-id` would keep the number, but is refused to root, and to users without ranges of further ids
(podman 4.3.1), and copies the image's layers for it."""
STATE = "{{.State.Pid}} {{.State.ExitCode}} {{.State.OOMKilled}}"
ENVIRONMENT = (("HOME", HOME), ("USER", "enginehouse"), ("LOGNAME", "enginehouse"))
"""A user without an entry in the image's passwd needs a home that can be written, and a name."""
GPU_FLAGS = {
    "none": (),
    "docker": ("--gpus", "all"),
    "jetson": (
        "--runtime", "nvidia", "--env", "NVIDIA_VISIBLE_DEVICES=all",
        "--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    "cdi": ("--device", "nvidia.com/gpu=all"),
}  # fmt: skip


@dataclass(frozen=True)
class Confines:
    """What a container gets of the machine; sizes in bytes, 0 for no limit.

    `folder` is a folder of the launch's own, the only one it may write to besides its tmpfs; a unix
    socket lies in it. `models` are paths that it may read. `user` is `uid:gid`. With `is_kept` it
    stays after its end, so that one can ask how it ended; whoever started it removes it.
    `passed_on` are variables that it gets with the value that the container program has.
    """

    run_id: str
    folder: str
    models: tuple[str, ...]
    user: str
    gpu: str = "none"
    memory_bytes: int = 0
    shm_bytes: int = 1 << 30
    tmp_bytes: int = 4 << 30
    is_kept: bool = False
    stop_signal: str = "SIGTERM"
    passed_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The container's name, by which it can be stopped."""
        return f"enginehouse-{self.run_id[:12]}"


@dataclass(frozen=True)
class Container:
    """A container of one launch: its program, its name, and its memory's limit (bytes, 0: none)."""

    program: str
    name: str
    memory_bytes: int = 0


@dataclass(frozen=True)
class ContainerState:
    """What `inspect` says; `pid` is the first process's as the machine sees it, 0 once it ended."""

    pid: int
    exit_code: int
    is_oom_killed: bool


def socket_in(folder: str) -> Endpoint:
    """Return the endpoint of an engine in a container: a socket in the launch's own folder."""
    return Endpoint(socket_path=f"{folder}/engine.sock")


def contain(
    argv: Sequence[str],
    env: Sequence[tuple[str, str]],
    endpoint: Endpoint,
    confines: Confines,
) -> tuple[str, ...]:
    """Wrap `program image command…` into the whole `run` command of docker or podman.

    Raises:
        ValueError: when the socket does not lie in the launch's own folder, which alone is mounted.
    """
    program, image, *inner = argv
    socket = endpoint.socket_path
    if socket and not socket.startswith(f"{confines.folder}/"):
        raise ValueError(f"the socket {socket} is not in {confines.folder}")
    words = [program, "run", *(() if confines.is_kept else ("--rm",))]
    words += ["--init", "--pull", "never", "--name", confines.name]
    words += ["--label", f"{LABEL}={confines.run_id}"]
    words += _network(endpoint)
    words += ["--read-only", "--tmpfs", f"/tmp:rw,nosuid,nodev,size={confines.tmp_bytes}"]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--pids-limit", str(MOST_PROCESSES)]
    if confines.stop_signal != "SIGTERM":
        words += ["--stop-signal", confines.stop_signal]
    if is_podman(program):
        words += ["--user", ROOT_OF_PODMAN, "--userns", "host", "--security-opt", "label=disable"]
    else:
        words += ["--user", confines.user]
    if confines.memory_bytes:
        limit = str(confines.memory_bytes)
        words += ["--memory", limit, "--memory-swap", limit]
    words += ["--shm-size", str(confines.shm_bytes)]
    words += _mount(confines.folder)
    for path in dict.fromkeys(path for model in confines.models for path in mounted_paths(model)):
        words += _mount(path, is_readonly=True)
    words += GPU_FLAGS[confines.gpu]
    if not socket:
        inner, env = _listen_everywhere(inner), [(n, _everywhere(v)) for n, v in env]
    for name, value in {**dict(ENVIRONMENT), **dict(env)}.items():
        words += ["--env", f"{name}={value}"]
    for name in confines.passed_on:
        words += ["--env", name]
    entry, *rest = inner
    return (*words, "--entrypoint", entry, image, *rest)


def gpu_access(program: str, machine: Machine) -> str:
    """Say how a container program gives an engine the machine's NVIDIA GPU (see `GPU_FLAGS`)."""
    if not any(gpu.vendor.lower() == "nvidia" for gpu in machine.gpus):
        return "none"
    if is_podman(program):
        return "cdi"
    return "jetson" if machine.l4t or "jetson" in machine.kinds else "docker"


def stop_argv(program: str, name: str, grace_s: int = 10) -> tuple[str, ...]:
    """Return the command that ends a container: SIGTERM, then after the grace SIGKILL."""
    return (program, "stop", "-t", str(grace_s), name)


def state_argv(program: str, name: str) -> tuple[str, ...]:
    """Return the command whose answer `parse_state` reads."""
    return (program, "inspect", "--type", "container", "--format", STATE, name)


def parse_state(text: str) -> ContainerState | None:
    """Return a container's state out of what `state_argv` prints, None when it is no answer."""
    cells = text.split()
    if len(cells) != 3 or not (cells[0].isdigit() and cells[1].lstrip("-").isdigit()):
        return None
    return ContainerState(int(cells[0]), int(cells[1]), cells[2].lower() == "true")


def leftovers_argv(program: str, run_id: str = "") -> tuple[str, ...]:
    """Return the command that lists our containers' names, of one run or of all of them."""
    label = f"{LABEL}={run_id}" if run_id else LABEL
    return (program, "ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}")


def remove_argv(program: str, name: str) -> tuple[str, ...]:
    """Return the command that ends and removes one of our containers at once."""
    return (program, "rm", "--force", name)


def is_podman(program: str) -> bool:
    """Whether a container program is podman, by its name."""
    return program.rsplit("/", 1)[-1].startswith("podman")


def mounted_paths(path: str) -> tuple[str, ...]:
    """Return what to mount so that a model's path can be read: all parts of a GGUF file in parts.

    In Hugging Face's cache a snapshot's files are links into the folder two above it.
    """
    if "/snapshots/" in path:
        return (path.partition("/snapshots/")[0],)
    folder, slash, file = path.rpartition("/")
    name = split_name(file)
    if name is None:
        return (path,)
    return tuple(f"{folder}{slash}{part}" for part in name.names)


def _network(endpoint: Endpoint) -> list[str]:
    """No network with a socket; else only the one port, published on the loopback alone."""
    if endpoint.socket_path:
        return ["--network", "none"]
    return ["--publish", f"127.0.0.1:{endpoint.port}:{endpoint.port}"]


def _mount(path: str, is_readonly: bool = False) -> list[str]:
    suffix = ",readonly" if is_readonly else ""
    return ["--mount", f"type=bind,source={path},target={path}{suffix}"]


def _listen_everywhere(inner: Sequence[str]) -> list[str]:
    """Inside a container the loopback is the container's own: a published port is not on it."""
    return [
        "0.0.0.0" if word == "127.0.0.1" and before == "--host" else word
        for before, word in zip(("", *inner), inner, strict=False)
    ]


def _everywhere(value: str) -> str:
    return f"0.0.0.0:{value.partition(':')[2]}" if value.startswith("127.0.0.1:") else value
