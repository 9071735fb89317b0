"""Examine this machine or a recorded one, and record this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from enginehouse.core.doctor import find_problems
from enginehouse.core.examination import Examination
from enginehouse.core.facts import Fact, Facts
from enginehouse.core.machine_of import machine_of
from enginehouse.edges.probes import examine, live_source
from enginehouse.edges.recording import Recorder, names_here, open_recording
from enginehouse.edges.seam import Source
from enginehouse.knowledge.machine_facts import load_rules

Measured = Callable[[str], Iterable[Fact]]
"""Returns what was measured earlier on the machine with this fingerprint."""


def examine_here(measured: Measured, source: Source | None = None) -> Examination:
    """Examine this machine now, with what was measured of it earlier."""
    source = source or live_source()
    facts = examine(source)
    facts = facts.plus(measured(machine_of(facts).fingerprint()))
    return _examination("this machine", "live", source.taken_at, facts)


def examine_recording(folder: Path) -> Examination:
    """Examine a recorded machine; nothing of this one is read."""
    source = open_recording(folder)
    meta = source.meta
    found = _examination(meta.name, meta.kind, source.taken_at, examine(source))
    return Examination(
        found.name, found.kind, found.taken_at, found.facts, found.machine, found.problems,
        meta.sources, meta.note,
    )  # fmt: skip


def record_here(folder: Path) -> int:
    """Record this machine into a new folder, without secrets; return the number of files."""
    recorder = Recorder(live_source())
    examine(recorder)
    return recorder.write(folder, names_here())


def _examination(name: str, kind: str, taken_at: float, facts: Facts) -> Examination:
    problems = find_problems(facts, load_rules())
    return Examination(name, kind, taken_at, facts, machine_of(facts), problems)
