"""Recording this machine, and what must not be in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.core.errors import UserError
from enginehouse.core.redact import Names
from enginehouse.edges.answers import VARIABLES
from enginehouse.edges.examination import examine_here, record_here
from enginehouse.edges.probes import examine
from enginehouse.edges.recording import Recorder, open_recording
from enginehouse.edges.seam import LiveSource

NAMES = Names("alice-laptop.example.org", "alice", "/home/alice")
SECRETS = (
    "alice", "d860ec5f943fe335", "00:1a:2b:3c:4d:5e", "GPU-2dee1e25", "hf_abcdefghijk",
    "sk-verysecret123", "hunter2", "4d41cc473907b1e834291174e7e596d5",
)  # fmt: skip


def seed(root: Path) -> LiveSource:
    """A machine below a root, full of things that must not leave it."""
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : CPU of alice\nFeatures : fp asimd\n"
        "Serial : d860ec5f943fe335\nModel : Raspberry Pi 5\n",
        "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 6000 kB\n",
        "proc/self/status": "Name: alice-tool\nUid: 1000\nCpus_allowed_list:\t0\n",
        "proc/self/cgroup": "0::/docker/4d41cc473907b1e834291174e7e596d5\n",
        "sys/fs/cgroup/docker/4d41cc473907b1e834291174e7e596d5/memory.max": "4096000\n",
        "proc/device-tree/model": "Raspberry Pi 5 00:1a:2b:3c:4d:5e\0",
        "etc/os-release": 'PRETTY_NAME="Linux of alice-laptop"\nAPI_KEY=hunter2\n',
        "home/alice/env/lib/python3.12/site-packages/vllm-0.20.dist-info/METADATA": "x",
        "home/alice/env/lib/python3.12/site-packages/torch/version.py":
            "__version__ = '2.9'\ntoken: hf_abcdefghijk\n",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    answers = {
        "ports": lambda: {"8000": "alice-server"},
        "nvml": lambda: {
            "driver": "1.2", "cuda": "12.0",
            "devices": [{
                "name": "GPU-2dee1e25-b3b5-007e-2b55-79f2d0f2ebe5", "arch": "8.9",
                "memory_total_bytes": 1, "memory_free_bytes": 1,
                "users": [[1, "alice sk-verysecret123", 1]],
            }],
        },
    }  # fmt: skip
    return LiveSource(answers, root, root / "home/alice", 1_700_000_000.0)


def test_a_recording_holds_no_secrets(tmp_path: Path) -> None:
    """Names of host and user, serial numbers, addresses, container ids and keys stay here."""
    recorder = Recorder(seed(tmp_path / "root"))
    examine(recorder)
    recorder.write(tmp_path / "out", NAMES)
    everything = "".join(
        f"{path.relative_to(tmp_path)}\n{path.read_text() if path.is_file() else ''}\n"
        for path in sorted((tmp_path / "out").rglob("*"))
    )
    assert "Cpus_allowed_list" in everything, "what is used is kept"
    assert [secret for secret in SECRETS if secret in everything] == []


def test_a_recording_replays_the_machine(tmp_path: Path) -> None:
    """Examined again, a recording gives the facts that the machine gave, but for its secrets."""
    source = seed(tmp_path / "root")
    recorder = Recorder(source)
    live = examine(recorder)
    recorder.write(tmp_path / "out", NAMES)
    replayed = examine(open_recording(tmp_path / "out"))
    assert [fact.id for fact in replayed] == [fact.id for fact in live]
    for id in ("memory.limit_bytes", "cpu.isa", "engine.python0.torch", "engine.python0.path"):
        assert replayed.get(id) == live.get(id) is not None, id


def test_this_machine_is_recorded_without_its_names(tmp_path: Path) -> None:
    """The real machine's recording replays, and lacks its home folder."""
    record_here(tmp_path / "out")
    found = open_recording(tmp_path / "out")
    assert found.meta.kind == "captured"
    assert examine(found).whole("memory.total_bytes")
    home = str(Path.home())
    if len(home) > len("/root"):
        assert all(home not in p.read_text() for p in (tmp_path / "out").rglob("*.json"))


def test_no_variable_that_is_looked_at_can_hold_a_key() -> None:
    """The environment is never recorded but for a few harmless names."""
    assert not [name for name in VARIABLES if any(w in name for w in ("KEY", "TOKEN", "SECRET"))]


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    """A folder without meta.json, or with a wrong one, is the user's turn."""
    with pytest.raises(UserError) as missing:
        open_recording(tmp_path)
    assert missing.value.report.id == "snapshot.not_readable"
    (tmp_path / "meta.json").write_text('{"name": "x", "kind": "guessed", "taken": "now"}')
    with pytest.raises(UserError):
        open_recording(tmp_path)
    with pytest.raises(UserError) as occupied:
        Recorder(seed(tmp_path / "root")).write(tmp_path, NAMES)
    assert occupied.value.report.id == "snapshot.exists"


def test_doctor_is_quick(tmp_path: Path) -> None:
    """Examining this machine takes less than 2 s, as the issue promises."""
    found = examine_here(lambda mark: ())
    seconds = min(_seconds_of_a_look() for _ in range(3))
    assert found.kind == "live"
    assert seconds < 2.0


def _seconds_of_a_look() -> float:
    import time

    began = time.perf_counter()
    examine_here(lambda mark: ())
    return time.perf_counter() - began


FAKE_NVML = """
class NVMLError(Exception): pass
class Memory: total, free = 1000, 400
class User: pid, usedGpuMemory = 1, None
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetCudaDriverVersion(): return 12060
def nvmlSystemGetDriverVersion(): return b"560.1"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetName(h): return "NVIDIA GB10" if h else "NVIDIA GeForce RTX 4090"
def nvmlDeviceGetMemoryInfo(h):
    if h: raise NVMLError("Not Supported")
    return Memory
def nvmlDeviceGetCudaComputeCapability(h): return (12, 1) if h else (8, 9)
def nvmlDeviceGetComputeRunningProcesses(h): return [User]
"""


def test_nvml_is_read_where_it_is_installed(tmp_path: Path) -> None:
    """NVML's answers become data; what it does not support is None, not an error."""
    (tmp_path / "pynvml.py").write_text(FAKE_NVML)
    code = "import json; from enginehouse.edges.answers import live_answers as a; "
    code += "print(json.dumps(a()['nvml']()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert (said["driver"], said["cuda"]) == ("560.1", "12.6")
    assert [d["memory_free_bytes"] for d in said["devices"]] == [400, None]
    assert [d["arch"] for d in said["devices"]] == ["8.9", "12.1"]
