"""A report says what was found, in every format, whatever names it is given."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from enginehouse.app_report import sources_of
from enginehouse.core.candidate import Candidate
from enginehouse.core.contest import FINAL
from enginehouse.core.quality import Quality
from enginehouse.core.report import Report, Sources, build_report
from enginehouse.core.trial import Diagnosis, Evidence, Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines import load_engines
from enginehouse.report import load_formats
from tests.unit.values import MACHINE, MODEL, WHEEL, trial

BASE = Candidate("llama.cpp", WHEEL.digest, (("context", 1024), ("slots", 1)))
FAST = BASE.with_settings(slots=8)
LOSSY = BASE.with_settings(quantization="Q2_K")
BROKEN = BASE.with_settings(kv_type="q9_9")
HOSTILE = '"><script>alert(1)</script>|`*'
BAD = Quality(0.4, 0.3, 0.5, 2.0, 0.5, 0.4, 0.6, 192, 0.1, 0.1, 3, False, "KL 0.400 is above 0.2")


def trials_of(hostile: str = "") -> tuple[Trial, ...]:
    """Two finalists in two rounds, one refused for its answers, one that failed."""
    failed = dataclasses.replace(
        trial(BROKEN, None, Outcome.EXITED),
        diagnosis=Diagnosis(
            "config.invalid_value", f"no such type{hostile}", (Evidence(7, f"q9_9{hostile}"),),
            ("use f16",),
        ),
    )  # fmt: skip
    finals = [
        dataclasses.replace(trial(c, rate), purpose=FINAL)
        for rate_of in ({BASE: 100.0, FAST: 150.0}, {BASE: 104.0, FAST: 155.0})
        for c, rate in rate_of.items()
    ]
    exam = dataclasses.replace(trial(LOSSY, None, Outcome.EXAMINED), quality=BAD)
    every = [trial(BASE, 101), trial(LOSSY, 300), exam, failed, *finals]
    return tuple(
        dataclasses.replace(t, id=number, started_at=10.0 * number, argv=("server", hostile))
        for number, t in enumerate(every, start=1)
    )


def report_of(hostile: str = "") -> Report:
    trials = trials_of(hostile)
    machine = dataclasses.replace(MACHINE, memory_bandwidth_bytes_per_s=20e9)
    return build_report(
        Sources(
            trials, {WHEEL.digest: BASE}, dataclasses.replace(MODEL, name=f"tiny{hostile}"),
            machine, WORKLOADS["chat"], (f"Q6_K is not made{hostile}",),
            {t.id: (("weights", 96e6), ("KV cache", 10e6)) for t in trials if t.has_measurement},
            {"llama.cpp": "unproven"}, 1.8e9,
        )
    )  # fmt: skip


def test_the_winner_the_refused_and_the_failed_are_told_apart() -> None:
    """Each row has its place and its reason; a fast one whose answers broke does not win."""
    rows = {row.label: row for row in report_of().rows}
    assert rows["slots 8"].place == 1
    assert "95 % interval" in rows["slots 8"].why
    assert rows["quantization Q2_K"].why == "refused: KL 0.400 is above 0.2"
    assert rows["quantization Q2_K"].kl_mean == 0.4
    assert rows["kv_type q9_9"].why.startswith("failed")
    assert rows["minimal"].interval is not None


def test_who_the_search_refused_without_an_exam_does_not_win_in_the_report() -> None:
    """No time was left to judge its answers: the records say so, and the report holds to it."""
    why = "its answers may differ, and the budget left no time to judge them"
    unjudged = BASE.with_settings(kv_type="q4_0")
    fastest = dataclasses.replace(trial(unjudged, 900), id=9, purpose=FINAL, refused=why)
    sources = Sources(
        (*trials_of(), fastest), {WHEEL.digest: BASE}, MODEL, MACHINE, WORKLOADS["chat"], (), {},
        {"llama.cpp": ""}, 1.8e9,
    )  # fmt: skip
    rows = {row.label: row for row in build_report(sources).rows}
    assert rows["slots 8"].place == 1
    assert rows["kv_type q4_0"].why == f"refused: {why}"


def test_memory_is_predicted_of_the_file_that_was_loaded() -> None:
    """A re-quantized file has bars of its own size, and none where the file is gone."""
    measured = tuple(t for t in trials_of() if t.has_measurement)
    small = dataclasses.replace(MODEL, quantization="Q2_K", weight_bytes=MODEL.weight_bytes // 3)
    sources = sources_of(measured, None, MODEL, load_engines(), MACHINE, variants={"Q2_K": small})
    weights = {t.candidate.id: dict(sources.predicted[t.id])["weights"] for t in measured}
    assert weights[LOSSY.id] < weights[BASE.id] / 2
    without = sources_of(measured, None, MODEL, load_engines(), MACHINE)
    assert {t.id for t in measured if t.id not in without.predicted} == {
        t.id for t in measured if t.candidate.id == LOSSY.id
    }


def test_a_failure_has_its_cause_and_its_lines() -> None:
    """Nobody has to open the log for the line that decided."""
    (failure,) = report_of().failures
    assert (failure.cause, failure.evidence[0].line) == ("config.invalid_value", 7)


def test_the_trace_shows_the_best_so_far() -> None:
    """It never falls, and each measured trial is in it."""
    trace = report_of().trace
    assert [dot.best for dot in trace] == sorted(dot.best for dot in trace)
    assert len(trace) == 6


@pytest.mark.parametrize("name", ["md", "json", "html"])
def test_every_format_renders_everything(name: str) -> None:
    """Winner, refusals, failures and the command to serve it are in each document."""
    text = load_formats()[name].render(report_of())
    for words in ("slots 8", "Q6", "config.invalid", "enginehouse serve", "152"):
        assert words in text.replace("\\", ""), (name, words)


def test_json_is_one_document_with_its_schema() -> None:
    """A program can rely on the fields of `core/report.py`."""
    document = json.loads(load_formats()["json"].render(report_of()))
    assert document["schema"] == 1
    assert document["rows"][0]["label"] == "slots 8"


class Tags(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else_and_holds_every_plot() -> None:
    """Four plots as SVG, no script, no link to anywhere."""
    page = Tags()
    page.feed(load_formats()["html"].render(report_of()))
    assert page.tags.count("svg") >= 3
    assert "script" not in page.tags
    assert not [link for link in page.links if not link.startswith("#")]
    text = " ".join(page.text)
    for title in ("Throughput against TTFT", "The search", "Memory, MiB"):
        assert title in text


def test_hostile_names_stay_text() -> None:
    """A model, a log or an engine that is named like markup does nothing in the page."""
    page = Tags()
    text = load_formats()["html"].render(report_of(HOSTILE))
    page.feed(text)
    assert "script" not in page.tags
    assert "<script>alert" not in text
    markdown = load_formats()["md"].render(report_of(HOSTILE))
    outside = "".join(markdown.split("```")[::2])
    assert "<script>" not in outside.replace("\\<", "")


def test_several_workloads_have_their_front_in_every_format() -> None:
    """Who is on it, whom each chose and what `up` serves is told, with hostile names as text."""
    crowd = [
        dataclasses.replace(
            trial(c, rate), workload="crowd", purpose=FINAL, id=number, argv=("server",)
        )
        for number, (c, rate) in enumerate(
            ((BASE, 200.0), (FAST, 120.0), (BASE, 202.0), (FAST, 121.0)), start=50
        )
    ]
    sources = Sources(
        trials_of(), {WHEEL.digest: BASE}, dataclasses.replace(MODEL, name=f"tiny{HOSTILE}"),
        MACHINE, WORKLOADS["chat"], (), {}, {}, 1.8e9, (tuple(crowd),), "crowd",
    )  # fmt: skip
    report = build_report(sources)
    assert report.front_workloads == ("chat", "crowd")
    lines = {line.label: line for line in report.front}
    assert lines["slots 8"].is_on_front
    assert lines["slots 8"].choice_for == ("chat",)
    assert lines["minimal"].choice_for == ("crowd",)
    assert lines["minimal"].marks[0].share < 0.7
    assert "--workload crowd --workload chat serves the choice for crowd: minimal" in (
        report.front_note
    )
    texts = {name: form.render(report) for name, form in load_formats().items()}
    assert "## The Pareto front over chat, crowd" in texts["md"]
    assert "<h2>The Pareto front over chat, crowd</h2>" in texts["html"]
    assert "<script" not in texts["html"]
    assert json.loads(texts["json"])["front"][0]["label"] == "slots 8"
    assert report_of().front == ()
