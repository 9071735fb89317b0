"""Hold `find`'s winner of each workload against what people run instead, in one paired run.

    ./dev bench league --llama-server FILE [--vllm-python FILE --checkpoint FOLDER]
                       [--workloads chat,crowd] [--budget 3m] [--rounds 3]

Everything serves the same source weights (the small demo model): (a) `llama-server` with a model
and nothing else, on the file as it is and on its Q4_K_M; (b) the command line that Ollama gives its
child, on Q4_K_M; (c) vLLM on the CPU with nothing but a model, a limit on its memory, and the
dequantized checkpoint that `checkpoint_of_gguf.py` makes; the search may choose that as well, with
its own settings. Prompts are natural and answers end where the model ends them. After the search
all are measured in turn, `--rounds` times; vLLM by default, which takes a minute and a half to
start, `--vllm-rounds` times. Ratios are of the rounds' geometric means.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys
import tempfile
from pathlib import Path
from statistics import geometric_mean

from enginehouse.app import House
from enginehouse.app_find import FindResult
from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.engine import Engine, Launch
from enginehouse.core.forms import Forms
from enginehouse.core.model import Model
from enginehouse.core.quality import Quality
from enginehouse.core.settings import parse_duration
from enginehouse.core.trial import Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.builds import find_builds
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.quantize import VariantStore, make_variant
from enginehouse.edges.quantize_run import find_tools
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines import load_engines
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.engines.vllm import Vllm
from enginehouse.trials.bench import TokenRatio
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.run import run_trial

OLLAMA = (
    "--no-webui", "--offline", "-c", "4096", "-np", "1", "-b", "512", "-ub", "512",
    "--context-shift",
)  # fmt: skip
"""What Ollama 0.30 gives its llama-server on a small machine, beside model and address."""
VLLM_CONTEXT = 4096
"""The longest workload's context: vLLM's own default, the model's 8192, only takes more memory."""


@dataclasses.dataclass(frozen=True)
class Plain(LlamaCpp):
    """`llama-server` with a model, an address, and what is given here; nothing else."""

    extra: tuple[str, ...] = ()

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Give the model, its name, the address and the extra words only."""
        return (
            *launch.build.command,
            *("--model", launch.model.path, "--alias", launch.model.name),
            *("--host", launch.endpoint.socket_path, *self.extra),
        )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One side of the comparison."""

    name: str
    engine: Engine
    build: Build
    candidate: Candidate
    forms: Forms
    is_slow_to_start: bool = False


class Lines(SilentWatch):
    """Says how the search goes, a line a step."""

    def on_step(self, text: str) -> None:
        """Write a sentence."""
        sys.stderr.write(f"  {text}\n")

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Write what came of a trial."""
        rate = trial.measurement.output_tok_per_s if trial.measurement else 0.0
        sys.stderr.write(f"  {trial.purpose} {label}: {trial.outcome.value} {rate:.1f} tok/s\n")


def main() -> None:
    """Run the league and print Markdown."""
    options = parse_options()
    given = {
        "engine.llama_cpp.path": options.llama_server,
        "engine.vllm.python": options.vllm_python,
    }
    settings = load_settings(None, {k: v for k, v in given.items() if v})
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-league-") as folder,
        House(settings, Path(folder)) as house,
    ):
        for name in options.workloads.split(","):
            print(play(house, name, options), flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--vllm-python", default="")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-rounds", type=int, default=1)
    parser.add_argument("--budget", type=parse_duration, default=180.0)
    return parser.parse_args()


def play(house: House, workload: str, options: argparse.Namespace) -> str:
    """Search one workload, measure all sides in turn, and return a Markdown section."""
    model = house.model(None)
    also = (house.model(options.checkpoint),) if options.vllm_python else ()
    found = house.find(model, workload, options.budget, Lines(), also=also)
    entries = entries_of(house, found, model, options)
    rates: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for number in range(options.rounds):
        order = [e for e in entries if number < options.vllm_rounds or not e.is_slow_to_start]
        random.Random(number).shuffle(order)
        for entry in order:
            trial = measure_once(house, workload, entry)
            if trial.measurement is None:
                sys.exit(f"{entry.name} failed on {workload}: {trial.detail} ({trial.log_path})")
            rates[entry.name].append(trial.measurement.output_tok_per_s)
            sys.stderr.write(f"  round {number + 1} {entry.name}: {rates[entry.name][-1]:.1f}\n")
    return section(workload, found, rates)


def entries_of(
    house: House, found: FindResult, model: Model, options: argparse.Namespace
) -> tuple[Entry, ...]:
    """Return the winner and the sides it is held against."""
    choice = found.require_choice()
    named = find_builds(options.llama_server)
    native = next(build for build in named if build.kind in ("binary", "native"))
    store = VariantStore(cache_dir(), find_tools(named), 20 << 30, 2 << 30)
    q4_k_m = Forms((make_variant(model, "Q4_K_M", store),))
    own, nothing = Forms((model,)), Candidate("llama.cpp", native.digest, ())
    form = dataclasses.replace(choice.form or model, name=model.name)
    winner = choice.candidate.with_settings(quantization=None)
    entries = [
        Entry("find", load_engines()[choice.build.engine], choice.build, winner, Forms((form,))),
        Entry("llama-server Q4_1", Plain(), native, nothing, own),
        Entry("llama-server Q4_K_M", Plain(), native, nothing, q4_k_m),
        Entry("Ollama's command line Q4_K_M", Plain(extra=OLLAMA), native, nothing, q4_k_m),
    ]
    if options.vllm_python:
        vllm = next(b for b in find_builds("", options.vllm_python) if b.engine == "vllm")
        # with its own default, prompts in chunks, vLLM 0.32 ends on a CPU at the load's seeds
        settings = (("chunked_prefill", "off"), ("context", VLLM_CONTEXT), ("kv_space_gib", 2))
        checkpoint = Forms((house.model(options.checkpoint),))
        candidate = Candidate("vllm", vllm.digest, settings)
        entries.append(Entry("vLLM CPU bf16", Vllm(), vllm, candidate, checkpoint, True))
    return tuple(entries)


def measure_once(house: House, workload: str, entry: Entry) -> Trial:
    """Run one trial of one side with the whole load."""
    bench = dataclasses.replace(
        house.bench(entry.forms.model, WORKLOADS[workload]),
        engines={entry.build.engine: entry.engine},
        forms=entry.forms,
    )
    return asyncio.run(run_trial(bench, entry.build, entry.candidate, TokenRatio()))


def section(workload: str, found: FindResult, rates: dict[str, list[float]]) -> str:
    """Return the Markdown of one workload."""
    means = {name: geometric_mean(values) for name, values in rates.items()}
    rivals = {name: rate for name, rate in means.items() if name != "find"}
    best = max(rivals, key=lambda name: rivals[name])
    first = found.ranked[0]
    lines = [
        f"### {workload}: {means['find'] / rivals[best]:.2f}× the best of the others ({best})",
        "",
        f"Winner: {found.label(first.trial)} ({first.trial.build.kind}). {gate_of(first.quality)}",
        "",
        "| side | tok/s | rounds | find ÷ it |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {mean:.1f} | {' '.join(f'{r:.1f}' for r in rates[name])} "
        f"| {means['find'] / mean:.2f} |"
        for name, mean in means.items()
    ]
    return "\n".join([*lines, ""])


def gate_of(quality: Quality | None) -> str:
    """Say what the quality gate found of the winner's answers."""
    if quality is None:
        return "Its answers are the base's: no exam was needed."
    verdict = "passed" if quality.passes else f"NOT PASSED: {quality.why}"
    return (
        f"Quality gate {verdict}: KL divergence {quality.kl_mean:.3f}, top-1 agreement "
        f"{quality.top1_agreement:.0%}."
    )


if __name__ == "__main__":
    main()
