"""A report as one HTML file that needs nothing else: charts are SVG within it, drawn by pygal.

Everything that a model, a log or an engine may have named is escaped; there is no script.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from enginehouse.core.report import Failure, Report, Row

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.88rem; }
th, td { text-align: left; padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.won td { font-weight: 600; background: var(--soft); }
pre { background: var(--soft); padding: 0.7rem; overflow-x: auto; white-space: pre-wrap; }
.scroll { overflow-x: auto; } .unproven { color: #b45309; }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; } figure svg { width: 100%; }
figcaption { color: #333; padding: 0 1rem 0.7rem; font-size: 0.85rem; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""
WIDTH, HEIGHT = 900, 380
NOT_DRAWN = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
"""What pygal adds for its tooltips, and its remarks; the chart itself needs neither."""
MOST_LABELS = 40


class Html:
    """The HTML format."""

    name = "html"

    def render(self, report: Report) -> str:
        """Return the whole document."""
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(report.made_at))
        title = escape(f"{report.model} under {report.workload}")
        body = [
            f"<h1>{title}</h1><p>{escape(report.workload_summary)}. Made on {made} UTC.</p>",
            _front(report),
            "<h2>Leaderboard</h2>" + _leaderboard(report.rows),
            _brought(report),
            _charts(report),
            _facts("Machine", report.machine),
            _facts("Model", report.model_facts),
            _commands(report),
            _failures(report.failures),
            _refusals(report.refusals),
        ]
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head>"
        )
        return f"{head}<body>{''.join(body)}</body></html>\n"


def _table(header: Sequence[str], rows: Iterable[str]) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _front(report: Report) -> str:
    if not report.front:
        return ""
    names = report.front_workloads
    rows = []
    for line in report.front:
        marks = {mark.workload: mark for mark in line.marks}
        cells = "".join(f'<td class="n">{escape(str(marks.get(name, "–")))}</td>' for name in names)
        won = ' class="won"' if line.is_on_front else ""
        texts = "".join(f"<td>{escape(text)}</td>" for text in (line.build, line.label, line.why))
        rows.append(f"<tr{won}><td>{'front' if line.is_on_front else '–'}</td>{cells}{texts}</tr>")
    header = ("", *(f"{name}, tok/s" for name in names), "build", "candidate", "why")
    head = f"<h2>The Pareto front over {escape(', '.join(names))}</h2>"
    return f"{head}{_table(header, rows)}<p>{escape(report.front_note)}</p>"


def _leaderboard(rows: Sequence[Row]) -> str:
    header = (
        "#", "trial", "tok/s", "÷ winner (95 %)", "TTFT p50", "ITL p50", "memory", "roofline",
        "KL, top-1", "build", "candidate", "why",
    )  # fmt: skip
    return _table(header, [_row(row) for row in rows])


def _row(row: Row) -> str:
    quality = "–"
    if row.kl_mean is not None and row.top1_agreement is not None:
        quality = f"{row.kl_mean:.3f}, {row.top1_agreement:.0%}"
    numbers = (
        str(row.place),
        str(row.trial_id),
        f"{row.tok_per_s:.1f}" if row.tok_per_s else "–",
        f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else "–",
        _ms(row.ttft_p50_s),
        _ms(row.itl_p50_s),
        f"{row.memory_bytes / 2**20:,.0f} MiB" if row.memory_bytes else "–",
        f"{row.roofline_share:.0%}" if row.roofline_share else "–",
        quality,
    )
    cells = "".join(f'<td class="n">{escape(cell)}</td>' for cell in numbers)
    mark = ' <span class="unproven">unproven</span>' if row.status == "unproven" else ""
    texts = f"<td>{escape(row.exact_build)}{mark}</td><td>{escape(row.label)}</td>"
    won = ' class="won"' if row.place == 1 and row.tok_per_s else ""
    return f"<tr{won}>{cells}{texts}<td>{escape(row.why)}</td></tr>"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"


def _brought(report: Report) -> str:
    if not report.brought:
        return ""
    rows = [
        f'<tr><td>{escape(b.setting)}</td><td class="n">{b.ratio:.2f}×</td>'
        f'<td class="n">{b.trials}</td></tr>'
        for b in report.brought
    ]
    head = "<h2>What each setting of the winner brought</h2>"
    return head + _table(("setting", "with ÷ without", "trials"), rows)


def _charts(report: Report) -> str:
    parts = []
    measured = [row for row in report.rows if row.tok_per_s and row.ttft_p50_s is not None]
    if measured:
        parts.append(_figure(_pareto(measured), "Up and left is better: more tokens, sooner."))
    if report.trace:
        parts.append(_figure(_trace(report), "Each dot is a trial; the line is the best so far."))
    if report.memory:
        note = "Predicted parts of each candidate, and the peak that was seen beside them."
        parts.append(_figure(_memory(report), note))
    if report.roofline_tok_per_s and measured:
        note = (
            f"One stream can get {report.roofline_tok_per_s:.0f} tok/s from this memory's "
            "bandwidth: every token reads every weight once."
        )
        parts.append(_figure(_roofline(report, measured), note))
    return "<h2>Plots</h2>" + "".join(parts) if parts else ""


def load_pygal() -> Any:
    """Import pygal without the finder that it leaves among Python's own.

    It is of a kind that Python 3.12 no longer asks, and that makes 3.10 and 3.11 warn at every
    import that comes after.
    """
    import pygal

    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "PluginImportFixer"]
    return pygal


def _figure(chart: Any, caption: str) -> str:
    svg = NOT_DRAWN.sub("", chart.render(is_unicode=True))
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _config(title: str, **more: object) -> dict[str, object]:
    """Return what all charts share: no script, nothing from elsewhere, a white ground."""
    load_pygal()
    from pygal.style import Style

    style = Style(
        background="#ffffff", plot_background="#ffffff", font_family="system-ui, sans-serif",
        colors=("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#65a30d"),
        title_font_size=15, label_font_size=11, legend_font_size=11, major_label_font_size=11,
    )  # fmt: skip
    return {
        "title": title, "style": style, "js": [], "width": WIDTH, "height": HEIGHT,
        "disable_xml_declaration": True, "no_prefix": False, "legend_at_bottom": True,
        "show_x_guides": True, **more,
    }  # fmt: skip


def _pareto(rows: Sequence[Row]) -> Any:
    pygal = load_pygal()
    chart = pygal.XY(
        **_config("Throughput against TTFT", x_title="TTFT p50, ms", y_title="tok/s", stroke=False)
    )
    chart.add("the others", [_point(row) for row in rows if row.place != 1])
    chart.add("the winner", [_point(row) for row in rows if row.place == 1])
    return chart


def _point(row: Row) -> dict[str, object]:
    value = (1000 * (row.ttft_p50_s or 0.0), row.tok_per_s)
    return {"value": value, "label": f"{row.build}: {row.label}"}


def _trace(report: Report) -> Any:
    pygal = load_pygal()
    chart = pygal.XY(**_config("The search", x_title="seconds", y_title="tok/s"))
    dots = [{"value": (d.at_s, d.tok_per_s), "label": d.label} for d in report.trace]
    best = [(d.at_s, d.best) for d in report.trace]
    chart.add("trials", dots, stroke=False)
    chart.add("best so far", best, show_dots=False)
    return chart


def _memory(report: Report) -> Any:
    pygal = load_pygal()
    bars = report.memory[::-1]  # the chart counts from below
    chart = pygal.HorizontalStackedBar(**_config("Memory, MiB", x_title="MiB"))
    names = dict.fromkeys(name for bar in bars for name, _ in bar.parts)
    chart.x_labels = [text for bar in bars for text in ("seen", _short(bar.label))]
    for name in names:
        predicted = [round(dict(bar.parts).get(name, 0.0) / 2**20, 1) for bar in bars]
        chart.add(name, [value for size in predicted for value in (0, size)])
    seen = [round(bar.observed_bytes / 2**20, 1) for bar in bars]
    chart.add("peak that was seen", [value for size in seen for value in (size, 0)])
    return chart


def _roofline(report: Report, rows: Sequence[Row]) -> Any:
    pygal = load_pygal()
    chart = pygal.HorizontalBar(**_config("Decode, % of the roofline", x_title="%"))
    shares = [row for row in rows if row.roofline_share]
    chart.x_labels = [_short(row.label) for row in shares]
    chart.add("of the roofline", [round(100 * (row.roofline_share or 0.0), 1) for row in shares])
    return chart


def _short(text: str) -> str:
    return text if len(text) <= MOST_LABELS else f"{text[: MOST_LABELS - 1]}…"


def _facts(title: str, facts: Sequence[tuple[str, str]]) -> str:
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts]
    return f"<h2>{escape(title)}</h2><table>{''.join(rows)}</table>"


def _commands(report: Report) -> str:
    if not report.rows:
        return ""
    argv = escape(shlex.join(report.rows[0].argv))
    return (
        f"<h2>How to serve it</h2><pre>{escape(report.serve_command)}</pre>"
        f"<p>What the winner was started with:</p><pre>{argv}</pre>"
    )


def _failures(failures: Sequence[Failure]) -> str:
    parts = []
    for failure in failures:
        lines = "\n".join(f"log line {e.line}: {e.text}" for e in failure.evidence)
        remedies = "".join(f"<li>{escape(remedy)}</li>" for remedy in failure.remedies)
        parts.append(
            f"<h3>Trial {failure.trial_id}: {escape(failure.title)}</h3>"
            f"<p>{escape(failure.label)}; cause <code>{escape(failure.cause)}</code></p>"
            f"<pre>{escape(lines)}</pre><ul>{remedies}</ul>"
        )
    return "<h2>What failed, and why</h2>" + "".join(parts) if parts else ""


def _refusals(refusals: Sequence[str]) -> str:
    if not refusals:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in refusals)
    return f"<h2>Said during the search</h2><ul>{items}</ul>"


FORMAT = Html()
