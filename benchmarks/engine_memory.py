"""Start llama.cpp's server on a model, fill its slots, and watch its memory in /proc.

What is measured (docs/fit.md, "How the peak is measured"):

- `resident_peak`: the kernel's own high-water mark of the process (VmHWM): anonymous memory and
  every mapped file page, those of weights that were copied elsewhere included.
- `anonymous_peak`: the most that was anonymous or shared memory; nothing of it can be dropped.
- `file_used`: mapped file pages that answering the requests touched (the kernel's referenced bits,
  cleared once the server is ready). The other file pages may be dropped without a loss.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

READY_S, ANSWER_S = 180.0, 900.0
SAMPLE_S = 0.01
VERBOSE = """
import sys
from enginehouse.edges import wheel_server as wheel
build = wheel.build_params
def verbose(flags):
    params = build(flags)
    params.verbosity = 5
    return params
wheel.build_params = verbose
wheel.main()
"""
"""The wheel's server with its log at its most talkative, for the sizes of the buffers."""

BUFFER = re.compile(r"(CPU_\w+|CPU) +(model|output|KV|RS|compute) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Observed:
    """One run; bytes. `buffers` are the sizes that the engine's log states; speeds in tok/s."""

    resident_peak: int
    anonymous_peak: int
    file_peak: int
    file_used: int
    anonymous_ready: int
    buffers: dict[str, int]
    prefill_tok_per_s: float
    decode_tok_per_s: float
    load_s: float


class Watch(threading.Thread):
    """Samples a process's memory counters until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.done = threading.Event()
        self.peaks: dict[str, int] = {}
        self.anonymous_peak = 0

    def run(self) -> None:
        """Keep the highest value of each counter."""
        while not self.done.wait(SAMPLE_S):
            counters = read_sizes(self._status)
            for name, value in counters.items():
                self.peaks[name] = max(self.peaks.get(name, 0), value)
            anonymous = counters.get("RssAnon", 0) + counters.get("RssShmem", 0)
            self.anonymous_peak = max(self.anonymous_peak, anonymous)


def read_sizes(path: Path) -> dict[str, int]:
    """Return the lines `Name: N kB` of a /proc file, in bytes; {} when the process is gone."""
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def referenced_file_bytes(pid: int) -> int:
    """Return the file-backed bytes whose referenced bit is set, over all mappings."""
    total, is_file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split()
        if re.match(r"^[0-9a-f]+-[0-9a-f]+$", head[0]):
            is_file = len(head) > 5 and head[5].startswith("/")
            anonymous = referenced = 0
        elif head[0] == "Referenced:":
            referenced = int(head[1])
        elif head[0] == "Anonymous:" and is_file:
            anonymous = int(head[1])
            total += max(referenced - anonymous, 0) * 1024
    return total


def run_wheel(
    model: Path, flags: Sequence[str], prompts: Sequence[Sequence[int]], decode: int
) -> Observed:
    """Serve a model from the wheel, answer the prompts together, and return what was seen."""
    command = [sys.executable, "-c", VERBOSE, "--model", str(model), *flags]
    return run_server(command, prompts, decode)


def run_server(command: Sequence[str], prompts: Sequence[Sequence[int]], decode: int) -> Observed:
    """Run one server command, to which host and port are added."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    log: list[str] = []
    reader = threading.Thread(target=keep_lines, args=(process, log), daemon=True)
    reader.start()
    watch = Watch(process.pid)
    watch.start()
    try:
        await_ready(process, address, log)
        load_s = time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status")
        anonymous_ready = read_sizes(status)["RssAnon"]
        Path(f"/proc/{process.pid}/clear_refs").write_text("1")
        timings = ask_all(address, prompts, decode)
        watch.done.set()
        used = referenced_file_bytes(process.pid)
        last = read_sizes(status)
    finally:
        watch.done.set()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=5)
    return Observed(
        resident_peak=last["VmHWM"],
        anonymous_peak=watch.anonymous_peak,
        file_peak=watch.peaks["RssFile"],
        file_used=used,
        anonymous_ready=anonymous_ready,
        buffers=stated_buffers(log),
        prefill_tok_per_s=timings[0],
        decode_tok_per_s=timings[1],
        load_s=load_s,
    )


def keep_lines(process: subprocess.Popen[str], log: list[str]) -> None:
    """Keep the engine's log lines until it ends."""
    assert process.stderr is not None
    log.extend(line for line in process.stderr)


def stated_buffers(log: Sequence[str]) -> dict[str, int]:
    """Return the buffers that the log states: `CPU_REPACK model` → bytes, summed by name."""
    buffers: dict[str, int] = {}
    for place, what, size in BUFFER.findall("".join(log)):
        name = f"{place} {what}"
        buffers[name] = buffers.get(name, 0) + int(float(size) * 2**20)
    return buffers


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_ready(process: subprocess.Popen[str], address: str, log: Sequence[str]) -> None:
    """Return when the server says it is ready.

    Raises:
        RuntimeError: It ended first, or took too long.
    """
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit:
        if process.poll() is not None:
            tail = "".join(line for line in log[-400:] if " E " in line)
            raise RuntimeError(f"the server ended with {process.returncode}: {tail[-500:]}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server was not ready in time")


def ask_all(address: str, prompts: Sequence[Sequence[int]], decode: int) -> tuple[float, float]:
    """Answer the prompts at the same time; return the first one's prefill and decode in tok/s."""
    answers: list[dict[str, float]] = [{}] * len(prompts)

    def ask(number: int) -> None:
        body = {"prompt": list(prompts[number]), "n_predict": decode, "ignore_eos": True}
        request = urllib.request.Request(
            f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            answers[number] = json.load(answer)["timings"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(answers):
        raise RuntimeError("a request was not answered")
    return answers[0]["prompt_per_second"], answers[0]["predicted_per_second"]
