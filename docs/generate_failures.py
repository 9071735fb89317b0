"""Write docs/failures/ and the lines that `enginehouse explain --cause` shows, from the signatures.

    .venv/bin/python docs/generate_failures.py [--check]

With `--check` nothing is written; what is not current is named, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from enginehouse.core.diagnose_catalogue import index_markdown, page_markdown
from enginehouse.core.diagnose_lines import normalise
from enginehouse.core.diagnose_signature import Signature
from enginehouse.knowledge.causes import LINES_FILE, load_pages
from enginehouse.knowledge.patterns import SignatureBook, load_book

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "failures"
LOGS = ROOT / "tests" / "fixtures" / "logs"
LINES = ROOT / "src" / "enginehouse" / "knowledge" / LINES_FILE
MOST_CHARACTERS = 240
MOST_LINES = 3


def decisive_lines(book: SignatureBook, signature: Signature) -> list[str]:
    """Return the lines of a signature's own log that its first patterns match, prefixes off."""
    log = signature.example or (LOGS / signature.group / signature.evidence).read_text("utf-8")
    lines = [normalise(n, raw.encode()).text for n, raw in enumerate(log.splitlines(), start=1)]
    wanted = signature.all_of or signature.any_of
    found: list[str] = []
    for pattern in wanted[:MOST_LINES]:
        id = book.id_of(pattern)
        found += [line for line in lines if book.captures(id, line) is not None][:1]
    return [line[:MOST_CHARACTERS] for line in dict.fromkeys(found)]


def generate() -> dict[Path, str]:
    """Return every generated file with its text."""
    book = load_book()
    lines = {s.key: decisive_lines(book, s) for s in book.signatures}
    pages = load_pages(lines)
    rows = [f"{json.dumps(key)}: {json.dumps(lines[key])}" for key in sorted(lines)]
    files = {LINES: "{\n" + ",\n".join(rows) + "\n}\n"}
    files |= {PAGES / f"{cause}.md": page_markdown(page) for cause, page in pages.items()}
    files[PAGES / "README.md"] = index_markdown(list(pages.values()))
    return files


def stale() -> list[Path]:
    """Return the files that are missing, differ from what would be generated, or are left over."""
    files = generate()
    differing = [p for p, text in files.items() if not p.exists() or p.read_text("utf-8") != text]
    return sorted([*differing, *(path for path in PAGES.glob("*.md") if path not in files)])


def main() -> None:
    """Write or check every file."""
    if "--check" in sys.argv[1:]:
        found = stale()
        sys.exit("\n".join(f"not current: {path.name}" for path in found) or 0)
    files = generate()
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    sys.stderr.write(f"wrote {len(files)} files\n")


if __name__ == "__main__":
    main()
