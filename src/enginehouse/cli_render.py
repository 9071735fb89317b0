"""What commands show: text for people, one JSON document for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from enginehouse.cli_progress import mib, outcome_of
from enginehouse.core.errors import ErrorReport, render_error
from enginehouse.core.settings import SETTINGS

if TYPE_CHECKING:
    from enginehouse.app_find import FindResult
    from enginehouse.app_search import FrontResult
    from enginehouse.core.conditions_of_trial import Conditions
    from enginehouse.core.front import FrontRow, Mark
    from enginehouse.core.measurement import Measurement
    from enginehouse.core.model import Model
    from enginehouse.core.quality import Quality
    from enginehouse.core.settings import Settings
    from enginehouse.core.trial import Diagnosis, Trial


def show_json(document: object) -> None:
    """Write one JSON document to stdout."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    click.echo(text)
    sys.stdout.flush()


def show_error(report: ErrorReport, as_json: bool) -> None:
    """Show an error: on stdout as JSON, else on stderr, in colour when that is a terminal."""
    if as_json:
        show_json({"error": report})
        return
    head, _, rest = render_error(report).partition(": ")
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        head = click.style(head, fg="red", bold=True)
    click.echo(f"{head}: {rest}", err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows in aligned columns, the last one ragged; nothing is cut off."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )


def leaderboard(result: FindResult) -> str:
    """Show the candidates best first, each with why it won, lost or failed."""
    rows = []
    for place, (trial, reason) in enumerate(result.rows, start=1):
        answers = _answers(result.ranked[place - 1].quality)
        figures = (str(place), str(trial.id), *_figures(trial), answers)
        rows.append((*figures, result.label(trial), reason))
    columns = ("TOK/S", "TTFT P50", "ITL P50", "MEMORY", "KL, TOP-1")
    header = ("#", "TRIAL", *columns, "CANDIDATE", "WHY")
    builds = dict.fromkeys(trial.build for trial, _ in result.rows)
    exact = [f"{build.label}: sha256 {build.short_digest}" for build in builds]
    return "\n".join((f"{result.model.name} under {result.workload}", table(header, rows), *exact))


def front_text(result: FrontResult) -> str:
    """Show who stands on the Pareto front of several workloads, then who was compared and does not.

    A rate is followed by its share of the best one's, with the 95 % interval that finals show.
    """
    front = result.front
    if front is None:
        return ""
    names = front.workloads
    rows = []
    for place, row in enumerate(front.rows, start=1):
        marks = {mark.workload: mark for mark in row.marks}
        cells = [_mark(marks.get(name)) for name in names]
        memory = mib(row.peak_memory_bytes) if row.peak_memory_bytes else "-"
        label = result.results[0].label(row.trial)
        rows.append((str(place) if row.is_on_front else "-", *cells, memory, label, row.reason))
    header = ("#", *(f"{name.upper()} TOK/S" for name in names), "MEMORY", "CANDIDATE", "WHY")
    lines = [f"{result.model.name}: the Pareto front over {', '.join(names)}", table(header, rows)]
    if front.is_explored_only:
        lines.append(
            "no finals were held under all of them: noise is not known (a longer --budget has some)"
        )
    return "\n".join([*lines, *_served(front.choice(result.prefer), result)])


def _mark(mark: Mark | None) -> str:
    if mark is None:
        return "-"
    share = "best" if mark.share == 1 else f"{mark.share:.0%}"
    if mark.interval is not None:
        share = f"{share}, {mark.interval.low:.2f} to {mark.interval.high:.2f}"
    return f"{mark.tok_per_s:.1f} ({share})"


def _served(row: FrontRow | None, result: FrontResult) -> list[str]:
    """Say what `up` with these workloads serves, and how to serve another one."""
    if row is None:
        return []
    label = result.results[0].label(row.trial)
    name, others = result.model.name, [r.workload for r in result.results]
    others.remove(result.prefer)
    asked = f"--workload {result.prefer} --workload {' --workload '.join(others)}"
    return [
        f"`enginehouse up {name} {asked}` serves the choice for {result.prefer}: {label}",
        f"for another one: --prefer {' or '.join(others)}",
    ]


def _answers(quality: Quality | None) -> str:
    """Show what the exam said of a candidate's answers: mean divergence, equal first choices."""
    if quality is None:
        return "-"
    return f"{quality.kl_mean:.3f}, {quality.top1_agreement:.0%}"


def _figures(trial: Trial) -> tuple[str, str, str, str]:
    memory = mib(trial.peak_memory_bytes) if trial.peak_memory_bytes else "-"
    if trial.measurement is None or not trial.has_measurement:
        return "-", "-", "-", memory
    figures = trial.measurement
    return (
        f"{figures.output_tok_per_s:.1f}",
        f"{figures.ttft_s.p50 * 1000:.0f} ms",
        f"{figures.itl_s.p50 * 1000:.1f} ms",
        memory,
    )


def models_text(registered: Sequence[Model], known: Sequence[tuple[str, str, str]]) -> str:
    """List the models that are here, then those that can be fetched by name."""
    here = {model.name for model in registered}
    rows = [
        (model.name, "here", mib(model.file_bytes), model.quantization, model.path)
        for model in registered
    ]
    rows += [(name, "fetch", "-", "-", source) for name, source, _ in known if name not in here]
    return table(("NAME", "STATE", "SIZE", "QUANT", "WHERE"), rows)


def known_model_text(name: str, source: str, note: str) -> str:
    """Show what is known of a model that is not here."""
    facts = (("name", name), ("source", source), ("state", "not fetched yet"), ("note", note))
    lines = [f"{key:<16}{value}" for key, value in facts]
    return "\n".join([*lines, f"{'to fetch it':<16}enginehouse models add {name}"])


def trials_text(trials: Sequence[Trial]) -> str:
    """List trials, one a line."""
    if not trials:
        return "no trials yet: run `enginehouse find demo`"
    rows = [
        (str(trial.id), _when(trial), trial.model_name, trial.workload, outcome_of(trial))
        for trial in trials
    ]
    return table(("ID", "STARTED", "MODEL", "WORKLOAD", "OUTCOME"), rows)


def trial_text(trial: Trial) -> str:
    """Show one trial's record without its memory timeline, which --json has."""
    ended = trial.signal or ("-" if trial.exit_code is None else f"exit code {trial.exit_code}")
    stages = ", ".join(f"{entered.stage.value} at {entered.at_s:.1f} s" for entered in trial.stages)
    lines = [
        f"trial {trial.id}: {trial.model_name} under {trial.workload}, {_when(trial)}",
        f"  outcome    {outcome_of(trial)}",
        f"  build      {trial.build.label}, sha256 {trial.build.short_digest}",
        f"  settings   {', '.join(f'{name} {value}' for name, value in trial.candidate.settings)}",
        f"  argv       {command_line(trial.argv)}",
        f"  stages     {stages or 'none was recorded'}",
        f"  ended      {ended}, after {trial.duration_s:.1f} s",
        f"  memory     {mib(trial.peak_memory_bytes)} at most, {len(trial.memory)} samples",
        f"  log        {trial.log_path}",
    ]
    if trial.fence:
        lines.append(f"  fence      {trial.fence}")
    if trial.conditions is not None:
        lines.append(f"  conditions {_conditions(trial.conditions)}")
    if trial.cool_down is not None:
        lines.append(f"  cool-down  {trial.cool_down.describe()}")
    if trial.remedy is not None:
        lines.insert(1, f"  came from  {trial.remedy.describe()}")
    if trial.diagnosis is not None:
        lines += _diagnosis_lines(trial.diagnosis)
    if trial.measurement is not None:
        figures = trial.measurement
        for name in ("ttft_s", "itl_s", "tpot_s", "latency_s"):
            spread = getattr(figures, name)
            lines.append(
                f"  {name:<11}p50 {spread.p50:.4f}  p90 {spread.p90:.4f}  p99 {spread.p99:.4f}"
                f"  ({spread.samples} samples)"
            )
        lines.append(
            f"  tokens     {figures.prompt_tokens} prompt ({figures.cached_tokens} cached), "
            f"{figures.output_tokens} output; {figures.requests} {_kind(figures)}, "
            f"{figures.failed} failed"
        )
        lines.append(f"  repeated   {figures.repeated_ngram_share:.1%} of output 4-grams")
        if figures.roofline_share is not None:
            lines.append(f"  roofline   {figures.roofline_share:.0%} of the decode roofline")
    return "\n".join(lines)


def _conditions(conditions: Conditions) -> str:
    """Show under what conditions a load was measured."""
    said = [f"load {conditions.load_average:.1f}", f"others {conditions.other_cores:.2f} cores"]
    if conditions.governor:
        said.append(f"governor {conditions.governor}")
    if conditions.clock_mhz is not None:
        said.append(f"{conditions.clock_mhz:.0f} MHz")
    if conditions.temperature_c is not None:
        said.append(f"{conditions.temperature_c:.0f} °C")
    if conditions.disturbance:
        said.append(f"disturbed: {conditions.disturbance}")
    return ", ".join(said)


def _diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """Show a diagnosis in the words of `explain`."""
    from enginehouse.core.diagnose_document import page_of

    sure = f" ({diagnosis.confidence})" if diagnosis.confidence else ""
    lines = [f"  cause      {diagnosis.cause or 'unknown'}{sure}: {diagnosis.title}"]
    lines += [f"  log {evidence.line:<7}{evidence.text}" for evidence in diagnosis.evidence]
    lines += [f"  or         {cause}" for cause in diagnosis.alternatives]
    lines += [f"  try        {remedy}" for remedy in diagnosis.remedies]
    lines += [f"  source     {source}" for source in diagnosis.sources]
    page = page_of(diagnosis.cause)
    return [*lines, f"  more       {page}"] if page else lines


def settings_rows(settings: Settings) -> list[dict[str, object]]:
    """Return every setting with its value, origin and meaning."""
    return [
        {
            "key": key,
            "value": resolved.value,
            "origin": resolved.origin,
            "default": SETTINGS[key].default,
            "variable": SETTINGS[key].variable,
            "summary": SETTINGS[key].summary,
        }
        for key, resolved in settings.values.items()
    ]


def _when(trial: Trial) -> str:
    return datetime.fromtimestamp(trial.started_at).strftime("%Y-%m-%d %H:%M:%S")


def command_line(argv: Sequence[str]) -> str:
    """Show an argv as one would type it in a shell."""
    import shlex

    return shlex.join(argv)


def curl_example(url: str, model_name: str) -> str:
    """Return a command that streams a chat completion from the endpoint."""
    import json
    import shlex

    body = {
        "model": model_name,
        "messages": [{"role": "user", "content": "Name three trees."}],
        "stream": True,
    }
    return (
        f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}"
    )


def _kind(figures: Measurement) -> str:
    return "requests (shorter ones, to explore)" if figures.is_short else "requests"
