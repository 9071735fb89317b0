"""Compare predicted with measured speed of llama.cpp's server, shape by shape.

    ./dev bench fit_speed [--folder DIR] [--rounds 3] [--threads N] [--only measure|report]

In each round, for each shape, the engine's matrix products are measured for the types of its
weights and the memory's bandwidth, then the engine answers one prompt (256 tokens in, 32 out): what
disturbs the machine meanwhile disturbs both. A shape's figure is the median over the rounds. Two
costs and a factor that theory does not give (a layer's, a vocabulary entry's, a prompt's) are
fitted to CALIBRATION; the other shapes are what is judged.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.engine_memory import run_wheel  # noqa: E402
from benchmarks.random_gguf import write_random_gguf  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from enginehouse.core.estimate_kv import CacheShape, full_cache_bytes  # noqa: E402
from enginehouse.core.estimate_speed import (  # noqa: E402
    Rates,
    product_seconds,
    rate_name,
    speed_from_rates,
)
from enginehouse.core.model import Model  # noqa: E402
from enginehouse.edges.bandwidth import measure_memory_bandwidth  # noqa: E402
from enginehouse.edges.model_files import read_place  # noqa: E402
from enginehouse.edges.probes import look_at_machine  # noqa: E402
from enginehouse.edges.rates import measure_rates  # noqa: E402

PROMPT, DECODE = 256, 32
CALIBRATION = (("smollm2-360m", "Q4_1"), ("qwen3-0.6b", "Q4_K_M"), ("tinyllama-1.1b", "Q4_0"))
JUDGED = (
    ("smollm2-135m", "Q4_0"), ("smollm2-135m", "F16"), ("smollm2-135m", "Q4_K_M"),
    ("llama-3.2-1b", "Q4_K_M"), ("llama-3.2-1b", "Q8_0"), ("qwen2.5-0.5b", "Q8_0"),
    ("qwen2.5-1.5b", "Q4_0"), ("gemma3-270m", "Q8_0"), ("gemma3-1b", "Q4_K_M"),
    ("mixtral-small", "Q4_K_M"), ("qwen3moe-small", "Q4_0"), ("phi3-mini-cut", "Q4_K_M"),
    ("lfm2-350m", "Q4_0"), ("smollm2-360m", "IQ4_NL"), ("mistral-7b-cut", "Q4_K_M"),
)  # fmt: skip
Round = dict[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What was fitted to the calibration shapes."""

    layer_s: float
    entry_s: float
    prefill_factor: float


def main() -> None:
    """Measure the rounds that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fit-accuracy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=look_at_machine().usable_cores)
    parser.add_argument("--only", choices=("measure", "report"), default="")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = options.folder / f"speed-{options.threads}.json"
    rounds: dict[str, list[Round]] = json.loads(store.read_text()) if store.exists() else {}
    if options.only != "report":
        for number in range(options.rounds):
            for shape, mix in (*CALIBRATION, *JUDGED):
                done = rounds.setdefault(f"{shape} {mix}", [])
                if len(done) <= number:
                    done.append(measure(shape, mix, options.folder, options.threads))
                    store.write_text(json.dumps(rounds, indent=1))
                    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {shape} {mix} {done[-1]}\n")
    if options.only != "measure":
        report(rounds, options.folder)


def model_of(shape: str, mix: str, folder: Path) -> Model:
    """Return a shape's facts; its file is written when it is not there."""
    path = folder / f"{shape}-{mix}.gguf"
    if not path.exists():
        write_random_gguf(path.with_suffix(".part"), SHAPES[shape], mix).rename(path)
    return read_place(path)


def measure(shape: str, mix: str, folder: Path, threads: int) -> Round:
    """Measure the products of a shape's types, then the shape in the engine."""
    model = model_of(shape, mix, folder)
    isa = look_at_machine().isa
    names = sorted({rate_name(group, isa) for group in model.groups if group.type != "F32"})
    rates = measure_rates(names, threads)
    bandwidth = measure_memory_bandwidth(threads)
    draw = random.Random(shape)
    prompt = [draw.randrange(10, SHAPES[shape].vocabulary) for _ in range(PROMPT)]
    flags = ["--parallel", "1", "--ctx-size", "512", "--cache-ram", "0", "--fit", "off"]
    flags += ["--no-webui", "--threads", str(threads), "--threads-batch", str(threads)]
    seen = run_wheel(Path(model.path), flags, [prompt], DECODE)
    return {
        "rates": rates, "bandwidth": bandwidth, "prefill": seen.prefill_tok_per_s,
        "decode": seen.decode_tok_per_s,
    }  # fmt: skip


def rates_of(one: Round, fitted: Fitted) -> Rates:
    """Return a round's rates with what was fitted."""
    return Rates(
        {name: pair[0] for name, pair in one["rates"].items()},
        {name: pair[1] for name, pair in one["rates"].items()},
        one["bandwidth"], fitted.layer_s, fitted.entry_s, fitted.prefill_factor,
    )  # fmt: skip


def fit(rounds: dict[str, list[Round]], folder: Path) -> Fitted:
    """Fit the two costs by least squares, and the factor as a median."""
    isa = look_at_machine().isa
    rows: list[tuple[float, float, float]] = []
    factors: list[float] = []
    for shape, mix in CALIBRATION:
        model = model_of(shape, mix, folder)
        for one in rounds.get(f"{shape} {mix}", []):
            products = product_seconds(model, rates_of(one, Fitted(0, 0, 1)), isa)
            if products is not None:
                rest = 1 / one["decode"] - products[0]
                rows.append((float(model.layers), float(model.vocabulary_size), rest))
                factors.append(one["prefill"] * products[1])
    layer_s, entry_s = least_squares(rows)
    return Fitted(layer_s, entry_s, median(factors))


def least_squares(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Solve a·x + b·y = z for x and y, neither below 0."""
    aa = sum(a * a for a, _, _ in rows)
    ab = sum(a * b for a, b, _ in rows)
    bb = sum(b * b for _, b, _ in rows)
    az = sum(a * z for a, _, z in rows)
    bz = sum(b * z for _, b, z in rows)
    determinant = aa * bb - ab * ab
    x, y = (az * bb - bz * ab) / determinant, (bz * aa - az * ab) / determinant
    if x < 0:
        return 0.0, max(bz / bb, 0.0)
    if y < 0:
        return max(az / aa, 0.0), 0.0
    return x, y


def report(rounds: dict[str, list[Round]], folder: Path) -> None:
    """Print a row a judged shape, and how many are within the targets."""
    fitted = fit(rounds, folder)
    print(
        f"fitted to {len(CALIBRATION)} shapes: {fitted.layer_s * 1e6:.0f} µs a layer, "
        f"{fitted.entry_s * 1e9:.1f} ns a vocabulary entry, prefill ×{fitted.prefill_factor:.2f}\n"
    )
    print("| shape | decode tok/s | predicted | prefill tok/s | predicted | of roofline |")
    print("|---|---|---|---|---|---|")
    decodes, prefills = [], []
    isa = look_at_machine().isa
    for shape, mix in JUDGED:
        model = model_of(shape, mix, folder)
        kv = full_cache_bytes(model, CacheShape(PROMPT + DECODE))
        found = [
            (one, speed)
            for one in rounds.get(f"{shape} {mix}", [])
            if (speed := speed_from_rates(model, rates_of(one, fitted), isa, kv)) and speed.prefill
        ]
        if not found:
            continue
        decode = median(speed.decode.expected / one["decode"] for one, speed in found) - 1
        prefill = median(
            (speed.prefill.expected if speed.prefill else 0.0) / one["prefill"]
            for one, speed in found
        ) - 1  # fmt: skip
        share = median(speed.share_of_bound(one["decode"]) for one, speed in found)
        decodes.append(abs(decode))
        prefills.append(abs(prefill))
        print(
            f"| {shape} {mix} | {median(one['decode'] for one, _ in found):.1f} | {decode:+.0%} "
            f"| {median(one['prefill'] for one, _ in found):.0f} | {prefill:+.0%} | {share:.0%} |"
        )
    print(
        f"\ndecode within 20 %: {sum(one <= 0.2 for one in decodes)} of {len(decodes)}; "
        f"prefill within 30 %: {sum(one <= 0.3 for one in prefills)} of {len(prefills)}"
    )


if __name__ == "__main__":
    main()
