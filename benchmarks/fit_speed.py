"""Compare predicted with measured speed of llama.cpp's server, shape by shape.

    ./dev bench fit_speed [--folder DIR] [--rounds 3] [--threads N] [--fresh]
        [--only rates|measure|report] [--seconds N]

First what each shape is made of is measured (`--only rates`: the engine's operations, as
`fit --measure` does, and the memory's bandwidth) and the predictions are printed; only then, in
rounds, the engine answers one prompt a shape (256 tokens in, 32 out). A figure is the median over
the rounds. Nothing is fitted. FRESH are shapes that were not looked at while the formula was made.
With `--threads 1` time is processor time throughout, which a busy machine changes little.
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
from statistics import median
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
)  # fmt: skip
FRESH = (
    ("danube3-500m", "Q8_0"), ("granite3-1b-cut", "Q5_K_M"), ("qwen2.5-3b-cut", "IQ4_NL"),
    ("stories-42m", "F16"), ("olmoe-cut", "Q4_0"), ("qwen1.5-moe-cut", "Q5_K_M"),
    ("phi3-medium-cut", "Q4_0"), ("qwen3-4b-cut", "Q6_K"), ("minicpm-1b-cut", "Q4_1"),
    ("llama-3.1-8b-cut", "Q5_K_M"), ("gemma2-9b-cut", "IQ4_NL"), ("phi-tiny-moe", "Q8_0"),
)  # fmt: skip
Round = dict[str, Any]


def main() -> None:
    """Measure what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fit-accuracy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=look_at_machine().usable_cores)
    parser.add_argument("--only", choices=("rates", "measure", "report"), default="")
    parser.add_argument("--fresh", action="store_true", help="the shapes of FRESH only")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no shape after this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = Store(options.folder / f"speed-{options.threads}.json")
    shapes = FRESH if options.fresh else (*SEEN, *FRESH)
    until = time.monotonic() + options.seconds
    if options.only in ("", "rates"):
        measure_missing_rates(store, shapes, options.folder, options.threads)
        report(store, shapes, options.folder)
    if options.only in ("", "measure"):
        for number in range(options.rounds):
            for shape, mix in shapes:
                done = store.rounds.setdefault(f"{shape} {mix}", [])
                if len(done) <= number and time.monotonic() < until:
                    done.append(measure(shape, mix, options.folder, options.threads))
                    store.save()
                    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {shape} {mix} {done[-1]}\n")
    if options.only in ("", "measure", "report"):
        report(store, shapes, options.folder)


class Store:
    """What was measured: rates by name, bandwidth, and rounds by shape."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.rates: dict[str, list[float]] = kept.get("rates", {})
        self.bandwidth: float = kept.get("bandwidth", 0.0)
        self.rounds: dict[str, list[Round]] = kept.get("rounds", {})

    def save(self) -> None:
        """Write it to its file."""
        kept = {"rates": self.rates, "bandwidth": self.bandwidth, "rounds": self.rounds}
        self._path.write_text(json.dumps(kept, indent=1))

    def known(self) -> Rates:
        """Return the rates as a prediction takes them."""
        return Rates(
            {name: pair[0] for name, pair in self.rates.items()},
            {name: pair[1] for name, pair in self.rates.items()},
            self.bandwidth,
        )


def measure_missing_rates(
    store: Store, shapes: Sequence[tuple[str, str]], folder: Path, threads: int
) -> None:
    """Measure each rate that the shapes need and that is not kept."""
    isa = look_at_machine().isa
    wanted: set[str] = set()
    for shape, mix in shapes:
        wanted |= rate_names(model_of(shape, mix, folder), isa)
    missing = sorted(wanted - store.rates.keys())
    for name, pair in measure_rates(missing, threads).items():
        store.rates[name] = list(pair)
    store.bandwidth = store.bandwidth or measure_memory_bandwidth(threads)
    store.save()


def model_of(shape: str, mix: str, folder: Path) -> Model:
    """Return a shape's facts; its file is written when it is not there."""
    path = folder / f"{shape}-{mix}.gguf"
    if not path.exists():
        write_random_gguf(path.with_suffix(".part"), SHAPES[shape], mix).rename(path)
    return read_place(path)


def measure(shape: str, mix: str, folder: Path, threads: int) -> Round:
    """Measure a shape in the engine."""
    draw = random.Random(shape)
    prompt = [draw.randrange(10, SHAPES[shape].vocabulary) for _ in range(PROMPT)]
    flags = ["--parallel", "1", "--ctx-size", "512", "--cache-ram", "0", "--fit", "off"]
    flags += ["--no-webui", "--threads", str(threads), "--threads-batch", str(threads)]
    seen = run_wheel(folder / f"{shape}-{mix}.gguf", flags, [prompt], DECODE)
    share = min(seen.processor_share, 1.0) if threads == 1 else 1.0
    return {
        "prefill": seen.prefill_tok_per_s / share, "decode": seen.decode_tok_per_s / share,
        "share": share,
    }  # fmt: skip


def report(store: Store, shapes: Sequence[tuple[str, str]], folder: Path) -> None:
    """Print a row a shape, and how many are within the targets; predictions alone before that."""
    print("| shape | predicted decode tok/s | measured | error | predicted prefill | measured "
          "| error | of roofline | rounds |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    errors: list[tuple[float, float]] = []
    isa, rates = look_at_machine().isa, store.known()
    for shape, mix in shapes:
        model = model_of(shape, mix, folder)
        kv = full_cache_bytes(model, CacheShape(PROMPT + DECODE))
        speed = speed_from_rates(model, rates, isa, kv, PROMPT + DECODE // 2, PROMPT)
        if speed is None or speed.prefill is None:
            continue
        decode, prefill = speed.decode.expected, speed.prefill.expected
        rounds = store.rounds.get(f"{shape} {mix}", [])
        if not rounds:
            print(f"| {shape} {mix} | {decode:.1f} | | | {prefill:.0f} | | | | |")
            continue
        seen = median(one["decode"] for one in rounds), median(one["prefill"] for one in rounds)
        errors.append((decode / seen[0] - 1, prefill / seen[1] - 1))
        print(
            f"| {shape} {mix} | {decode:.1f} | {seen[0]:.1f} | {errors[-1][0]:+.0%} "
            f"| {prefill:.0f} | {seen[1]:.0f} | {errors[-1][1]:+.0%} "
            f"| {speed.share_of_bound(seen[0]):.0%} | {len(rounds)} |"
        )
    decodes = sum(abs(one) <= DECODE_SPREAD for one, _ in errors)
    prefills = sum(abs(one) <= PREFILL_SPREAD for _, one in errors)
    print(f"\ndecode within 20 %: {decodes} of {len(errors)}; "
          f"prefill within 30 %: {prefills} of {len(errors)}")  # fmt: skip


if __name__ == "__main__":
    main()
