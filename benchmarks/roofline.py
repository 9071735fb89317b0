"""Hold decode against the roofline, whose two roofs are measured in turn with it in one run.

    ./dev bench roofline [--shape llama-3.2-3b] [--quantization Q4_K_M] [--llama-server FILE]
                         [--rounds 5] [--model FILE] [--chat]

The model has the shape's sizes and random weights (`random_gguf.py`), which take the same bytes and
the same time as trained ones. Each build of llama.cpp serves it with its minimal candidate, and
with the levers that `find` has for it (pages of 2 MiB, plain attention on bf16), through the same
trial as in a search, one stream at a time. Decode is 1 / TPOT, the median request's, of 64 tokens
after a prompt of a few, as `llama-bench -n 64` has it; with `--chat` of the `chat` workload, whose
attention over 128 to 250 tokens costs 3 to 8 % more.

The roofs, both in tok/s: memory's is the read bandwidth, measured right before and right after the
trial (the mean), over the bytes that a token reads, weights and the KV cache of a half-written
answer. The products' is what the wheel's multiplications of these weights make where they lie in
the processor's caches, so that no memory is waited for: the highest of all rounds, since whatever
disturbs a measurement lowers it. The roofline is the lower one.

A round whose two bandwidths differ by more than 10 % says nothing, since the machine has changed
while it ran: it is shown, and not counted. The share of a side is the median of its other rounds.
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
from enginehouse.core.estimate_speed import Rates, cached_names, product_bound
from enginehouse.core.estimate_vllm import kv_bytes_per_token
from enginehouse.core.model import Model
from enginehouse.core.workload import WORKLOADS, Workload
from enginehouse.edges.bandwidth import measure_memory_bandwidth
from enginehouse.edges.rates import measure_rates
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines.llama_cpp import BF16_ISA
from enginehouse.trials.bench import TokenRatio
from enginehouse.trials.run import run_trial

DECODE = dataclasses.replace(WORKLOADS["chat"], prompt_tokens=16, output_tokens=64, requests=4)
CHAT = dataclasses.replace(WORKLOADS["chat"], requests=3)
WANTED, UNSTEADY = 0.85, 0.1
MINIMAL: Mapping[str, Setting] = {}
HUGE: Mapping[str, Setting] = {"huge_pages": "on", "mmap": "off"}
PLAIN: Mapping[str, Setting] = {**HUGE, "flash_attention": "off", "kv_type": "bf16"}


def main() -> None:
    """Measure every build in rounds and print Markdown; end with 1 where the best falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-3b")
    parser.add_argument("--quantization", default="Q4_K_M")
    parser.add_argument("--llama-server", default="", help="a native build beside the wheel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="", help="a file that random_gguf.py made")
    parser.add_argument("--chat", action="store_true", help="with prompts of the chat workload")
    options = parser.parse_args()
    workload = CHAT if options.chat else DECODE
    given = {"engine.llama_cpp.path": options.llama_server} if options.llama_server else {}
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-roofline-") as folder,
        House(load_settings(None, given), Path(folder)) as house,
    ):
        path = options.model or make_model(options.shape, options.quantization, folder)
        model = house.model(path)
        sides = [
            (f"{build.kind}{words}", build, settings)
            for build in house.builds()
            if build.engine == "llama.cpp"
            for words, settings in sides_of(house, build, options.chat)
        ]
        rows: list[Row] = []
        products = 0.0
        for number in range(1, options.rounds + 1):
            for label, build, settings in sides:
                row = measure_once(house, model, build, settings, workload, number, label)
                sys.stderr.write(row.line + "\n")
                rows.append(row)
                products = max(products, row.products)
    rows = [dataclasses.replace(row, products=products) for row in rows]
    print(f"### {options.shape} {options.quantization}, {rows[0].read / 1e9:.2f} GB a token\n")
    print("| round | side | decode tok/s | GB/s before, after | memory's roof | products' roof "
          "| of memory's | of the roofline |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row.line for row in rows) + "\n")
    best = 0.0
    for label, _, _ in sides:
        steady = [row for row in rows if row.label == label and row.is_steady]
        if not steady:
            print(f"{label}: no steady round")
            continue
        share = median(row.share for row in steady)
        best = max(best, share)
        print(
            f"{label}: {share:.0%} of the roofline, {median(row.of_memory for row in steady):.0%} "
            f"of memory's roof, medians of {len(steady)} steady rounds of {options.rounds}"
        )
    print(f"\nbest {best:.0%}, wanted {WANTED:.0%}")
    sys.exit(best < WANTED)


def sides_of(house: House, build: Build, is_chat: bool) -> list[tuple[str, Mapping[str, Setting]]]:
    """Return the candidates of a build: minimal, and with what `find` has for large weights.

    Plain attention on bf16 is for contexts that are worth a word, which `--chat` has.
    """
    sides = [("", MINIMAL), (", pages of 2 MiB", HUGE)]
    if is_chat and BF16_ISA & set(house.look().isa):
        sides.append((", pages of 2 MiB, plain attention on bf16", PLAIN))
    return sides


@dataclasses.dataclass(frozen=True)
class Row:
    """One round of one side: tok/s, bytes read a token, bandwidths in bytes/s, products' tok/s."""

    number: int
    label: str
    rate: float
    read: float
    before: float
    after: float
    products: float

    @property
    def is_steady(self) -> bool:
        """Whether the machine's memory was the same before and after."""
        return abs(self.before - self.after) <= UNSTEADY * self._bandwidth

    @property
    def of_memory(self) -> float:
        """The share of memory's roof alone."""
        return self.rate * self.read / self._bandwidth

    @property
    def share(self) -> float:
        """The share of the lower roof."""
        return self.rate / min(self._bandwidth / self.read, self.products)

    @property
    def line(self) -> str:
        """The row of the table."""
        moved = "" if self.is_steady else " (moved)"
        return (
            f"| {self.number} | {self.label} | {self.rate:.1f} "
            f"| {self.before / 1e9:.1f}, {self.after / 1e9:.1f}{moved} "
            f"| {self._bandwidth / self.read:.1f} | {self.products:.1f} "
            f"| {self.of_memory:.0%} | {self.share:.0%} |"
        )

    @property
    def _bandwidth(self) -> float:
        return (self.before + self.after) / 2


def make_model(shape: str, quantization: str, folder: str) -> str:
    """Write the file of random weights and return its path."""
    path = str(Path(folder, f"{shape}.{quantization}.gguf"))
    script = Path(__file__).with_name("random_gguf.py")
    subprocess.run((sys.executable, script, shape, quantization, path), check=True, stdout=2)
    return path


def measure_once(
    house: House,
    model: Model,
    build: Build,
    settings: Mapping[str, Setting],
    workload: Workload,
    number: int,
    label: str,
) -> Row:
    """Run a trial between two probes of the memory and, before both, one of the products."""
    machine = house.look()
    threads = machine.usable_cores
    names = sorted(cached_names(model, machine.isa))
    rates = {name: one for name, (one, _) in measure_rates(names, threads).items()}
    products = product_bound(model, Rates(rates), machine.isa)
    if products is None:
        sys.exit("the wheel's products cannot be measured here")
    before = measure_memory_bandwidth(threads)
    bench = house.bench(model, workload)
    candidate = bench.minimal(build).with_settings(**settings)
    trial = asyncio.run(run_trial(bench, build, candidate, TokenRatio()))
    after = measure_memory_bandwidth(threads)
    if trial.measurement is None:
        sys.exit(f"{build.label} failed: {trial.detail} ({trial.log_path})")
    tokens = workload.prompt_tokens + workload.output_tokens / 2
    read = model.bytes_per_token + tokens * kv_bytes_per_token(model, "auto")
    rate = 1 / trial.measurement.tpot_s.p50
    return Row(number, label, rate, read, before, after, products)


if __name__ == "__main__":
    main()
