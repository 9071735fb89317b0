"""Hold our own figures against an independent load generator's, on one live engine.

    ./dev bench agreement [--streams 1,8] [--rounds 3] [--requests 12]

GuideLLM, in an environment of its own in the cache folder (made once; about 600 MB, it brings
`transformers` and `datasets` but no torch), and our client send the same prompts to the same
engine in turn, with the engine's prompt cache off on both sides. A figure agrees when the medians
over the rounds differ by no more than the larger spread between one side's own rounds, or 3 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from enginehouse.app import House
from enginehouse.core.candidate import Candidate, settings_of
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.measurement import measure
from enginehouse.core.model import Model
from enginehouse.core.workload import WORKLOADS, Prompt, build_prompts
from enginehouse.edges.http import open_session
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.settings_file import load_settings
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.knowledge.loader import load_prompts
from enginehouse.trials.load import LoadShape, run_load, words_per_token

GUIDELLM = "guidellm==0.3.1"
"""The newest release that installs without torch (0.4 and later read their data through it)."""
OUTPUT_TOKENS = 64
TIE = 0.03


@dataclass(frozen=True)
class Figure:
    """One figure's name, and where each side has it."""

    name: str
    unit: str
    theirs: tuple[str, ...]


FIGURES = (
    Figure("TTFT p50", "ms", ("time_to_first_token_ms", "successful", "median")),
    Figure("TPOT mean", "ms", ("inter_token_latency_ms", "successful", "mean")),
    Figure("latency p50", "s", ("request_latency", "successful", "median")),
    Figure("output tok/s", "", ("output_tokens_per_second", "successful", "mean")),
    Figure("requests/s", "", ("requests_per_second", "successful", "mean")),
    Figure("prompt tokens, mean", "", ("prompt_token_count", "successful", "mean")),
    Figure("output tokens, mean", "", ("output_token_count", "successful", "mean")),
)


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
        for streams in (int(text) for text in options.streams.split(",")):
            rounds = asyncio.run(compare(house, model, tool, streams, options, Path(folder)))
            print(f"\n{streams} stream(s), {options.requests} requests a round\n")
            print("\n".join(table(rounds)), flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=12)
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
) -> list[tuple[list[float], list[float]]]:
    """Measure in turn on one engine; return for each round our figures and theirs."""
    endpoint = Endpoint(port=free_port())
    build = house.builds()[0]
    settings = settings_of({"context": 1024, "slots": streams})
    candidate = Candidate("llama.cpp", build.digest, settings)
    engine = LlamaCpp()
    process = EngineProcess(
        engine.argv(Launch(build, candidate, model, endpoint)),
        env={},
        log_path=folder / f"engine-{streams}.log",
        leases=LeaseBook(folder / "leases"),
    )
    await process.start()
    try:
        await wait_ready(endpoint, engine.ready_path)
        passages, questions = load_prompts()
        ratio = await words_per_token(endpoint, "\n\n".join(passages))
        prompts = build_prompts(WORKLOADS["chat"], passages, questions, ratio, options.requests)
        data = folder / "prompts.jsonl"
        data.write_text(
            "".join(
                json.dumps({"prompt": p.user, "output_tokens_count": OUTPUT_TOKENS}) + "\n"
                for p in prompts
            )
        )
        rounds = []
        await ours(endpoint, model.name, prompts[: min(4, streams)], streams)  # warm-up, not kept
        for number in range(options.rounds):
            mine = await ours(endpoint, model.name, prompts, streams)
            report = folder / f"{streams}-{number}.json"
            theirs = await asyncio.to_thread(
                run_guidellm, tool, endpoint, model.name, data, report, streams, len(prompts)
            )
            rounds.append((mine, theirs))
        return rounds
    finally:
        await process.stop()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_ready(endpoint: Endpoint, path: str) -> None:
    """Wait until the engine has loaded its model."""
    async with open_session(endpoint, keep_alive=False) as session:
        for _ in range(600):
            try:
                async with session.get(path) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.1)
    raise TimeoutError("the engine was not ready within a minute")


async def ours(
    endpoint: Endpoint, name: str, prompts: Sequence[Prompt], streams: int
) -> list[float]:
    """Return our client's figures, in the order of FIGURES."""
    shape = LoadShape(name, OUTPUT_TOKENS, cache_prompt=False)
    samples = await run_load(endpoint, shape, prompts, streams)
    figures = measure("agreement", samples, streams=streams)
    if figures.failed:
        sys.exit(f"{figures.failed} of our requests failed: {figures.first_error}")
    return [
        figures.ttft_s.p50 * 1e3,
        figures.tpot_s.mean * 1e3,
        figures.latency_s.p50,
        figures.output_tok_per_s,
        figures.requests_per_s,
        figures.prompt_tokens / figures.requests,
        figures.output_tokens / figures.requests,
    ]


def run_guidellm(
    tool: Path, endpoint: Endpoint, name: str, data: Path, report: Path, streams: int, count: int
) -> list[float]:
    """Run GuideLLM once and return its figures, in the order of FIGURES."""
    extra = {"temperature": 0.7, "seed": 1, "cache_prompt": False}
    rate = ["--rate-type", "concurrent", "--rate", str(streams)]
    command = [
        str(tool), "benchmark", "run", "--target", endpoint.base_url, "--model", name,
        "--backend-args", json.dumps({"extra_body": extra}), "--data", str(data),
        *(rate if streams > 1 else ["--rate-type", "synchronous"]),
        "--max-requests", str(count), "--output-path", str(report),
        "--disable-progress", "--disable-console-outputs",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "GUIDELLM__PREFERRED_ROUTE": "chat_completions",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"GuideLLM failed with {done.returncode}:\n{done.stderr[-2000:]}")
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    return [pick(metrics, figure.theirs) for figure in FIGURES]


def pick(tree: Any, path: tuple[str, ...]) -> float:
    """Return the number at a path of keys."""
    for key in path:
        tree = tree[key]
    return float(tree)


def table(rounds: Sequence[tuple[list[float], list[float]]]) -> list[str]:
    """Return the Markdown lines of the comparison."""
    lines = [
        "| figure | ours | GuideLLM | ratio | spread ours | spread GuideLLM | agrees |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, figure in enumerate(FIGURES):
        mine = [ours[index] for ours, _ in rounds]
        theirs = [other[index] for _, other in rounds]
        lines.append(row(f"{figure.name} {figure.unit}".strip(), mine, theirs))
    return lines


def row(name: str, mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Return one figure's line: medians, their ratio, each side's spread, the verdict.

    >>> row("x", [10.0, 11.0], [10.0, 10.5])
    '| x | 10.50 | 10.25 | 1.02 | 10% | 5% | yes |'
    """
    ratio = median(mine) / median(theirs)
    noise = max(spread(mine), spread(theirs), TIE)
    agrees = "yes" if abs(ratio - 1) <= noise else "**no**"
    return (
        f"| {name} | {median(mine):.2f} | {median(theirs):.2f} | {ratio:.2f} "
        f"| {spread(mine):.0%} | {spread(theirs):.0%} | {agrees} |"
    )


def spread(values: Sequence[float]) -> float:
    """Return (largest − smallest) ÷ median."""
    return (max(values) - min(values)) / median(values)


if __name__ == "__main__":
    main()
