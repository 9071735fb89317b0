"""The recorded machines, what `doctor` says of each, and the table of problems in the docs.

`python -m tests.machines` writes all of it anew; review the difference before you commit it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec

from enginehouse.cli_doctor import document_of, page
from enginehouse.core.doctor import COSTS, Rule
from enginehouse.core.examination import Examination
from enginehouse.edges.examination import examine_recording
from enginehouse.knowledge.machine_facts import load_rules

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "fixtures" / "machines"
PAGE = ROOT / "docs" / "doctor.md"
BEGIN, END = "<!-- problems: begin (python -m tests.machines) -->", "<!-- problems: end -->"
MACHINES = sorted(path.name for path in FOLDER.iterdir() if (path / "meta.json").exists())


@cache
def examine(name: str) -> Examination:
    """Examine one recorded machine."""
    return examine_recording(FOLDER / name)


def text_of(found: Examination) -> str:
    """Return the page that `doctor --snapshot` shows."""
    return page(found) + "\n"


def json_of(found: Examination) -> str:
    """Return what `doctor --snapshot --json` says, one fact a line so that it can be reviewed."""
    document = json.loads(msgspec.json.encode(document_of(found)))
    facts = document.pop("facts")
    rows = ",\n".join("  " + json.dumps(fact, ensure_ascii=False) for fact in facts)
    head = json.dumps(document, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n "facts": [\n{rows}\n ]\n}}\n'


def problems_table() -> str:
    """Return the table of all problems that are known, the most costly first."""
    lines = ["| problem | what is wrong | cost | status | sources |", "|---|---|---|---|---|"]
    for rule in sorted(load_rules(), key=lambda rule: (-rule.cost, rule.id)):
        lines.append(
            f"| `{rule.id}` | {_plain(rule)} | {'!' * rule.cost} | {rule.status}, "
            f"{rule.checked} | {', '.join(_link(source) for source in rule.sources)} |"
        )
    legend = "; ".join(f"`{'!' * cost}` {text}" for cost, text in COSTS.items())
    return f"{legend}.\n\n" + "\n".join(lines)


def _plain(rule: Rule) -> str:
    """Return what is wrong, with the names of facts where the facts would stand."""
    text = rule.what.replace("{", "*").replace("}", "*")
    return text.replace("*" + rule.each + ".*.", "*" + rule.each + " ") if rule.each else text


def _link(source: str) -> str:
    return f"<{source}>" if source.startswith("https://") else f"`{source}`"


def page_with(table: str) -> str:
    """Return the document with the table put into its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write everything anew."""
    for name in MACHINES:
        found = examine(name)
        (FOLDER / name / "doctor.txt").write_text(text_of(found), encoding="utf-8")
        (FOLDER / name / "doctor.json").write_text(json_of(found), encoding="utf-8")
    PAGE.write_text(page_with(problems_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
