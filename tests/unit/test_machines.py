"""What doctor says of every recorded machine, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginehouse.core.doctor import find_problems
from enginehouse.core.facts import Fact, Facts
from enginehouse.core.redact import Names, redact
from enginehouse.edges.recording import KINDS, parse_time
from enginehouse.knowledge.machine_facts import load_rules
from tests.machines import (
    FOLDER,
    MACHINES,
    PAGE,
    examine,
    json_of,
    page_with,
    problems_table,
    text_of,
)

REQUIRED = {
    "orin-nx-16gb-l4t-36.4.3", "orin-nx-16gb-l4t-36.4.7", "orin-nx-16gb-l4t-39.2",
    "orin-nano-8gb-super", "agx-orin-64gb", "thor", "xavier-nx-jetpack-5", "x86-one-rtx-3090",
    "x86-two-rtx-4090", "dgx-spark", "strix-halo", "raspberry-pi-5", "wsl2-gtx-1650",
    "container-2-cores-4gb",
}  # fmt: skip

SHOWN_BY_FACTS: dict[str, dict[str, object]] = {
    "container.cpu_limit": {"cpu.usable_cores": 2, "cpu.physical_cores": 8},
    "container.image_for_older_l4t": {"jetson.l4t_major": 38, "image.0.for_l4t_major": 36},
    "driver.module_not_loaded": {"nvidia.smi_error": "NVIDIA-SMI has failed"},
    "environment.expandable_segments_on_tegra": {
        "environment.PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "jetson.l4t": "36.4.3",
    },
    "environment.gpu_hidden": {
        "environment.CUDA_VISIBLE_DEVICES": "-1", "gpu.nvidia0.name": "NVIDIA A GPU",
    },
    "jetson.mixed_packages": {"jetson.l4t_mixed": True},
    "memory.jetson.nvmap_limit_jetpack_5": {"jetson.l4t": "35.6.3"},
    "memory.limit_nearly_reached": {
        "memory.limit_bytes": 1 << 32, "memory.limit_used_bytes": 4_100_000_000,
    },
}  # fmt: skip
"""Problems that no recorded machine has, with facts that show them."""


@pytest.mark.parametrize("name", MACHINES)
def test_doctor_says_what_was_reviewed(name: str) -> None:
    """Page and JSON of a recorded machine are, whole, what lies reviewed beside it."""
    found = examine(name)
    assert text_of(found) == (FOLDER / name / "doctor.txt").read_text(encoding="utf-8")
    assert json_of(found) == (FOLDER / name / "doctor.json").read_text(encoding="utf-8")


def test_every_kind_of_machine_is_recorded() -> None:
    """The machines that the project promises to know are all there."""
    assert set(MACHINES) >= REQUIRED


@pytest.mark.parametrize("name", MACHINES)
def test_a_recording_says_where_it_is_from(name: str) -> None:
    """A recording is named after its folder, dated, and says how it was made and from what."""
    meta = json.loads((FOLDER / name / "meta.json").read_text(encoding="utf-8"))
    assert meta["name"] == name
    assert meta["kind"] in KINDS
    assert parse_time(meta["taken"]) > 0
    assert meta["sources"]


@pytest.mark.parametrize("name", MACHINES)
def test_a_recording_holds_no_secrets(name: str) -> None:
    """Nothing in a recording is what redaction takes out: addresses, serial numbers, keys."""
    for path in sorted((FOLDER / name).rglob("*")):
        if path.is_file() and path.name != "meta.json":
            text = path.read_text(encoding="utf-8")
            assert redact(text, Names()) == text, path


@pytest.mark.parametrize("name", MACHINES)
def test_every_fact_has_an_origin(name: str) -> None:
    """A fact names the file, command, library, table or other facts that it is from."""
    starts = ("file ", "command ", "library ", "knowledge ", "from ", "measured ")
    for fact in examine(name).facts:
        assert fact.origin.startswith(starts), fact


def test_every_problem_is_shown() -> None:
    """Each problem that is known is had by a recorded machine or by a table of facts here."""
    had = {problem.id for name in MACHINES for problem in examine(name).problems}
    for id, values in SHOWN_BY_FACTS.items():
        facts = Facts(tuple(Fact(name, value, "test") for name, value in values.items()))  # type: ignore[arg-type]
        assert id in {problem.id for problem in find_problems(facts, load_rules())}
    assert had | set(SHOWN_BY_FACTS) == {rule.id for rule in load_rules()}
    assert not had & set(SHOWN_BY_FACTS), "a machine shows it now: remove it from the table"


def test_the_documents_table_is_current() -> None:
    """The table of problems in docs/doctor.md is what the knowledge says."""
    assert Path(PAGE).read_text(encoding="utf-8") == page_with(problems_table())
