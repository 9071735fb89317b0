"""Measure what `doctor`, `models show` and `fit` cost with a sparse GGUF of more than 50 GB here.

    ./dev bench fit_limits [--rounds 5]

The file has the header of a 70B model in Q6_K (80 layers, a tokenizer of 128,256 tokens) and a hole
in place of its weights. Printed are the median and the worst time by the clock, processor time and
the peak of resident memory, over rounds of a fresh process each; the target is 2 s and 200 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.random_gguf import write_random_gguf  # noqa: E402
from benchmarks.shapes import Shape  # noqa: E402

LARGE = Shape(
    "llama-3.3-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, is_tied=False, merges=280147
)
LEAST_BYTES = 50 * 10**9
MEASURE = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
wall_s = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""


def main() -> None:
    """Make the file, run each command some times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_random_gguf(folder / "large.gguf", LARGE, "Q6_K", is_hollow=True)
        size, on_disk = path.stat().st_size, path.stat().st_blocks * 512
        if size < LEAST_BYTES:
            sys.exit(f"the file has {size:,} bytes only")
        print(f"a file of {size:,} bytes, {on_disk:,} of them on disk\n")
        print("| command | median s | worst s | processor s | peak MB |")
        print("|---|---|---|---|---|")
        own = {f"ENGINEHOUSE_{kind}_DIR": name for kind in ("STATE", "CACHE", "CONFIG")}
        env = {**os.environ, **own}
        for words in (
            ("doctor",), ("doctor", "--json"), ("models", "show", str(path)),
            ("models", "show", str(path), "--json"), ("fit", str(path), "--json"),
        ):  # fmt: skip
            seen = [measure(words, env) for _ in range(rounds)]
            walls = [one[0] for one in seen]
            shown = " ".join(word if word != str(path) else "FILE" for word in words)
            print(
                f"| `{shown}` | {median(walls):.2f} | {max(walls):.2f} "
                f"| {median(one[1] for one in seen):.2f} "
                f"| {max(one[2] for one in seen) / 1e6:.0f} |"
            )


def measure(words: Sequence[str], env: dict[str, str]) -> tuple[float, float, float]:
    """Run the program once; return time by the clock, processor time and peak resident bytes."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "enginehouse", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    code, wall_s, cpu_s, peak = json.loads(done.stdout)
    if code not in (0, 1):
        sys.exit(f"{' '.join(words)} ended with {code}: {done.stderr[-500:]}")
    return wall_s, cpu_s, peak


if __name__ == "__main__":
    main()
