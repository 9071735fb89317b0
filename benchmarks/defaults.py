"""Compare `find`'s winner with the llama.cpp wheel's own defaults, workload by workload.

    ./dev bench defaults [--workloads chat,crowd] [--rounds 3] [--budget 3m] [--model SPEC]

Both serve the same GGUF file from the same wheel. For each workload the winner is searched first,
then the two are measured in turn (A B A B …) in this one run. The last lines are the ratios; a
figure on its own drifts with the machine, a ratio of neighbours much less.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from enginehouse.app import House
from enginehouse.app_find import FindResult
from enginehouse.core.candidate import Candidate
from enginehouse.core.engine import Engine, Launch
from enginehouse.core.forms import Forms
from enginehouse.core.model import Model
from enginehouse.core.settings import parse_duration
from enginehouse.core.trial import Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.trials.bench import Bench, TokenRatio
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.run import run_trial


@dataclass(frozen=True)
class WheelDefaults(LlamaCpp):
    """The wheel's server as it comes: a model and an address, nothing else."""

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Give the model, its name and the address only."""
        return (
            *launch.build.command,
            *("--model", launch.model.path, "--alias", launch.model.name),
            *("--host", launch.endpoint.socket_path),
        )


class Lines(SilentWatch):
    """Says how the search goes, a line a step."""

    def on_step(self, text: str) -> None:
        sys.stderr.write(f"  {text}\n")

    def on_trial_start(self, label: str, number: int) -> None:
        sys.stderr.write(f"  trial {number}: {label}\n")

    def on_trial_end(self, trial: Trial, label: str) -> None:
        rate = trial.measurement.output_tok_per_s if trial.measurement else 0.0
        sys.stderr.write(f"    {trial.outcome.value} {rate:.1f} tok/s\n")


def main() -> None:
    """Run the comparison and print a Markdown table."""
    options = parse_options()
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as folder,
        House(load_settings(None, {}), Path(folder)) as house,
    ):
        model = house.model(options.model)
        print(f"model {model.name} {model.quantization}, {house.builds()[0].label}")
        print(
            "| workload | defaults tok/s | winner tok/s | ratio of medians | pair ratios "
            "| repeated 4-grams, defaults / winner | winner's settings |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in options.workloads.split(","):
            print(compare(house, model, name, options), flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=parse_duration, default=180.0)
    parser.add_argument("--model", default=None)
    return parser.parse_args()


def compare(house: House, model: Model, workload: str, options: argparse.Namespace) -> str:
    """Find the workload's winner, then measure it and the defaults in turn; return a table row."""
    found = house.find(model, workload, options.budget, Lines())
    choice = found.require_choice()
    rates: dict[str, list[float]] = {"defaults": [], "winner": []}
    loops: dict[str, list[float]] = {"defaults": [], "winner": []}
    for _ in range(options.rounds):
        for side, engine, candidate, form in (
            ("defaults", WheelDefaults(), Candidate("llama.cpp", choice.build.digest, ()), None),
            ("winner", LlamaCpp(), choice.candidate, choice.form),
        ):
            trial = measure_once(house, found, engine, candidate, form)
            if trial.measurement is None:
                sys.exit(f"{side} failed on {workload}: {trial.detail} (log {trial.log_path})")
            rates[side].append(trial.measurement.output_tok_per_s)
            loops[side].append(trial.measurement.repeated_ngram_share)
    pairs = [won / base for base, won in zip(rates["defaults"], rates["winner"], strict=True)]
    return (
        f"| {workload} | {median(rates['defaults']):.1f} | {median(rates['winner']):.1f} "
        f"| {median(rates['winner']) / median(rates['defaults']):.2f} "
        f"| {' '.join(f'{pair:.2f}' for pair in pairs)} "
        f"| {median(loops['defaults']):.0%} / {median(loops['winner']):.0%} "
        f"| {choice.candidate.describe_difference(Candidate('llama.cpp', '', ()))} |"
    )


def measure_once(
    house: House, found: FindResult, engine: Engine, candidate: Candidate, form: Model | None
) -> Trial:
    """Run one trial of a candidate under the workload of a search."""
    bench: Bench = house.bench(found.model, WORKLOADS[found.workload])
    build = found.require_choice().build
    forms = Forms((form,)) if form is not None else bench.forms
    bench = dataclasses.replace(bench, engines={"llama.cpp": engine}, forms=forms)
    candidate = candidate.with_settings(quantization=None)  # it is what the form is
    return asyncio.run(run_trial(bench, build, candidate, TokenRatio()))


if __name__ == "__main__":
    main()
