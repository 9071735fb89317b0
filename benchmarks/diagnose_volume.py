"""Wall time and peak memory of `enginehouse explain FILE` on logs of 100 MB, hostile ones included.

    ./dev bench diagnose_volume [--megabytes 100] [--only NAME] [--folder DIR]

Each log is written once, explained by a fresh process, and deleted. The law is under 10 s and under
300 MB of peak resident memory for each; the exit code is 1 where it is broken, or where a log whose
failure is known is explained as something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginehouse.knowledge.causes import LINES_FILE
from enginehouse.knowledge.toml import ROOT

MOST_S = 10.0
MOST_BYTES = 300 * 1_000_000
MEGABYTE = 1_000_000
ORDINARY = (
    b"INFO 11-10 10:11:12 [loggers.py:123] Engine 000: Avg prompt throughput: 0.0 tokens/s\n"
    b"(EngineCore_0 pid=77) DEBUG 11-10 10:11:13 [core.py:401] step 12345 took 0.0123 s\n"
    b"2025-11-10T10:11:12.123Z time=2025-11-10T10:11:12Z level=INFO source=sched.go:1 msg=fine\n"
    b"load_tensors: layer  12 assigned to device CPU_REPACK, is_swa = 0, n_head_kv = 8\n"
)
FAILURE = (
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    b"capacity of 23.68 GiB of which 1.06 GiB is free.\n"
)
CAUSE = "memory.device.oom"
NESTED = (
    b"[pod/a/b] 2025-11-10T10:11:12.1Z stdout F [rank0]: (W pid=1) ERROR 11-10 10:11:12 [x.py:1] "
)
Pieces = Callable[[int], Iterator[bytes]]


def filled(piece: bytes) -> bytes:
    """Return a megabyte of one piece repeated."""
    return piece * max(1, MEGABYTE // len(piece))


def repeated(piece: bytes) -> Pieces:
    """Return a log that is one piece over and over."""
    return lambda megabytes: (filled(piece) for _ in range(megabytes))


def with_failure(at_start: bool) -> Pieces:
    """Return an ordinary log with one failure at its start or at its end."""

    def pieces(megabytes: int) -> Iterator[bytes]:
        if at_start:
            yield FAILURE
        yield from repeated(ORDINARY)(megabytes)
        if not at_start:
            yield FAILURE

    return pieces


def decisive_lines() -> bytes:
    """Return the decisive line of every signature, one after the other."""
    lines = json.loads((ROOT / LINES_FILE).read_text(encoding="utf-8"))
    return "".join(f"{line}\n" for group in lines.values() for line in group).encode()


def logs() -> dict[str, tuple[Pieces, str | None]]:
    """Return each log by name, with the cause that must be found (None: anything)."""
    newlines = lambda megabytes: (b"\n" * (MEGABYTE // 10) for _ in range(megabytes))  # noqa: E731
    return {
        "ordinary, failure at the end": (with_failure(False), CAUSE),
        "ordinary, failure at the start": (with_failure(True), CAUSE),
        "one line": (repeated(b"x" * MEGABYTE), None),
        "every line matches one pattern": (repeated(FAILURE), CAUSE),
        "every line matches another pattern": (repeated(decisive_lines()), None),
        "only escape sequences": (repeated(b"\x1b[31m\x1b[0m"), None),
        "only carriage returns": (repeated(b"Loading:  50%|#####\r"), None),
        "invalid UTF-8 and NULs": (repeated(bytes(range(128, 256)) + b"\x00" * 40 + b"\n"), None),
        "nested prefixes": (repeated(NESTED * 4 + b"it failed\n"), None),
        "10 million empty lines": (newlines, None),
    }


def explain(path: Path) -> tuple[float, int, dict[str, Any]]:
    """Run the command on a file; return its seconds, its peak bytes and its answer."""
    program = Path(sys.executable).with_name("enginehouse")
    began = time.perf_counter()
    process = subprocess.Popen([program, "explain", path, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"explain ended with {process.returncode}: {answer.decode()}")
    return seconds, usage.ru_maxrss * 1024, json.loads(answer)


def main() -> None:
    """Explain each log in turn and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--only", default="", help="logs whose name holds this")
    parser.add_argument("--folder", help="where the logs are written (default: the temporary one)")
    options = parser.parse_args()
    broken = []
    print("| log | wall time | peak memory | cause |\n|---|---|---|---|")
    for name, (pieces, wanted) in logs().items():
        if options.only not in name:
            continue
        with tempfile.NamedTemporaryFile(suffix=".log", dir=options.folder) as file:
            for piece in pieces(options.megabytes):
                file.write(piece)
            file.flush()
            seconds, peak, answer = explain(Path(file.name))
        found = answer["cause"]
        print(f"| {name} | {seconds:.1f} s | {peak / 1e6:.0f} MB | {found or '–'} |", flush=True)
        if seconds > MOST_S or peak > MOST_BYTES or (wanted and found != wanted):
            broken.append(name)
    if broken:
        sys.exit(f"not within the law: {', '.join(broken)}")


if __name__ == "__main__":
    main()
