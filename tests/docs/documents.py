"""The project's documents and the parts of them that can be checked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")}
)
FENCE = re.compile(r"^( *)```.*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def name_of(path: Path) -> str:
    """Name a document in a test's id."""
    return str(path.relative_to(ROOT))


def prose_of(text: str) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", text)


def links_of(text: str) -> list[str]:
    """Return the targets of all links outside of code."""
    return LINK.findall(INLINE.sub("", prose_of(text)))


def anchors_of(text: str) -> set[str]:
    """Return the anchors of all headings, as code hosts make them."""
    headings = HEADING.findall(prose_of(text))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands_of(text: str, program: str) -> Iterator[list[str]]:
    """Return the words after `program` for each use, in fenced lines and in inline code.

    A line may begin with a prompt, follow `&&` or stand before a pipe; comments are cut off.
    """
    lines = [
        line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = [code.split("\\|")[0] for code in INLINE.findall(prose_of(text))]  # a table's a\|b
    for code in (*lines, *inline):
        for part in re.split(r"&&|\|\||[|;]", code):
            line = part.strip().removeprefix("$ ").removesuffix("…").strip()
            if line == program or line.startswith(program + " "):
                yield shlex.split(line, comments=True)[1:]
