"""`enginehouse fit`: what fits this machine, part by part, as a picture or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import Call, model_argument
from enginehouse.core.conditions import show_size
from enginehouse.core.fit import FITS, NOT
from enginehouse.core.fit_model import ENGINES, FitRequest

if TYPE_CHECKING:
    from enginehouse.app_fit import FitReport
    from enginehouse.core.estimate import MemoryPart
    from enginehouse.core.estimate_speed import Speed
    from enginehouse.core.fit import FitRow

BAR_CELLS = 60
COLOURS = ("blue", "cyan", "green", "yellow", "magenta", "red", "bright_blue", "bright_green")
GLYPHS = "█▓▒░▚▞▤▥"
FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@model_argument
@click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens of one sequence.")
@click.option("--sequences", type=click.IntRange(1), default=1, metavar="N", help="At once.")
@click.option("--engine", type=click.Choice(ENGINES), help="Only this engine.")
@click.option("--kv-type", metavar="TYPE", help="f16, q8_0, q4_0 (llama.cpp), auto, fp8 (vLLM).")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0.01, 1.0),
    metavar="SHARE",
    help="Judge this share of vLLM's instead of looking for one that fits.",
)
@click.option(
    "--observed",
    type=click.FloatRange(0, min_open=True),
    metavar="TOK_PER_S",
    help="A decode rate that was seen: say what share of the roofline it is.",
)
@click.option("--measure", is_flag=True, help="Measure this engine's products first (20 s).")
@click.option("--ask-engine", is_flag=True, help="Ask llama.cpp too, by a dry load.")
@click.option("--snapshot", type=FOLDER, metavar="DIR", help="Judge for a recorded machine.")
def fit(
    call: Call, model: str | None, context: int | None, sequences: int, engine: str | None,
    kv_type: str | None, gpu_memory_utilization: float | None, observed: float | None,
    measure: bool, ask_engine: bool, snapshot: Path | None,
) -> None:  # fmt: skip
    """Predict whether and how fast MODEL would run here; without MODEL, rank the local ones."""
    from enginehouse.cli_progress import open_progress

    request = FitRequest(
        context=context or 0,
        sequences=sequences,
        engine=engine or "",
        kv_type=(kv_type or "").lower(),
        utilization=gpu_memory_utilization or 0.0,
    )
    with call.house() as house:
        found = house.inspect_model(model, open_progress()) if model else None
        if measure and snapshot is None:
            house.measure_rates(found)
        if found is None:
            reports = house.fit_all(request, snapshot)
            call.show({"models": [document_of(report) for report in reports]},
                      lambda: ranking(reports))  # fmt: skip
            return
        report = house.fit(found, request, snapshot, ask_engine)
    call.show(document_of(report, observed), lambda: page(report, observed))


def document_of(report: FitReport, observed: float | None = None) -> dict[str, object]:
    """Return a report as one JSON document."""
    return {
        "model": report.model.name,
        "machine": report.machine_name,
        "rows": [row_document(row, observed) for row in report.rows],
        "asked": report.asked,
        "observed_tok_per_s": observed,
    }


def row_document(row: FitRow, observed: float | None) -> dict[str, object]:
    """Return one row as a JSON object; bytes throughout."""
    return {
        "engine": row.engine,
        "quantization": row.quantization,
        "kv_type": row.kv_type,
        "context": row.context,
        "sequences": row.sequences,
        "settings": row.settings,
        "verdict": row.verdict,
        "line": row.line,
        "parts": row.estimate.parts,
        "total": row.estimate.total,
        "resident": row.estimate.resident,
        "budget": row.budget,
        "most_context": row.most_context,
        "most_sequences": row.most_sequences,
        "speed": row.speed,
        "speed_at_context": row.speed_at_context,
        "share_of_roofline": share(row.speed, observed),
        "correction": row.correction,
        "notes": row.notes,
    }


def share(speed: Speed | None, observed: float | None) -> float | None:
    """Return what share of the roofline an observed rate is, None where either is missing."""
    return speed.share_of_bound(observed) if speed and observed else None


def page(report: FitReport, observed: float | None = None) -> str:
    """Show a report for people: a verdict, a bar and the parts for each row."""
    model = report.model
    head = f"{model.name} ({model.quantization}, {model.format}) on {report.machine_name}"
    lines = [click.style(head, bold=True) if sys.stdout.isatty() else head]
    for row in report.rows:
        lines += ["", *row_lines(row, observed)]
    if not report.rows:
        lines.append("no engine that is known reads this model here")
    lines += ["", *report.asked] if report.asked else []
    return "\n".join(lines)


def row_lines(row: FitRow, observed: float | None) -> Iterator[str]:
    """Show one row."""
    title = f"{row.engine}, KV {row.kv_type}, {row.sequences} × {row.context:,} tokens"
    yield f"{title}: {_verdict(row)}"
    if row.settings:
        yield f"  {row.settings}"
    parts = [part for part in row.estimate.parts if not part.is_reclaimable]
    if parts:
        yield from (f"  {line}" for line in bar(parts, _room(row)))
        yield from (f"  {line}" for line in legend(parts))
    for part in row.estimate.parts:
        if part.is_reclaimable and part.bytes.expected >= 2**20:
            size = show_size(part.bytes.expected)
            yield f"  beside it {size} of {part.name}, which the kernel can take back"
    if row.estimate.parts:
        yield f"  largest context {row.most_context:,}; most sequences {row.most_sequences}"
    yield from (f"  {line}" for line in speed_lines(row, observed))
    if row.correction:
        learnt = row.correction
        trials = "1 trial" if learnt.trials == 1 else f"{learnt.trials} trials"
        yield f"  corrected by ×{learnt.factor:.3f}, learnt from {trials} here ({learnt.key})"
    elif row.engine == "llama.cpp" and parts:
        yield "  not corrected: no trial of this architecture with this build here yet"
    yield from (f"  {note}" for note in row.notes)


def _verdict(row: FitRow) -> str:
    if not sys.stdout.isatty():
        return row.line
    colour = {FITS: "green", NOT: "red"}.get(row.verdict, "yellow")
    return click.style(row.line, fg=colour)


def _room(row: FitRow) -> float:
    return row.budget.host + (row.budget.device or 0.0)


def bar(parts: Sequence[MemoryPart], room: float) -> list[str]:
    """Draw the parts as one stacked bar against what may be used, two lines."""
    from rich.console import Console
    from rich.text import Text

    total = sum(part.bytes.expected for part in parts)
    scale = BAR_CELLS / max(total, room, 1.0)
    text = Text()
    used = 0
    passed = 0.0
    for number, part in enumerate(parts):
        passed += part.bytes.expected
        cells = round(passed * scale) - used
        used += cells
        glyph = GLYPHS[number % len(GLYPHS)]
        text.append(glyph * cells, style=COLOURS[number % len(COLOURS)])
    limit = round(room * scale)
    text.append("·" * max(limit - used, 0))
    console = Console(width=BAR_CELLS + 20, no_color=not sys.stdout.isatty())
    with console.capture() as drawn:
        console.print(text, end="")
    marker = " " * max(limit - 1, 0) + f"▲ {show_size(room)} may be used"
    return [drawn.get().rstrip("\n"), marker]


def legend(parts: Sequence[MemoryPart]) -> Iterator[str]:
    """List the parts with low, expected and high."""
    width = max(len(part.name) for part in parts)
    for number, part in enumerate(parts):
        sizes = part.bytes
        spread = ""
        if sizes.low != sizes.high:
            spread = f"  ({show_size(sizes.low)} to {show_size(sizes.high)})"
        note = f"  {part.note}" if part.note else ""
        glyph = GLYPHS[number % len(GLYPHS)]
        yield f"{glyph} {part.name:<{width}} {show_size(sizes.expected):>10}{spread}{note}"
    low, expected, high = (
        sum(getattr(part.bytes, name) for part in parts) for name in ("low", "expected", "high")
    )
    spread = f"  ({show_size(low)} to {show_size(high)})"
    yield f"  {'total':<{width}} {show_size(expected):>10}{spread}"


def speed_lines(row: FitRow, observed: float | None) -> Iterator[str]:
    """Say how fast it would be, and from which roofline."""
    speed = row.speed
    if speed is None:
        yield "speed not predicted without the memory's bandwidth: enginehouse doctor --measure"
        return
    decode = speed.decode
    yield (
        f"decode {decode.expected:.1f} tok/s ({decode.low:.1f} to {decode.high:.1f}) at an empty "
        f"context; roofline {speed.bound:.1f} = {speed.bandwidth_bytes_per_s / 1e9:.1f} GB/s ÷ "
        f"{speed.bytes_per_token / 1e9:.2f} GB a token; from {speed.basis}"
    )
    if speed.product_bound:
        limit = "the products" if speed.product_bound < speed.bound else "memory"
        yield (
            f"the engine's products alone would decode {speed.product_bound:.1f} tok/s from the "
            f"processor's caches: {limit} is the limit"
        )
    if row.speed_at_context:
        yield f"decode {row.speed_at_context.decode.expected:.1f} tok/s at a full context"
    if speed.prefill:
        prefill = speed.prefill
        yield f"prefill {prefill.expected:.0f} tok/s ({prefill.low:.0f} to {prefill.high:.0f})"
    if observed:
        yield (
            f"{observed:g} tok/s observed is {speed.share_of_bound(observed):.0%} of the decode "
            "roofline"
        )


def ranking(reports: Sequence[FitReport]) -> str:
    """Rank local models: what fits first, then the fastest."""
    from enginehouse.cli_render import table

    if not reports:
        return "no model is registered here: enginehouse models list"
    rows = []
    for report in reports:
        for row in report.rows[:1]:
            rate = f"{row.speed.decode.expected:.1f}" if row.speed else "?"
            size = show_size(row.estimate.total.expected)
            rows.append((report.model.name, row.engine, row.kv_type, rate, size, row.line))
    return table(("MODEL", "ENGINE", "KV", "DECODE TOK/S", "MEMORY", "VERDICT"), rows)
