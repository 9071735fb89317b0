"""Hold our own figures against an independent load generator's, on one live engine.

    ./dev bench agreement [--streams 1,8] [--rounds 3] [--requests 8] [--output-tokens 32]

GuideLLM, in an environment of its own in the cache folder (made once; about 600 MB, it brings
`transformers` and `datasets` but no torch), and our client send the same prompts to the same
engine in turn (ours, theirs, ours, …), with the engine's prompt cache off on both sides. The
engine has one thread, so that on a small machine the clients have a core of their own.

Two questions are asked of each figure, and a third party is heard:

- **definition**: our arithmetic over the timestamps that GuideLLM recorded, divided by GuideLLM's
  own figure. The same requests on both sides, so there is no noise, and 1 % is allowed.
- **client**: the medians over the rounds of what the two clients saw. They agree when they differ
  by no more than the larger spread between one side's own rounds, or 3 %. Where that spread is
  above 25 % (the machine was busy) only a larger difference is a verdict. Token counts must be
  equal; fewer than three rounds give no verdict.
- **engine**: what the engine's log says of the very same requests. How much each client sees on
  top of it depends far less on other work than the figures themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from enginehouse.app import House
from enginehouse.core.candidate import Candidate, settings_of
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.measurement import Measurement, RequestSample, measure
from enginehouse.core.model import Model
from enginehouse.core.workload import Prompt, Workload, build_prompts
from enginehouse.edges.http import open_session
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.knowledge.loader import load_prompts
from enginehouse.trials.load import LoadShape, run_load, words_per_token

GUIDELLM = "guidellm==0.3.1"
"""Installs without torch; 0.4.0 and 0.8.1 declare it as a requirement."""
SAME = 0.01
TIE = 0.03
TOO_NOISY = 0.25
ENOUGH_ROUNDS = 3
BENCHMARK = Workload("agreement", "what both clients send", 1, 8, 0, 64, 32)


@dataclass(frozen=True)
class Figure:
    """One figure: how we have it, where GuideLLM's report has it, and what it may differ by."""

    name: str
    ours: Callable[[Measurement], float]
    theirs: tuple[str, str]
    exact: bool = False
    needs_every_chunk: bool = False


FIGURES = (
    Figure("TTFT mean, ms", lambda m: m.ttft_s.mean * 1e3, ("time_to_first_token_ms", "mean")),
    Figure("TTFT p50, ms", lambda m: m.ttft_s.p50 * 1e3, ("time_to_first_token_ms", "median")),
    Figure(
        "ITL mean, ms",
        lambda m: m.itl_s.mean * 1e3,
        ("inter_token_latency_ms", "mean"),
        needs_every_chunk=True,
    ),
    Figure("TPOT mean, ms", lambda m: m.tpot_s.mean * 1e3, ("inter_token_latency_ms", "mean")),
    Figure("TPOT p50, ms", lambda m: m.tpot_s.p50 * 1e3, ("inter_token_latency_ms", "median")),
    Figure("latency mean, s", lambda m: m.latency_s.mean, ("request_latency", "mean")),
    Figure("output tok/s", lambda m: m.output_tok_per_s, ("output_tokens_per_second", "mean")),
    Figure("requests/s", lambda m: m.requests_per_s, ("requests_per_second", "mean")),
    Figure("prompt tokens", lambda m: m.prompt_tokens, ("prompt_token_count", "total_sum"), True),
    Figure("output tokens", lambda m: m.output_tokens, ("output_token_count", "total_sum"), True),
)


@dataclass(frozen=True)
class EngineTime:
    """What the engine's log says of one request."""

    prompt_ms: float
    ms_per_token: float


@dataclass(frozen=True)
class Round:
    """What one round showed: our client, GuideLLM's figures, our arithmetic over its times.

    The engine's own times of both clients' requests come from its log, once it has ended.
    """

    ours: Measurement
    theirs: dict[str, dict[str, float]]
    recounted: Measurement
    engine_ours: tuple[EngineTime, ...] = ()
    engine_theirs: tuple[EngineTime, ...] = ()


def main() -> None:
    """Run the comparison and print one Markdown table for each number of streams."""
    options = parse_options()
    tool = install()
    with (
        tempfile.TemporaryDirectory(prefix="enginehouse-agreement-") as folder,
        House(load_settings(None, {}), Path(folder)) as house,
    ):
        model = house.model(options.model)
        print(f"{model.name} {model.quantization}, {house.builds()[0].label}, {GUIDELLM}")
        print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for streams in (int(text) for text in options.streams.split(",")):
            rounds = asyncio.run(compare(house, model, tool, streams, options, Path(folder)))
            requests = rounds[0].ours.requests
            print(f"\n{streams} stream(s), {len(rounds)} rounds of {requests} requests")
            print(f"load average at the end: {os.getloadavg()[0]:.1f}\n")
            print("\n".join((*table(rounds), "", *engine_table(rounds))), flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=BENCHMARK.requests)
    parser.add_argument("--output-tokens", type=int, default=BENCHMARK.output_tokens)
    parser.add_argument("--model", default=None)
    return parser.parse_args()


def install() -> Path:
    """Return GuideLLM's program, installed once into an environment of its own."""
    folder = cache_dir() / "tools" / GUIDELLM.replace("==", "-")
    program = folder / "bin" / "guidellm"
    if not program.exists():
        sys.stderr.write(f"installing {GUIDELLM} into {folder} (about 600 MB)\n")
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", GUIDELLM]
        subprocess.run(pip, check=True, timeout=1200, stdout=sys.stderr)
    return program


async def compare(
    house: House,
    model: Model,
    tool: Path,
    streams: int,
    options: argparse.Namespace,
    folder: Path,
) -> list[Round]:
    """Measure in turn on one engine."""
    endpoint = Endpoint(port=free_port())
    build = house.builds()[0]
    settings = settings_of({"context": 512 * streams, "slots": streams, "threads": 1})
    candidate = Candidate("llama.cpp", build.digest, settings)
    engine = LlamaCpp()
    process = EngineProcess(
        engine.argv(Launch(build, candidate, model, endpoint)),
        env={},
        log_path=folder / f"engine-{streams}.log",
        leases=LeaseBook(folder / "leases"),
    )
    rounds: list[Round] = []
    await process.start()
    try:
        await wait_ready(endpoint, engine.ready_path, process)
        load = await make_load(endpoint, model.name, streams, options)
        data = folder / f"prompts-{streams}.jsonl"
        data.write_text(data_lines(load))
        await ours(endpoint, replace(load, prompts=load.prompts[:streams]))  # warm-up, not kept
        for number in range(options.rounds):
            mine = await ours(endpoint, load)
            report = folder / f"{streams}-{number}.json"
            done = await asyncio.to_thread(run_guidellm, tool, endpoint, load, data, report)
            rounds.append(Round(mine, summary_of(done), recount(done, streams)))
            sys.stderr.write(f"round {number + 1} of {options.rounds}, {streams} stream(s)\n")
    finally:
        await process.stop()
    log = (folder / f"engine-{streams}.log").read_text(errors="replace")
    return with_engine_times(rounds, engine_times(log, options.output_tokens), streams)


@dataclass(frozen=True)
class Load:
    """What both clients send."""

    shape: LoadShape
    prompts: tuple[Prompt, ...]
    streams: int


async def make_load(
    endpoint: Endpoint, name: str, streams: int, options: argparse.Namespace
) -> Load:
    """Return the load: whole waves of requests, two at least, so that no stream idles long."""
    passages, questions = load_prompts()
    ratio = await words_per_token(endpoint, name, "\n\n".join(passages))
    count = streams * max(2, options.requests // streams)
    prompts = build_prompts(BENCHMARK, passages, questions, ratio, count)
    return Load(LoadShape(name, options.output_tokens, cache_prompt=False), prompts, streams)


def data_lines(load: Load) -> str:
    """Return the prompts as GuideLLM's data file; a token count there makes it ignore EOS too."""
    rows = (
        {"prompt": prompt.user, "output_tokens_count": load.shape.output_tokens}
        for prompt in load.prompts
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_ready(endpoint: Endpoint, path: str, process: EngineProcess) -> None:
    """Wait until the engine has loaded its model; end with its log's last lines when it has not."""
    async with open_session(endpoint, keep_alive=False) as session:
        for _ in range(600):
            if not process.is_running:
                break
            try:
                async with session.get(path) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.1)
    why = "was not ready within a minute" if process.is_running else "ended"
    sys.exit("\n".join((f"the engine {why}:", *process.log_tail())))


async def ours(endpoint: Endpoint, load: Load) -> Measurement:
    """Return what our client measures."""
    samples = await run_load(endpoint, load.shape, load.prompts, load.streams)
    figures = measure("agreement", samples, streams=load.streams)
    if figures.failed:
        sys.exit(f"{figures.failed} of our requests failed: {figures.first_error}")
    return figures


def run_guidellm(tool: Path, endpoint: Endpoint, load: Load, data: Path, report: Path) -> Any:
    """Run GuideLLM once and return the one benchmark of its report."""
    shape = load.shape
    extra = {"temperature": shape.temperature, "seed": shape.seed, "cache_prompt": False}
    rate = ["--rate-type", "concurrent", "--rate", str(load.streams)]
    command = [
        str(tool), "benchmark", "run", "--target", endpoint.base_url, "--model", shape.model,
        "--backend-args", json.dumps({"extra_body": extra}), "--data", str(data),
        *(rate if load.streams > 1 else ["--rate-type", "synchronous"]),
        "--max-requests", str(len(load.prompts)), "--output-path", str(report),
        "--disable-progress", "--disable-console-outputs",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "GUIDELLM__PREFERRED_ROUTE": "chat_completions",
        "HF_HOME": str(report.parent / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"GuideLLM failed with {done.returncode}:\n{done.stderr[-2000:]}")
    benchmark = json.loads(report.read_text())["benchmarks"][0]
    whole = benchmark["request_totals"]["successful"]
    if whole != len(load.prompts):
        sys.exit(f"only {whole} of GuideLLM's {len(load.prompts)} requests were answered whole")
    return benchmark


def summary_of(benchmark: Any) -> dict[str, dict[str, float]]:
    """Return GuideLLM's own figures of its answered requests."""
    return {name: both["successful"] for name, both in benchmark["metrics"].items()}


def recount(benchmark: Any, streams: int) -> Measurement:
    """Apply our definitions to the times that GuideLLM recorded (first and last chunk only)."""
    samples = [
        RequestSample(
            start_s=request["start_time"],
            end_s=request["end_time"],
            chunk_times_s=(request["first_token_time"], request["last_token_time"]),
            prompt_tokens=request["prompt_tokens"],
            cached_tokens=0,
            output_tokens=request["output_tokens"],
        )
        for request in benchmark["requests"]["successful"]
    ]
    return measure("agreement", samples, streams=streams)


TIMING = re.compile(
    r"\| task (\d+) \| +(prompt eval|eval) time = +([\d.]+) ms / +(\d+) tokens \( *([\d.]+) ms per"
)


def engine_times(log: str, output_tokens: int) -> list[EngineTime]:
    """Return the engine's own times of the requests with so many output tokens, as they ended.

    The length leaves out GuideLLM's own requests for one token, by which it tries the endpoint.
    """
    prompt_ms: dict[str, float] = {}
    found = []
    for task, part, total_ms, tokens, ms_per_token in TIMING.findall(log):
        if part == "prompt eval":
            prompt_ms[task] = float(total_ms)
        elif int(tokens) == output_tokens:
            found.append(EngineTime(prompt_ms[task], float(ms_per_token)))
    return found


def with_engine_times(
    rounds: Sequence[Round], times: Sequence[EngineTime], warm_up: int
) -> list[Round]:
    """Hand the engine's times out to the rounds: the warm-up's, then ours and theirs in turn.

    Raises:
        ValueError: when the log does not hold as many requests as were sent.
    """
    count = rounds[0].ours.requests
    if len(times) != warm_up + 2 * count * len(rounds):
        raise ValueError(f"the engine's log holds {len(times)} requests of the asked length")
    starts = range(warm_up, len(times), 2 * count)
    return [
        replace(
            one,
            engine_ours=tuple(times[start : start + count]),
            engine_theirs=tuple(times[start + count : start + 2 * count]),
        )
        for one, start in zip(rounds, starts, strict=True)
    ]


def engine_table(rounds: Sequence[Round]) -> list[str]:
    """Return the Markdown lines that hold both clients against the engine's own times."""
    lines = [
        "| round | TTFT − engine's prompt time, ours, ms | GuideLLM "
        "| TPOT ÷ engine's, ours | GuideLLM |",
        "|---|---|---|---|---|",
    ]
    for number, one in enumerate(rounds, 1):
        ttft = one.ours.ttft_s.mean * 1e3, one.recounted.ttft_s.mean * 1e3
        tpot = one.ours.tpot_s.mean * 1e3, one.recounted.tpot_s.mean * 1e3
        engines = one.engine_ours, one.engine_theirs
        over = [t - fmean(e.prompt_ms for e in es) for t, es in zip(ttft, engines, strict=True)]
        times = [t / fmean(e.ms_per_token for e in es) for t, es in zip(tpot, engines, strict=True)]
        lines.append(
            f"| {number} | {over[0]:.1f} | {over[1]:.1f} | {times[0]:.4f} | {times[1]:.4f} |"
        )
    return lines


def table(rounds: Sequence[Round]) -> list[str]:
    """Return the Markdown lines of the comparison."""
    lines = [
        "| figure | ours | GuideLLM | ratio | spread ours | spread GuideLLM | within noise "
        "| definition |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for figure in FIGURES:
        metric, statistic = figure.theirs
        mine = [figure.ours(r.ours) for r in rounds]
        theirs = [r.theirs[metric][statistic] for r in rounds]
        again = [figure.ours(r.recounted) for r in rounds]
        same = "" if figure.needs_every_chunk else definition(again, theirs)
        lines.append(f"{row(figure.name, mine, theirs, figure.exact)} {same} |")
    return lines


def row(name: str, mine: Sequence[float], theirs: Sequence[float], exact: bool = False) -> str:
    """Return one figure's cells: medians, their ratio, each side's spread, the verdict."""
    a, b = median(mine), median(theirs)
    return (
        f"| {name} | {a:.4g} | {b:.4g} | {a / b:.3f} "
        f"| {spread(mine):.0%} | {spread(theirs):.0%} | {verdict(mine, theirs, exact)} |"
    )


def verdict(mine: Sequence[float], theirs: Sequence[float], exact: bool = False) -> str:
    """Say whether two clients' rounds agree, or why that cannot be said."""
    if exact:
        return "yes" if list(mine) == list(theirs) else "**no**"
    if len(mine) < ENOUGH_ROUNDS:
        return "too few rounds"
    noise = max(spread(mine), spread(theirs), TIE)
    if abs(median(mine) / median(theirs) - 1) > noise:
        return "**no**"
    return "yes" if noise <= TOO_NOISY else "too noisy to tell"


def definition(again: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the ratio, furthest from 1, of our arithmetic to theirs over the same requests."""
    ratios = [a / b for a, b in zip(again, theirs, strict=True)]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return f"{worst:.4f}" if abs(worst - 1) <= SAME else f"**{worst:.4f}**"


def spread(values: Sequence[float]) -> float:
    """Return (largest − smallest) ÷ median."""
    return (max(values) - min(values)) / median(values)


if __name__ == "__main__":
    main()
