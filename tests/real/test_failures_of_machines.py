"""Real trials on a machine that refuses: memory, disk, limits, permissions, libraries, signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginehouse.core.trial import Deadlines, Outcome
from tests.real.broken import write_llama
from tests.real.failures import Arrange, Failure, check, plain
from tests.real.provoke import MIB, Plan, cgroup, limited, need, without_right

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]
HUGE_CONTEXT = 64 << 20
"""Tokens: at 256 bytes each 16 GiB, which are written when the KV cache is cleared."""
UNHURRIED_S = 0.6
"""Longer than it takes until memory was sampled once."""


def in_little_address_space(folder: Path, stack: ExitStack) -> Plan:
    """Let a model whose file ends in a hole be mapped: it is large, and takes no room."""
    model = write_llama(folder / "large.gguf")
    os.truncate(model, 8 << 30)
    return Plan(model=model, prefix=limited(**{"as": 4 << 30}))


def huge_cache_in_little_address_space(folder: Path, stack: ExitStack) -> Plan:
    return Plan(settings={"context": HUGE_CONTEXT}, prefix=limited(**{"as": 4 << 30}))


def in_small_cgroup(folder: Path, stack: ExitStack) -> Plan:
    limits = {
        "v1": ("memory.limit_in_bytes", 400 * MIB),
        "v2": ("memory.max", 400 * MIB),
    }
    prefix = stack.enter_context(cgroup("memory", limits))
    return Plan(settings={"context": HUGE_CONTEXT}, prefix=prefix)


def with_few_threads(folder: Path, stack: ExitStack) -> Plan:
    limits = {"v1": ("pids.max", 4), "v2": ("pids.max", 4)}
    return Plan(prefix=stack.enter_context(cgroup("pids", limits)))


def with_few_files(folder: Path, stack: ExitStack) -> Plan:
    return Plan(prefix=limited(nofile=5))


def on_full_disk(folder: Path, stack: ExitStack) -> Plan:
    """Let the log lie on a file system that has no room for another file."""
    full = folder / "full"
    full.mkdir()
    need("mount", "umount")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "tmpfs", str(full)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", str(full)], check=True)
    return Plan(log_folder=full / "trials")


def on_low_port(folder: Path, stack: ExitStack) -> Plan:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("anybody may listen on port 81 here")
    return Plan(port=81, prefix=without_right("net_bind_service"))


def on_taken_port(folder: Path, stack: ExitStack) -> Plan:
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return Plan(port=taken.getsockname()[1])


def in_forbidden_folder(folder: Path, stack: ExitStack) -> Plan:
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    prefix = without_right("dac_override", "dac_read_search")
    return Plan(socket=str(closed / "engine.sock"), prefix=prefix)


def with_broken_wheel(change: Callable[[Path], None]) -> Arrange:
    """Let the engine import a copy of the wheel whose library was changed."""

    def arrange(folder: Path, stack: ExitStack) -> Plan:
        import xllamacpp

        package = Path(xllamacpp.__file__).parent
        copy = folder / "lib" / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        change(next(copy.glob("*.so")))
        return Plan(env={"PYTHONPATH": str(copy.parent)})

    return arrange


def cut_short(library: Path) -> None:
    os.truncate(library, 32)


def of_other_architecture(library: Path) -> None:
    """Change the machine that the ELF header names: AArch64 (183), or x86-64 (62) on that."""
    with library.open("r+b") as file:
        file.seek(18)
        other = 62 if file.read(2) == (183).to_bytes(2, "little") else 183
        file.seek(18)
        file.write(other.to_bytes(2, "little"))


def wanting_a_library(library: Path) -> None:
    """Let it want another library than the OpenMP run time: its name stands among the strings."""
    content = library.read_bytes()
    library.write_bytes(content.replace(b"\0libgomp.so.1\0", b"\0libgone.so.1\0", 1))


def program_of_other_architecture(folder: Path, stack: ExitStack) -> Plan:
    need("setpriv")
    program = folder / "llama-server"
    program.write_bytes(b"\x7fELF\x02\x01\x01\n" + bytes(200))
    program.chmod(0o755)
    return Plan(command=(str(program),))


def after_sampling(number: signal.Signals) -> Callable[[psutil.Process], None]:
    def end(process: psutil.Process) -> None:
        process.suspend()
        time.sleep(UNHURRIED_S)
        process.send_signal(number)

    return end


def ended_by(number: signal.Signals) -> dict[str, Any]:
    return {"meanwhile": lambda process: process.send_signal(number), "when": "initializing"}


def cut_while_mapped(folder: Path, stack: ExitStack) -> Plan:
    model = write_llama(folder / "model.gguf")
    return Plan(model=model, when="listening on", meanwhile=lambda process: os.truncate(model, 100))


FAILURES = (
    # memory
    Failure("the guard", "memory.host.insufficient", "ended by the memory guard",
            plain(settings={"context": HUGE_CONTEXT}, reserve_below=1 << 30), explains=False,
            outcome=Outcome.GUARDED),
    Failure("a mapping refused", "memory.host.insufficient", "Cannot allocate memory",
            in_little_address_space),
    Failure("a KV cache refused", "memory.kv_cache_oversized", "failed to allocate buffer for kv",
            huge_cache_in_little_address_space),
    Failure("killed in a memory cgroup", "memory.host.oom_killed", "oom_kill 0 before, 1 after",
            in_small_cgroup, explains=False),
    # limits
    Failure("too few files", "resource.open_files", "Too many open files", with_few_files),
    Failure("too few threads", "resource.process_limit", "Resource temporarily unavailable",
            with_few_threads),
    Failure("a full disk", "resource.disk_full", "No space left on device", on_full_disk,
            explains=False),
    # addresses
    Failure("a taken port", "config.port_in_use", "couldn't bind", on_taken_port),
    Failure("a port for root", "permission.port", "port: 81", on_low_port),
    Failure("a socket's path too long", "config.invalid_value", "xxxx.sock",
            plain(socket=f"/run/{'x' * 120}.sock")),
    Failure("a socket in a forbidden folder", "permission.filesystem", "couldn't bind",
            in_forbidden_folder, is_among=True),
    # the engine's own files
    Failure("no program", "system.exec_failed", "is not a program",
            plain(command=("/opt/none/llama-server",)), explains=False),
    Failure("a program of another CPU", "container.wrong_cpu_arch", "xec",
            program_of_other_architecture),
    Failure("a Python without the package", "dependency.missing_package", "No module named",
            plain(command=(sys.executable, "-S", "-c", "import xllamacpp"))),
    Failure("a library cut short", "dependency.broken_install", "file too short",
            with_broken_wheel(cut_short)),
    Failure("a library of another CPU", "container.wrong_cpu_arch", "cannot open shared object",
            with_broken_wheel(of_other_architecture)),
    Failure("a library's library missing", "dependency.missing_library", "libgone.so.1",
            with_broken_wheel(wanting_a_library)),
    # ended from outside
    Failure("SIGKILL with memory free", "system.stopped_from_outside", "memory was not short",
            plain(meanwhile=after_sampling(signal.SIGKILL), when="initializing"), is_among=True,
            explains=False),
    Failure("SIGTERM", "system.stopped_from_outside", "SIGTERM", plain(**ended_by(signal.SIGTERM))),
    Failure("SIGFPE", "engine.bug", "SIGFPE", plain(**ended_by(signal.SIGFPE)), is_among=True),
    Failure("the model cut while it is mapped", "model.corrupt", "was cut or replaced",
            cut_while_mapped),
    Failure("a hang while loading", "runtime.load_timeout", "load was not done within 1 s",
            plain(meanwhile=lambda process: process.suspend(), when="initializing",
                  deadlines=Deadlines(20.0, 1.0, 1.0, 1.0, 0.2)), explains=False,
            outcome=Outcome.TIMED_OUT),
)  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_a_trial_says_why_the_machine_refused(
    tmp_path: Path, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's record, and `explain`, name the cause that was provoked and quote its line."""
    with ExitStack() as stack:
        check(failure, tmp_path, stack, monkeypatch)
