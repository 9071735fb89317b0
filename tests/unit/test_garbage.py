"""Machines that talk nonsense."""

from __future__ import annotations

import json
import random

import pytest

from enginehouse.cli_doctor import facts_text, page
from enginehouse.core.doctor import find_problems
from enginehouse.core.examination import Examination
from enginehouse.core.facts import Facts
from enginehouse.core.machine_of import machine_of
from enginehouse.edges.probes import examine
from enginehouse.edges.seam import Answer
from enginehouse.knowledge.machine_facts import load_rules
from tests.machines import FOLDER, MACHINES
from tests.unit.fake_source import FakeSource


def recorded_files() -> dict[str, str]:
    """Return every file of every recorded machine: the real text to be damaged."""
    found = {}
    for name in MACHINES:
        root = FOLDER / name / "files"
        for path in sorted(root.rglob("*")):
            if path.is_file():
                found["/" + str(path.relative_to(root))] = path.read_text(encoding="utf-8")
    return found


def recorded_commands() -> dict[tuple[str, ...], str]:
    """Return every command of every recorded machine with its output."""
    return {
        tuple(entry["argv"]): "\n".join(entry["output"])
        for name in MACHINES
        if (FOLDER / name / "commands.json").exists()
        for entry in json.loads((FOLDER / name / "commands.json").read_text(encoding="utf-8"))
    }


NOISE = ("-1", "9" * 30, ": ", "\n", "0x", "|", "²", "NaN", "ÿ\0", " 0 ", "[N/A], ,", "1e999")
FILES, COMMANDS = recorded_files(), recorded_commands()


def damaged(text: str, chance: random.Random) -> str | None:
    """A text that is missing, cut off, has another text in its midst, is another, or is whole."""
    at = chance.randint(0, len(text))
    noise = chance.choice(NOISE)
    return chance.choice([None, text[:at], text[:at] + noise + text[at:], noise, text, text])


@pytest.mark.parametrize("seed", range(20))
def test_no_text_makes_doctor_fail(seed: int) -> None:
    """Whatever files and commands say, doctor says something, and never falls over."""
    chance = random.Random(seed)
    files = {path: damaged(text, chance) for path, text in FILES.items()}
    commands = {argv: damaged(text, chance) for argv, text in COMMANDS.items()}
    source = FakeSource(
        {path: text for path, text in files.items() if text is not None},
        {argv: Answer(0, text) for argv, text in commands.items() if text is not None},
    )
    assert_shown(examine(source))


def assert_shown(facts: Facts) -> None:
    """Problems, machine, page and list of facts can be made of the facts."""
    problems = find_problems(facts, load_rules())
    look = Examination("x", "live", 1000.0, facts, machine_of(facts), problems)
    assert page(look)
    assert facts_text(look)
    assert look.machine.fingerprint()
