"""Hold `find`'s search against an exhaustive grid that was measured once and stored.

    ./dev bench search_grid measure --llama-server FILE     (about 17 minutes, a quiet machine)
    ./dev bench search_grid replay [--seeds 5] [--grid FILE]    (seconds)

`measure` tries every candidate of the search's own space under the workload `chat` with the small
demo model, in a random order, each with two thirds of the load, and stores rates and durations in
`search_grid.json`; the minimal candidate is measured again every 16 candidates, which tells the
noise. The sixteen fastest are then measured three times more, and the mean of the four counts: the
largest of two hundred noisy figures is larger than any true one. `replay` runs the very search of
`find` on those figures with a simulated clock: a trial takes the time that it took in the grid and
shows the stored rate times noise of the measured size, new for each trial. Nothing but the machine
is replaced. The budget is 12 % of the grid's time. `search_grid_drifting.json` is another grid, of
an hour in which the machine drifted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, mean, median, stdev
from typing import Any

from enginehouse.app import House
from enginehouse.app_variants import make_variants
from enginehouse.core.builds import space_of
from enginehouse.core.candidate import Build, Candidate, settings_of
from enginehouse.core.choose import choose
from enginehouse.core.contest import MINIMAL, PROOF
from enginehouse.core.forms import Forms
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Measurement, percentiles_of
from enginehouse.core.model import Model
from enginehouse.core.propose import Place, Proposal, throughput
from enginehouse.core.space import candidate_at
from enginehouse.core.trial import Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.builds import find_builds
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.quantize import VariantStore
from enginehouse.edges.quantize_run import find_tools
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines import load_engines
from enginehouse.trials.bench import Bench, TokenRatio
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.run import run_trial
from enginehouse.trials.search import Hunt

STORED = Path(__file__).with_suffix(".json")
WORKLOAD = dataclasses.replace(WORKLOADS["chat"], requests=4, forced_lengths=True)
"""Two thirds of the load, which keeps the grid to a quarter of an hour. Every answer has its full
length: where a candidate ends its answers early, three short ones tell 12 % more or less."""
SHARE = 0.12
NEAR = 0.97
REFERENCE_EVERY = 16
REFINED, REFINED_ROUNDS = 16, 3
PROOF_S = 3.0


class Lines(SilentWatch):
    """Says each sentence on stderr."""

    def on_step(self, text: str) -> None:
        """Write a sentence."""
        sys.stderr.write(f"  {text}\n")


def main() -> None:
    """Measure the grid, or replay the search on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "replay"))
    parser.add_argument("--llama-server", default="", help="a native build beside the wheel")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--grid", type=Path, default=STORED, help="what was measured")
    options = parser.parse_args()
    if options.what == "measure":
        measure_grid(options.llama_server, options.grid)
    else:
        replay(options.seeds, options.grid)


def measure_grid(llama_server: str, stored: Path) -> None:
    """Measure every candidate of the space and store what came of it."""
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-grid-") as folder,
        House(load_settings(None, {}), Path(folder)) as house,
    ):
        model = house.model(None)
        builds = tuple(b for b in find_builds(llama_server) if b.engine == "llama.cpp")
        store = VariantStore(cache_dir(), find_tools(builds), 20 << 30, 2 << 30)
        variants = make_variants(model, store, 120.0, Lines())
        variants.pop("IQ4_NL", None)  # keeps the grid to half an hour; the replay has none either
        bench = dataclasses.replace(house.bench(model, WORKLOAD), forms=Forms((model,), variants))
        grid = candidates_of(bench, builds)
        by_digest = {build.digest: build for build in builds}
        reference = bench.minimal(builds[0])
        order = list(grid)
        random.Random(20261125).shuffle(order)
        ratio, rows = TokenRatio(), []
        for number, candidate in enumerate(order):
            if number % REFERENCE_EVERY == 0:
                rows.append(measured(bench, by_digest, reference, ratio, "reference"))
            rows.append(measured(bench, by_digest, candidate, ratio, "grid"))
            sys.stderr.write(f"  {number + 1} of {len(order)}: {rows[-1]['rate']:.1f} tok/s\n")
        refine(bench, by_digest, ratio, rows)
        document = {
            "made": time.strftime("%Y-%m-%d"),
            "machine": dataclasses.asdict(house.look()),
            "model": dataclasses.asdict(model),
            "variants": {name: dataclasses.asdict(made) for name, made in variants.items()},
            "builds": [dataclasses.asdict(build) for build in builds],
            "rows": rows,
        }
        stored.write_text(json.dumps(scrubbed(document), indent=0) + "\n")


def refine(
    bench: Bench, builds: dict[str, Build], ratio: TokenRatio, rows: list[dict[str, Any]]
) -> None:
    """Measure the fastest again, in rounds, and let the geometric mean be their rate."""
    grid = [row for row in rows if row["kind"] == "grid"]
    fastest = sorted(grid, key=lambda row: -row["rate"])[:REFINED]
    rates = {id(row): [row["rate"]] for row in fastest}
    for number in range(REFINED_ROUNDS):
        order = list(fastest)
        random.Random(number).shuffle(order)
        for row in order:
            candidate = Candidate("llama.cpp", row["build"], settings_of(dict(row["settings"])))
            again = measured(bench, builds, candidate, ratio, "again")["rate"]
            rates[id(row)].append(again)
            sys.stderr.write(f"  again {row['rate']:.1f}: {again:.1f} tok/s\n")
    for row in fastest:
        row["rates"] = rates[id(row)]
        row["rate"] = geometric_mean(rates[id(row)])


def candidates_of(bench: Bench, builds: tuple[Build, ...]) -> tuple[Candidate, ...]:
    """Return every candidate of the search's space that fits."""
    places = {build.digest: bench.place(build) for build in builds}
    bases = {build.digest: bench.minimal(build) for build in builds}
    dimensions = space_of(builds, bases, places)["llama.cpp"]
    points: list[dict[str, Any]] = [{}]
    for dimension in dimensions:
        points = [
            {**point, dimension.name: value} for point in points for value in dimension.values
        ]
    found = [candidate_at(bases[build.digest], point) for build in builds for point in points]
    return tuple(c for c in found if places[c.build_digest].refuse(c) is None)


def measured(
    bench: Bench, builds: dict[str, Build], candidate: Candidate, ratio: TokenRatio, kind: str
) -> dict[str, Any]:
    """Try a candidate with the whole load and return its row."""
    build = builds[candidate.build_digest]
    trial = asyncio.run(run_trial(bench, build, candidate, ratio))
    return {
        "kind": kind,
        "build": candidate.build_digest,
        "settings": list(candidate.settings),
        "rate": throughput(trial),
        "duration_s": trial.duration_s,
        "memory_bytes": trial.peak_memory_bytes,
    }


def scrubbed(document: Any) -> Any:
    """Return the document without this machine's paths."""
    if isinstance(document, dict):
        return {k: scrubbed(v) for k, v in document.items()}
    if isinstance(document, (list, tuple)):
        return [scrubbed(v) for v in document]
    if isinstance(document, str) and document.startswith("/"):
        return f"/somewhere/{Path(document).name}"
    return document


@dataclasses.dataclass
class GridLab:
    """The stored grid as a search's `Lab` (see `trials/search.py` for what each method is for)."""

    bench: Any
    rows: dict[str, dict[str, Any]]
    noise: float
    rng: random.Random
    clock_s: float = 0.0
    reached_s: float = math.inf
    best: float = 0.0
    number: int = 0

    def now(self) -> float:
        return self.clock_s

    def place(self, build: Build) -> Place:
        place: Place = self.bench.place(build)
        return place

    def minimal(self, build: Build) -> Candidate:
        minimal: Candidate = self.bench.minimal(build)
        return minimal

    def pace_of(self, candidate: Candidate | None) -> None:
        """Loads are whole in the grid: none is given up, which costs the search its time."""

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        return True

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        """Answers are not judged here."""
        return ""

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        row = self.rows[proposal.candidate.id]
        if purpose == PROOF:
            self.number += 1
            self.clock_s += PROOF_S
            return self._trial(proposal, build, purpose, PROOF_S, row, None)
        self.clock_s += row["duration_s"]
        if row["rate"] >= NEAR * self.best:
            self.reached_s = min(self.reached_s, self.clock_s)
        self.number += 1
        rate = row["rate"] * math.exp(self.rng.gauss(0.0, self.noise))
        none = percentiles_of(())
        figures = Measurement(
            WORKLOAD.name, 6, 0, row["duration_s"], rate, 1.0, 1, 0, 1, none, none, none, none, 0.0
        )
        return self._trial(proposal, build, purpose, row["duration_s"], row, figures)

    def _trial(
        self, proposal: Proposal, build: Build, purpose: str, duration_s: float,
        row: dict[str, Any], figures: Measurement | None,
    ) -> Trial:  # fmt: skip
        return Trial(
            run_id="replay", model_digest="", model_name="", workload=WORKLOAD.name,
            candidate=proposal.candidate, build=build, argv=(), env=(), started_at=self.clock_s,
            outcome=Outcome.MEASURED if figures else Outcome.PROVEN, id=self.number,
            duration_s=duration_s, measurement=figures, purpose=purpose,
            first_tok_per_s=row["rate"] if purpose in (MINIMAL, PROOF) else 0.0,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredBench:
    """What a search asks of a bench, from the stored document."""

    machine: Machine
    forms: Forms

    def place(self, build: Build) -> Place:
        """Return what proposals for a build rest on."""
        return Place(load_engines()[build.engine], self.machine, self.forms, WORKLOAD, 512 << 20)

    def minimal(self, build: Build) -> Candidate:
        """Return a build's minimal candidate."""
        engine = load_engines()[build.engine]
        return engine.minimal(build, self.forms.of(engine), WORKLOAD)


def replay(seeds: int, stored: Path) -> None:
    """Run the search on the stored grid with several seeds and print a Markdown table."""
    import msgspec

    document = json.loads(stored.read_text())
    machine = msgspec.convert(document["machine"], Machine)
    model = msgspec.convert(document["model"], Model)
    variants = {n: msgspec.convert(v, Model) for n, v in document["variants"].items()}
    builds = tuple(msgspec.convert(b, Build) for b in document["builds"])
    bench = StoredBench(machine, Forms((model,), variants))
    rows: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        settings = settings_of(dict(row["settings"]))
        rows.setdefault(Candidate("llama.cpp", row["build"], settings).id, row)
    grid = [row for row in document["rows"] if row["kind"] == "grid"]
    references = [math.log(r["rate"]) for r in document["rows"] if r["kind"] == "reference"]
    total_s = sum(row["duration_s"] for row in grid)
    best = max(row["rate"] for row in grid)
    noise = stdev(references)
    print(
        f"grid: {len(grid)} candidates, {total_s:.0f} s, best {best:.1f} tok/s, "
        f"minimal {math.exp(median(references)):.1f} tok/s, noise {noise:.1%}"
    )
    print("| seed | trials | chosen ÷ grid's best | within 3 % after | of the grid's time |")
    print("|---|---|---|---|---|")
    chosen, shares, tried = [], [], []
    for seed in range(seeds):
        lab = GridLab(bench, rows, noise, random.Random(seed), best=best)
        hunt = Hunt(lab, builds, SHARE * total_s, SilentWatch(), seed)
        asyncio.run(hunt.run())
        winner = choose(hunt.trials, hunt.base(), hunt.refused)[0].trial.candidate
        chosen.append(rows[winner.id]["rate"] / best)
        shares.append(lab.reached_s / total_s)
        measured = [t for t in hunt.trials if t.has_measurement]
        tried.append(max(rows[t.candidate.id]["rate"] for t in measured) / best)
        print(
            f"| {seed} | {lab.number} | {chosen[-1]:.3f} | {lab.reached_s:.0f} s "
            f"| {shares[-1]:.1%}, all {lab.clock_s / total_s:.1%} |"
        )
    print(f"| median | | {median(chosen):.3f} | | {median(shares):.1%} |")
    near = mean(share >= NEAR for share in chosen)
    print(
        f"\nmean {mean(chosen):.3f} of the grid's best, {near:.0%} within 3 %; "
        f"the best that was tried {mean(tried):.3f}"
    )


if __name__ == "__main__":
    main()
