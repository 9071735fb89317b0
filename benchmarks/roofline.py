"""Hold decode against the roofline, whose two roofs are measured between its requests.

    ./dev bench roofline [--shape llama-3.2-3b] [--quantization Q4_K_M] [--llama-server FILE]
                         [--rounds 5] [--model FILE] [--context 16]

The model has the shape's sizes and random weights (`random_gguf.py`), which take the same bytes and
the same time as trained ones. Each build of llama.cpp and of ik_llama.cpp that is here serves it
(`enginehouse engines build ENGINE` makes one) with the minimal candidate, and with the levers that
`find` has for it, side after side in each round. A server is started, warmed, and asked four times
for 64 tokens after a prompt of `--context` tokens; the read bandwidth is measured before the first
request and after each. Decode is the server's own figure.

The roofs, both in tok/s: memory's is the mean of the two bandwidths around a request, over the
bytes that a token reads, weights and KV cache. The products' is what the wheel's multiplications of
these weights make where they lie in the processor's caches, so that no memory is waited for: the
highest of all rounds, since whatever disturbs a measurement lowers it. The roofline is the lower.
ik_llama.cpp has faster products, which no library here tells alone: its only roof is memory's.

A request between two bandwidths that differ by more than 10 % says nothing, since the machine has
changed while it ran: it is shown, and not counted. A side's share is the median of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.agreement import wait_ready  # noqa: E402
from benchmarks.engine_memory import ask_all, free_port  # noqa: E402
from enginehouse.app import House  # noqa: E402
from enginehouse.core.candidate import Build, Setting  # noqa: E402
from enginehouse.core.engine import Endpoint, Launch  # noqa: E402
from enginehouse.core.estimate_speed import Rates, cached_names, product_bound  # noqa: E402
from enginehouse.core.estimate_vllm import kv_bytes_per_token  # noqa: E402
from enginehouse.core.model import Model  # noqa: E402
from enginehouse.core.workload import WORKLOADS  # noqa: E402
from enginehouse.edges.bandwidth import measure_memory_bandwidth  # noqa: E402
from enginehouse.edges.leases import LeaseBook  # noqa: E402
from enginehouse.edges.processes import EngineProcess  # noqa: E402
from enginehouse.edges.rates import measure_rates  # noqa: E402
from enginehouse.edges.settings_file import load_settings  # noqa: E402
from enginehouse.engines import load_engines  # noqa: E402
from enginehouse.engines.ik_llama_cpp import REPACK  # noqa: E402
from enginehouse.engines.llama_cpp import BF16_ISA  # noqa: E402

REQUESTS, TOKENS = 4, 64
WANTED, UNSTEADY = 0.85, 0.1
MINIMAL: Mapping[str, Setting] = {}
HUGE: Mapping[str, Setting] = {"huge_pages": "on", "mmap": "off"}
PLAIN: Mapping[str, Setting] = {**HUGE, "flash_attention": "off", "kv_type": "bf16"}
REPACKED: Mapping[str, Setting] = {**HUGE, REPACK.name: "on"}
LLAMA_CPP, FORK = "llama.cpp", "ik_llama.cpp"


def main() -> None:
    """Measure every build in rounds and print Markdown; end with 1 where the best falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-3b")
    parser.add_argument("--quantization", default="Q4_K_M")
    parser.add_argument("--llama-server", default="", help="a native build beside the wheel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="", help="a file that random_gguf.py made")
    parser.add_argument("--context", type=int, default=16, help="tokens of the prompt")
    options = parser.parse_args()
    given = {"engine.llama_cpp.path": options.llama_server} if options.llama_server else {}
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-roofline-") as folder,
        House(load_settings(None, given), Path(folder)) as house,
    ):
        path = options.model or make_model(options.shape, options.quantization, folder)
        model = house.model(path)
        sides = [
            (f"{build.engine} {build.kind}{words}", build, settings)
            for build in house.builds()
            if build.engine in (LLAMA_CPP, FORK)
            for words, settings in sides_of(house, build, options.context)
        ]
        rows: list[Row] = []
        products = 0.0
        for number in range(1, options.rounds + 1):
            for label, build, settings in sides:
                products = max(products, products_bound(house, model))
                asked = Asked(number, label, options.context)
                for row in asyncio.run(measure_side(house, model, build, settings, asked)):
                    rows.append(row.below(products))
                    sys.stderr.write(rows[-1].line + "\n")
    rows = [row.below(products) for row in rows]
    print(f"### {options.shape} {options.quantization}, {rows[0].read / 1e9:.2f} GB a token\n")
    print("| round | side | decode tok/s | GB/s before, after | memory's roof | products' roof "
          "| of memory's | of the roofline |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row.line for row in rows) + "\n")
    best = 0.0
    for label, _, _ in sides:
        steady = [row for row in rows if row.asked.label == label and row.is_steady]
        if not steady:
            print(f"{label}: no steady request")
            continue
        share = median(row.share for row in steady)
        best = max(best, share)
        print(
            f"{label}: {share:.0%} of the roofline, the median of {len(steady)} steady requests of "
            f"{REQUESTS * options.rounds}"
        )
        for is_memory, roof in ((True, "memory's"), (False, "the products'")):
            below = [row.share for row in steady if row.is_below_memory == is_memory]
            if below:
                print(f"  {median(below):.0%} where {roof} roof is the lower ({len(below)})")
    print(f"\nbest {best:.0%}, wanted {WANTED:.0%}")
    sys.exit(best < WANTED)


def sides_of(house: House, build: Build, context: int) -> list[tuple[str, Mapping[str, Setting]]]:
    """Return the candidates of a build: minimal, and with what `find` has for large weights.

    Plain attention on bf16 is for contexts that are worth a word, repacked weights for the fork.
    """
    sides = [("", MINIMAL), (", pages of 2 MiB", HUGE)]
    if build.engine == FORK:
        sides.append((", pages of 2 MiB, repacked", REPACKED))
    elif context > 64 and BF16_ISA & set(house.look().isa):
        sides.append((", pages of 2 MiB, plain attention on bf16", PLAIN))
    return sides


@dataclasses.dataclass(frozen=True)
class Asked:
    """A round's number, the side's name, and the tokens of the prompt."""

    number: int
    label: str
    context: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One request: tok/s, bytes read a token, bandwidths in bytes/s, products' tok/s."""

    asked: Asked
    rate: float
    read: float
    before: float
    after: float
    products: float = math.inf

    def below(self, products: float) -> Row:
        """Return the row below the wheel's products, where they are a roof for its engine."""
        is_theirs = self.asked.label.startswith(LLAMA_CPP)
        return dataclasses.replace(self, products=products) if is_theirs else self

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
    def is_below_memory(self) -> bool:
        """Whether memory's roof is the lower."""
        return self._bandwidth / self.read < self.products

    @property
    def line(self) -> str:
        """The row of the table."""
        moved = "" if self.is_steady else " (moved)"
        return (
            f"| {self.asked.number} | {self.asked.label} | {self.rate:.1f} "
            f"| {self.before / 1e9:.1f}, {self.after / 1e9:.1f}{moved} "
            f"| {self._bandwidth / self.read:.1f} "
            f"| {f'{self.products:.1f}' if self.products < math.inf else '-'} "
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


def products_bound(house: House, model: Model) -> float:
    """Return the tok/s of the wheel's products alone, now."""
    machine = house.look()
    names = sorted(cached_names(model, machine.isa))
    rates = {name: one for name, (one, _) in measure_rates(names, machine.usable_cores).items()}
    found = product_bound(model, Rates(rates), machine.isa)
    if found is None:
        sys.exit("the wheel's products cannot be measured here")
    return found


async def measure_side(
    house: House, model: Model, build: Build, settings: Mapping[str, Setting], asked: Asked
) -> list[Row]:
    """Serve with a candidate and return its requests."""
    threads = house.look().usable_cores
    bench = house.bench(model, WORKLOADS["chat"])
    candidate = bench.minimal(build).with_settings(**settings)
    endpoint = Endpoint(port=free_port())
    engine = load_engines()[build.engine]
    prompt = [100 + token for token in range(asked.context)]
    read = float(model.bytes_per_token)
    read += (asked.context + TOKENS / 2) * kv_bytes_per_token(model, "auto")
    rows = []
    with tempfile.TemporaryDirectory(prefix="enginehouse-roofline-") as folder:
        launch = Launch(build, candidate, model, endpoint, folder)
        process = EngineProcess(
            engine.argv(launch),
            env=dict(engine.env(launch)),
            log_path=Path(folder, "log"),
            leases=LeaseBook(Path(folder, "leases")),
        )
        await process.start()
        try:
            await wait_ready(endpoint, engine.ready_path, process)
            ask_all(endpoint.base_url, [prompt], 8)
            before = measure_memory_bandwidth(threads)
            for _ in range(REQUESTS):
                _, rate = ask_all(endpoint.base_url, [prompt], TOKENS)
                after = measure_memory_bandwidth(threads)
                rows.append(Row(asked, rate, read, before, after))
                before = after
        finally:
            await process.stop()
    return rows


if __name__ == "__main__":
    main()
