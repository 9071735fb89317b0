"""Compare predicted with measured peak memory of llama.cpp's server, case by case.

    ./dev bench fit_accuracy [--folder DIR] [--only measure|report] [--limit N]

Each case (shape × quantization × context × slots × KV type × flash attention) is written as a file
with random weights, served by the real engine, and asked one prompt a slot; docs/fit.md says what
is measured. Results are kept in DIR/results.json, so that a run can be continued; files are kept
in DIR too (17 GB). Side by side: the estimate that Ollama makes (file size and an f16 KV cache) and
`llama-fit-params`, where a native build is on PATH or in $LLAMA_FIT_PARAMS.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.engine_memory import run_wheel  # noqa: E402
from benchmarks.fit_cases import Case, cases  # noqa: E402
from benchmarks.random_gguf import write_random_gguf  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from enginehouse.core.correction import cautious_factor  # noqa: E402
from enginehouse.core.estimate import MemoryEstimate  # noqa: E402
from enginehouse.core.estimate_llama import LlamaSettings, estimate_llama  # noqa: E402
from enginehouse.core.model import Model  # noqa: E402
from enginehouse.edges.dry_load import dry_load_flags, find_program, parse_answer  # noqa: E402
from enginehouse.edges.model_files import read_place  # noqa: E402
from enginehouse.edges.probes import look_at_machine  # noqa: E402

DECODE_TOKENS = 6
CUBE = 2**20
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One case: measured and predicted, in bytes; `dry` and `ollama` are the others' estimates."""

    case: Case
    architecture: str
    resident: int
    needed: int
    predicted: MemoryEstimate
    ollama: float
    dry: float | None


def main() -> None:
    """Measure what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fit-accuracy")
    parser.add_argument("--only", choices=("measure", "report"), default="")
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = options.folder / "results.json"
    results: Results = json.loads(store.read_text()) if store.exists() else {}
    chosen = cases()[: options.limit]
    if options.only != "report":
        for case in chosen:
            if case.key not in results:
                results[case.key] = measure(case, options.folder)
                store.write_text(json.dumps(results, indent=1))
                sys.stderr.write(f"{time.strftime('%H:%M:%S')} {case.key}\n")
    if options.only != "measure":
        report(list(rows_of(chosen, results, options.folder)))


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case in the engine; a failure is a result too."""
    flags = [
        *("--parallel", str(case.slots), "--ctx-size", str(case.context * case.slots)),
        *("--cache-type-k", case.kv_type, "--cache-type-v", case.kv_type),
        *("--flash-attn", case.flash, "--ubatch-size", str(case.ubatch)),
        *("--cache-ram", "0", "--fit", "off", "--no-webui"),
    ]
    draw = random.Random(case.key)
    vocabulary = SHAPES[case.shape].vocabulary
    prompts = [
        [draw.randrange(10, vocabulary) for _ in range(case.prompt)] for _ in range(case.slots)
    ]
    try:
        path = file_of(case, folder)
        return dataclasses.asdict(run_wheel(path, flags, prompts, DECODE_TOKENS, counts_pages=True))
    except (RuntimeError, OSError) as problem:
        return {"error": str(problem)}


def file_of(case: Case, folder: Path) -> Path:
    """Return the case's model file, written when it is not there."""
    path = folder / case.file
    if not path.exists():
        part = write_random_gguf(path.with_suffix(".part"), SHAPES[case.shape], case.mix)
        part.rename(path)
    return path


def rows_of(chosen: Sequence[Case], results: Results, folder: Path) -> Iterable[Row]:
    """Predict every case that was measured."""
    machine, models = look_at_machine(), dict[str, Model]()
    program = os.environ.get("LLAMA_FIT_PARAMS") or find_program(None)
    if program is None:
        print("llama-fit-params is not here: its column stays empty\n")
    for case in chosen:
        result = results.get(case.key)
        if result is None or "error" in result:
            continue
        path = file_of(case, folder)
        model = models.setdefault(case.file, read_place(path))
        settings = LlamaSettings(
            case.context, case.slots, case.ubatch, case.kv_type, case.flash != "off",
            prompt_tokens=case.prompt + DECODE_TOKENS, isa=machine.isa,
        )  # fmt: skip
        yield Row(
            case=case,
            architecture=model.architecture,
            resident=int(result["anonymous_peak"]) + int(result["file_peak"]),
            needed=int(result["anonymous_peak"]) + int(result["file_used"]),
            predicted=estimate_llama(model, settings),
            ollama=ollama_estimate(model, case),
            dry=ask_dry(program, path, case) if program else None,
        )


def ollama_estimate(model: Model, case: Case) -> float:
    """Return file size plus an f16 KV cache of the whole context in every layer."""
    elements = model.k_elements_per_token + model.v_elements_per_token
    return model.file_bytes + 2.0 * elements * case.context * case.slots


def ask_dry(program: str, path: Path, case: Case) -> float | None:
    """Return what `llama-fit-params` says that the host needs, in bytes."""
    flags = dry_load_flags(str(path), case.context, case.slots, case.kv_type)
    flags += ["--flash-attn", case.flash, "--ubatch-size", str(case.ubatch)]
    done = subprocess.run(
        [program, *flags], capture_output=True, text=True, errors="replace", check=False
    )
    found = parse_answer(done.stdout)
    return float(sum(sum(sizes) for _, sizes in found) * CUBE) if found else None


def report(rows: Sequence[Row]) -> None:
    """Print a row a case, and what share of them each estimate gets right."""
    corrected = [own(row) * correction(row, rows, own) for row in rows]
    taught = [simple(row) * correction(row, rows, simple) for row in rows]
    print(
        "| case | measured MiB | predicted | corrected | llama-fit-params | file + f16 KV "
        "| needed MiB | predicted |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row, better in zip(rows, corrected, strict=True):
        dry = error(row.dry, row.resident) if row.dry else ""
        print(
            f"| {row.case.key} | {row.resident / CUBE:.0f} "
            f"| {error(row.predicted.resident.expected, row.resident)} "
            f"| {error(better, row.resident)} | {dry} | {error(row.ollama, row.resident)} "
            f"| {row.needed / CUBE:.0f} | {error(row.predicted.total.expected, row.needed)} |"
        )
    measured = [float(row.resident) for row in rows]
    expected = [row.predicted.resident.expected for row in rows]
    needed = [float(row.needed) for row in rows]
    print(f"\n{len(rows)} cases; share within 3 % / 5 % / 10 %, median and worst error")
    summary("resident, uncorrected", expected, measured)
    summary("resident, corrected (of the others of its architecture)", corrected, measured)
    summary("needed, uncorrected", [row.predicted.total.expected for row in rows], needed)
    summary("file size + f16 KV", [row.ollama for row in rows], measured)
    summary("file size + f16 KV, corrected in the same way", taught, measured)
    asked = [(row.dry, float(row.resident)) for row in rows if row.dry]
    if asked:
        summary("llama-fit-params", [pair[0] for pair in asked], [pair[1] for pair in asked])


def correction(row: Row, rows: Sequence[Row], predict: Callable[[Row], float]) -> float:
    """Return what the other cases of the same architecture teach of a prediction, 1 without any."""
    others = sorted(
        other.resident / predict(other) for other in rows
        if other.architecture == row.architecture and other.case != row.case
    )  # fmt: skip
    return cautious_factor(others) if others else 1.0


def own(row: Row) -> float:
    """Return our prediction of resident memory."""
    return row.predicted.resident.expected


def simple(row: Row) -> float:
    """Return the prediction by file size and KV cache."""
    return row.ollama


def error(predicted: float, measured: float) -> str:
    """Show a prediction's error."""
    return f"{predicted / measured - 1:+.1%}"


def summary(name: str, predicted: Sequence[float], measured: Sequence[float]) -> None:
    """Print how many predictions are near, and the median and worst error."""
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    shares = " / ".join(
        f"{sum(one <= limit for one in errors) / len(errors):.0%}" for limit in (0.03, 0.05, 0.1)
    )
    print(f"- {name}: {shares}; median {median(errors):.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
