"""Start llama.cpp's server on a model, fill its slots, and watch its memory in /proc.

What is measured (docs/fit.md, "How the peak is measured"):

- `resident_peak`: the kernel's own high-water mark of the process (VmHWM): anonymous memory and
  every mapped file page, those of weights that were copied elsewhere included. Where pages are
  unmapped before the requests (`file_used`), `anonymous_peak + file_peak` stands for it.
- `anonymous_peak`: the most that was anonymous or shared memory; nothing of it can be dropped.
- `file_used`: mapped file pages that answering the requests touched. Once the server is ready it
  unmaps the pages of its read-only files, so what is mapped after the requests was touched by
  them. The kernel maps neighbours of a touched page along when they are in the page cache; so the
  model's file is dropped from it too, and read page by page (MADV_RANDOM). Referenced bits
  (`clear_refs`, `smaps`) were given up: they are kept for a whole large folio.
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
OBSERVED = """
import ctypes, os, re, signal, sys
from enginehouse.edges import wheel_server as wheel
build = wheel.build_params
RANDOM, DONTNEED = 1, 4
def verbose(flags):
    params = build(flags)
    params.verbosity = 5
    return params
def forget(*_):
    c = ctypes.CDLL(None, use_errno=True)
    c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    text = open("/proc/self/smaps").read()
    for first, last, path, body in re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) r-\\S+ \\S+ \\S+ \\S+ +(/\\S+)(.*?)^VmFlags", text, re.M | re.S
    ):
        if "Anonymous:             0 kB" in body:
            start = int(first, 16)
            size = int(last, 16) - start
            c.madvise(start, size, DONTNEED)
            if path.endswith(".gguf"):
                c.madvise(start, size, RANDOM)
                file = os.open(path, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
    sys.stderr.write("pages unmapped\\n")
    sys.stderr.flush()
signal.signal(signal.SIGUSR1, forget)
wheel.build_params = verbose
wheel.main()
"""
"""The wheel's server with its log at its most talkative (it states the buffers' sizes), which on
SIGUSR1 unmaps the pages of files that it only reads, and drops the model from the page cache."""
FORGOTTEN = "pages unmapped"

BUFFER = re.compile(r"(CPU_\w+|CPU) +(model|output|KV|RS|compute) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Observed:
    """One run; bytes. `buffers` are the sizes that the engine's log states; speeds in tok/s.

    `processor_share` is processor time ÷ time by the clock while requests were answered.
    """

    resident_peak: int
    anonymous_peak: int
    file_peak: int
    file_used: int
    anonymous_ready: int
    buffers: dict[str, int]
    prefill_tok_per_s: float
    decode_tok_per_s: float
    load_s: float
    processor_share: float = 0.0


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


def present_file_bytes(pid: int) -> int:
    """Return the bytes of file pages that are mapped and present, copies on write left out."""
    total, is_file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split()
        if re.match(r"^[0-9a-f]+-[0-9a-f]+$", head[0]):
            is_file = len(head) > 5 and head[5].startswith("/")
        elif is_file and head[0] in ("Rss:", "Anonymous:"):
            total += int(head[1]) * (1024 if head[0] == "Rss:" else -1024)
    return total


def run_wheel(
    model: Path, flags: Sequence[str], prompts: Sequence[Sequence[int]], decode: int,
    counts_pages: bool = False,
) -> Observed:  # fmt: skip
    """Serve a model from the wheel, answer the prompts together, and return what was seen.

    `counts_pages` unmaps the file's pages first, which costs speed; without it `file_used` is
    every file page that is mapped.
    """
    command = [sys.executable, "-c", OBSERVED, "--model", str(model), *flags]
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        text=True, errors="replace",
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
        used_s, asked = processor_s(process.pid), time.monotonic()
        if counts_pages:
            process.send_signal(signal.SIGUSR1)
            await_line(FORGOTTEN, log)
        timings = ask_all(address, prompts, decode)
        share = (processor_s(process.pid) - used_s) / (time.monotonic() - asked)
        watch.done.set()
        used = present_file_bytes(process.pid)
        last = read_sizes(status)
    finally:
        watch.done.set()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=5)
        if process.stderr is not None:
            process.stderr.close()
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
        processor_share=share,
    )


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used, in s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def await_line(text: str, log: Sequence[str]) -> None:
    """Return when a line of the log has the text.

    Raises:
        RuntimeError: It took too long.
    """
    limit = time.monotonic() + 30
    while not any(text in line for line in list(log)):
        if time.monotonic() > limit:
            raise RuntimeError(f"the server's log never said {text!r}")
        time.sleep(0.01)


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
