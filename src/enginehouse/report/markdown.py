"""A report as Markdown, for an issue or a wiki."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Sequence

from enginehouse.core.report import Failure, Report, Row

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


class Markdown:
    """The Markdown format."""

    name = "md"

    def render(self, report: Report) -> str:
        """Return the whole document."""
        parts = [
            f"# {plain(report.model)} under {plain(report.workload)}",
            f"{plain(report.workload_summary)}. Made on "
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(report.made_at))} UTC.",
            _facts("Machine", report.machine),
            _facts("Model", report.model_facts),
            _front(report),
            "## Leaderboard\n\n" + _leaderboard(report.rows),
            _brought(report),
            _commands(report),
            _failures(report.failures),
            _refusals(report.refusals),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", text.replace("\n", " "))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _facts(title: str, facts: Sequence[tuple[str, str]]) -> str:
    return f"## {title}\n\n" + table(("", ""), [(plain(k), plain(v)) for k, v in facts])


def _front(report: Report) -> str:
    if not report.front:
        return ""
    names = report.front_workloads
    header = ("", *(f"{name}, tok/s" for name in names), "build", "candidate", "why")
    rows = []
    for line in report.front:
        marks = {mark.workload: mark for mark in line.marks}
        cells = [str(marks.get(name, "-")) for name in names]
        sign = "front" if line.is_on_front else "-"
        rows.append((sign, *cells, plain(line.build), plain(line.label), plain(line.why)))
    head = f"## The Pareto front over {plain(', '.join(names))}\n\n"
    note = f"\n\n{plain(report.front_note)}" if report.front_note else ""
    return head + table(header, rows) + note


def _leaderboard(rows: Sequence[Row]) -> str:
    header = (
        "#", "trial", "tok/s", "÷ winner (95 %)", "TTFT p50", "TTFT p90", "ITL p50", "memory",
        "roofline", "KL, top-1", "build", "candidate", "why",
    )  # fmt: skip
    return table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    status = f" ({row.status})" if row.status == "unproven" else ""
    quality = "-"
    if row.kl_mean is not None and row.top1_agreement is not None:
        quality = f"{row.kl_mean:.3f}, {row.top1_agreement:.0%}"
    return (
        str(row.place),
        str(row.trial_id),
        f"{row.tok_per_s:.1f}" if row.tok_per_s else "-",
        f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else "-",
        _ms(row.ttft_p50_s),
        _ms(row.ttft_p90_s),
        _ms(row.itl_p50_s),
        f"{row.memory_bytes / 2**20:,.0f} MiB" if row.memory_bytes else "-",
        f"{row.roofline_share:.0%}" if row.roofline_share else "-",
        quality,
        plain(row.exact_build) + status,
        plain(row.label),
        plain(row.why),
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _brought(report: Report) -> str:
    if not report.brought:
        return ""
    rows = [(plain(b.setting), f"{b.ratio:.2f}×", str(b.trials)) for b in report.brought]
    head = "## What each setting of the winner brought\n\n"
    return head + table(("setting", "with ÷ without", "trials"), rows)


def _commands(report: Report) -> str:
    if not report.rows:
        return ""
    winner = report.rows[0]
    return (
        f"## How to serve it\n\n```sh\n{report.serve_command}\n```\n\n"
        f"What the winner was started with:\n\n```sh\n{shlex.join(winner.argv)}\n```"
    )


def _failures(failures: Sequence[Failure]) -> str:
    parts = []
    for failure in failures:
        lines = [f"log line {e.line}: {e.text}" for e in failure.evidence]
        shown = "\n".join(lines).replace("```", "'''")
        remedies = "".join(f"\n- {plain(remedy)}" for remedy in failure.remedies)
        parts.append(
            f"### Trial {failure.trial_id}: {plain(failure.title)}\n\n{plain(failure.label)}; "
            f"cause `{failure.cause}`\n\n```\n{shown}\n```\n{remedies}"
        )
    return "## What failed, and why\n\n" + "\n\n".join(parts) if parts else ""


def _refusals(refusals: Sequence[str]) -> str:
    if not refusals:
        return ""
    return "## Said during the search\n\n" + "\n".join(f"- {plain(r)}" for r in refusals)


FORMAT = Markdown()
