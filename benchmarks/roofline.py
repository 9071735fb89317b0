"""Hold decode against the memory's roofline, both measured in turn in one run.

    ./dev bench roofline [--shape llama-3.2-3b] [--quantization Q4_K_M] [--llama-server FILE]
                         [--rounds 5] [--model FILE]

The model has the shape's sizes and random weights (`random_gguf.py`), which take the same bytes and
the same time as trained ones. Each build of llama.cpp serves it with its minimal candidate, and
with the lever that `find` has for large weights (pages of 2 MiB), through the same trial as in a
search, under one stream of short chats. Roofline: the read bandwidth that is measured right before
and right after the trial (the mean of the two), over the bytes of weights that a token reads.
Decode: 1 / TPOT, the median request's. The share is the median round's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from enginehouse.app import House
from enginehouse.core.candidate import Build, Setting
from enginehouse.core.model import Model
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.bandwidth import measure_memory_bandwidth
from enginehouse.edges.settings_file import load_settings
from enginehouse.trials.bench import TokenRatio
from enginehouse.trials.run import run_trial

WORKLOAD = dataclasses.replace(WORKLOADS["chat"], requests=3)
WANTED = 0.85
MINIMAL: Mapping[str, Setting] = {}
HUGE: Mapping[str, Setting] = {"huge_pages": "on"}


def main() -> None:
    """Measure every build in rounds and print Markdown; end with 1 where the best falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-3b")
    parser.add_argument("--quantization", default="Q4_K_M")
    parser.add_argument("--llama-server", default="", help="a native build beside the wheel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="", help="a file that random_gguf.py made")
    options = parser.parse_args()
    given = {"engine.llama_cpp.path": options.llama_server} if options.llama_server else {}
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-roofline-") as folder,
        House(load_settings(None, given), Path(folder)) as house,
    ):
        path = options.model or make_model(options.shape, options.quantization, folder)
        model = house.model(path)
        builds = tuple(build for build in house.builds() if build.engine == "llama.cpp")
        sides = [
            (f"{build.label}{', pages of 2 MiB' if settings else ''}", build, settings)
            for build in builds
            for settings in (MINIMAL, HUGE)
        ]
        shares: dict[str, list[float]] = {label: [] for label, _, _ in sides}
        rows = []
        for number in range(options.rounds):
            for label, build, settings in sides:
                rate, bandwidth = measure_once(house, model, build, settings)
                share = rate * model.bytes_per_token / bandwidth
                shares[label].append(share)
                row = (
                    f"| {number + 1} | {label} | {rate:.1f} | {bandwidth / 1e9:.1f} "
                    f"| {bandwidth / model.bytes_per_token:.1f} | {share:.0%} |"
                )
                sys.stderr.write(row + "\n")
                rows.append(row)
    print(
        f"### {options.shape} {options.quantization}, {model.bytes_per_token / 1e9:.2f} GB a token"
    )
    print("\n| round | build | decode tok/s | bandwidth GB/s | roofline tok/s | share |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows) + "\n")
    middle = {label: median(found) for label, found in shares.items()}
    for label, share in middle.items():
        print(f"{label}: {share:.0%} of the roofline, the median of {options.rounds} rounds")
    best = max(middle.values())
    print(f"\nbest {best:.0%}, wanted {WANTED:.0%}")
    sys.exit(best < WANTED)


def make_model(shape: str, quantization: str, folder: str) -> str:
    """Write the file of random weights and return its path."""
    path = str(Path(folder, f"{shape}.{quantization}.gguf"))
    script = Path(__file__).with_name("random_gguf.py")
    subprocess.run((sys.executable, script, shape, quantization, path), check=True, stdout=2)
    return path


def measure_once(
    house: House, model: Model, build: Build, settings: Mapping[str, Setting]
) -> tuple[float, float]:
    """Return a build's decode rate in tokens per second, and the bandwidth beside it in bytes/s."""
    threads = house.look().usable_cores
    before = measure_memory_bandwidth(threads)
    bench = house.bench(model, WORKLOAD)
    candidate = bench.minimal(build).with_settings(**settings)
    trial = asyncio.run(run_trial(bench, build, candidate, TokenRatio()))
    after = measure_memory_bandwidth(threads)
    if trial.measurement is None:
        sys.exit(f"{build.label} failed: {trial.detail} ({trial.log_path})")
    return 1 / trial.measurement.tpot_s.p50, (before + after) / 2


if __name__ == "__main__":
    main()
