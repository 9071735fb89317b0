"""Compare predicted with measured speed of llama.cpp's server, shape by shape.

    ./dev bench fit_speed [--folder DIR] [--rounds 3] [--threads N] [--fresh]
        [--only measure|report] [--seconds N]

In each round, for each shape, the engine answers one prompt (256 tokens in, 32 out), and before and
after it what the shape is made of is measured (the engine's operations, as `fit --measure` does,
and the memory's bandwidth): what disturbs the machine disturbs both. Of the two the mean time
counts. A shape's figures are medians over the rounds. Nothing is fitted. FRESH are shapes that no
formula has seen. With `--threads 1` time is processor time throughout, which a busy machine changes
little.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.engine_memory import run_wheel  # noqa: E402
from benchmarks.random_gguf import write_random_gguf  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from enginehouse.core.estimate_kv import CacheShape, full_cache_bytes  # noqa: E402
from enginehouse.core.estimate_speed import (  # noqa: E402
    DECODE_SPREAD,
    PREFILL_SPREAD,
    Rates,
    Speed,
    rate_names,
    speed_from_rates,
)
from enginehouse.core.model import Model  # noqa: E402
from enginehouse.edges.bandwidth import measure_memory_bandwidth  # noqa: E402
from enginehouse.edges.model_files import read_place  # noqa: E402
from enginehouse.edges.probes import look_at_machine  # noqa: E402
from enginehouse.edges.rates import measure_rates  # noqa: E402

PROMPT, DECODE = 256, 32
SEEN = (
    ("smollm2-360m", "Q4_1"), ("qwen3-0.6b", "Q4_K_M"), ("tinyllama-1.1b", "Q4_0"),
    ("smollm2-135m", "Q4_0"), ("smollm2-135m", "F16"), ("smollm2-135m", "Q4_K_M"),
    ("llama-3.2-1b", "Q4_K_M"), ("llama-3.2-1b", "Q8_0"), ("qwen2.5-0.5b", "Q8_0"),
    ("qwen2.5-1.5b", "Q4_0"), ("gemma3-270m", "Q8_0"), ("gemma3-1b", "Q4_K_M"),
    ("mixtral-small", "Q4_K_M"), ("qwen3moe-small", "Q4_0"), ("phi3-mini-cut", "Q4_K_M"),
    ("lfm2-350m", "Q4_0"), ("smollm2-360m", "IQ4_NL"), ("mistral-7b-cut", "Q4_K_M"),
    ("danube3-500m", "Q8_0"), ("granite3-1b-cut", "Q5_K_M"), ("qwen2.5-3b-cut", "IQ4_NL"),
    ("stories-42m", "F16"), ("olmoe-cut", "Q4_0"), ("qwen1.5-moe-cut", "Q5_K_M"),
    ("phi3-medium-cut", "Q4_0"), ("qwen3-4b-cut", "Q6_K"), ("minicpm-1b-cut", "Q4_1"),
    ("llama-3.1-8b-cut", "Q5_K_M"), ("gemma2-9b-cut", "IQ4_NL"), ("phi-tiny-moe", "Q8_0"),
)  # fmt: skip
FRESH = (
    ("smollm-1.7b-cut", "Q4_K_M"), ("qwen3-8b-cut", "Q5_K_M"), ("llama-160m", "F16"),
    ("amber-3b-cut", "Q8_0"), ("gemma3-4b-cut", "Q4_0"), ("granite-moe-small", "Q5_K_M"),
    ("lfm2-700m-cut", "Q8_0"), ("deep-narrow", "IQ4_NL"),
)  # fmt: skip
Round = dict[str, Any]


def main() -> None:
    """Measure what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fit-accuracy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=look_at_machine().usable_cores)
    parser.add_argument("--only", choices=("measure", "report"), default="")
    parser.add_argument("--fresh", action="store_true", help="the shapes of FRESH only")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no shape after this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = options.folder / f"speed-{options.threads}.json"
    rounds: dict[str, list[Round]] = json.loads(store.read_text()) if store.exists() else {}
    shapes = FRESH if options.fresh else (*SEEN, *FRESH)
    until = time.monotonic() + options.seconds
    if options.only != "report":
        for number in range(options.rounds):
            for shape, mix in shapes:
                done = rounds.setdefault(f"{shape} {mix}", [])
                if len(done) <= number and time.monotonic() < until:
                    done.append(measure(shape, mix, options.folder, options.threads))
                    store.write_text(json.dumps(rounds, indent=1))
    if options.only != "measure":
        report(rounds, shapes, options.folder, options.threads)


def model_of(shape: str, mix: str, folder: Path) -> Model:
    """Return a shape's facts; its file is written when it is not there."""
    path = folder / f"{shape}-{mix}.gguf"
    if not path.exists():
        write_random_gguf(path.with_suffix(".part"), SHAPES[shape], mix).rename(path)
    return read_place(path)


def measure(shape: str, mix: str, folder: Path, threads: int) -> Round:
    """Measure what a shape is made of, predict, measure the shape in the engine, and its parts."""
    model, isa = model_of(shape, mix, folder), look_at_machine().isa
    names = sorted(rate_names(model, isa))
    before = measure_rates(names, threads)
    one: Round = {"rates": before, "bandwidth": measure_memory_bandwidth(threads)}
    first = show(predict(model, one, threads))
    draw = random.Random(shape)
    prompt = [draw.randrange(10, SHAPES[shape].vocabulary) for _ in range(PROMPT)]
    flags = ["--parallel", "1", "--ctx-size", "512", "--cache-ram", "0", "--fit", "off"]
    flags += ["--no-webui", "--threads", str(threads), "--threads-batch", str(threads)]
    seen = run_wheel(Path(model.path), flags, [prompt], DECODE)
    share = min(seen.processor_share, 1.0) if threads == 1 else 1.0
    one |= {"prefill": seen.prefill_tok_per_s / share, "decode": seen.decode_tok_per_s / share}
    after = measure_rates(names, threads)
    one["rates"] = {
        name: [harmonic_mean(pair) for pair in zip(before[name], after[name], strict=True)]
        for name in before.keys() & after.keys()
    }
    sys.stderr.write(
        f"{time.strftime('%H:%M:%S')} {shape} {mix} predicted {first}, with what came after "
        f"{show(predict(model, one, threads))}, measured {one['decode']:.1f} and "
        f"{one['prefill']:.0f}\n"
    )
    return one


def predict(model: Model, one: Round, threads: int) -> Speed | None:
    """Predict from a round's rates."""
    rates = Rates(
        {name: pair[0] for name, pair in one["rates"].items()},
        {name: pair[1] for name, pair in one["rates"].items()},
        one["bandwidth"], threads,
    )  # fmt: skip
    kv = full_cache_bytes(model, CacheShape(PROMPT + DECODE))
    isa = look_at_machine().isa
    return speed_from_rates(model, rates, isa, kv, PROMPT + DECODE // 2, PROMPT)


def show(speed: Speed | None) -> str:
    """Show a prediction."""
    if speed is None or speed.prefill is None:
        return "nothing"
    return f"{speed.decode.expected:.1f} and {speed.prefill.expected:.0f}"


def report(
    rounds: dict[str, list[Round]], shapes: Sequence[tuple[str, str]], folder: Path, threads: int
) -> None:
    """Print a row a shape, and how many are within the targets."""
    print("| shape | decode tok/s | predicted | prefill tok/s | predicted | of roofline | rounds |")
    print("|---|---|---|---|---|---|---|")
    errors: list[tuple[float, float]] = []
    for shape, mix in shapes:
        model = model_of(shape, mix, folder)
        found = [
            (one, speed.decode.expected / one["decode"], speed.prefill.expected / one["prefill"],
             speed.share_of_bound(one["decode"]))
            for one in rounds.get(f"{shape} {mix}", [])
            if (speed := predict(model, one, threads)) and speed.prefill
        ]  # fmt: skip
        if not found:
            continue
        errors.append((median(one[1] for one in found) - 1, median(one[2] for one in found) - 1))
        print(
            f"| {shape} {mix} | {median(one['decode'] for one, *_ in found):.1f} "
            f"| {errors[-1][0]:+.0%} | {median(one['prefill'] for one, *_ in found):.0f} "
            f"| {errors[-1][1]:+.0%} | {median(one[3] for one in found):.0%} | {len(found)} |"
        )
    decodes = sum(abs(one) <= DECODE_SPREAD for one, _ in errors)
    prefills = sum(abs(one) <= PREFILL_SPREAD for _, one in errors)
    print(
        f"\ndecode within 20 %: {decodes} of {len(errors)}; "
        f"prefill within 30 %: {prefills} of {len(errors)}"
    )


if __name__ == "__main__":
    main()
