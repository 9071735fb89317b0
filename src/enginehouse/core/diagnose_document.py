"""A verdict as a document (`--json`), as text, and the stub of a signature for what is unknown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from enginehouse.core.diagnose_signature import Alternative, Confidence
from enginehouse.core.diagnose_verdict import Verdict
from enginehouse.core.remedies import ACTIONS
from enginehouse.core.trial import Evidence

PAGES = "docs/failures"
WIDTH = 11
STUB = """\
cause = "?"                    # from knowledge/causes.txt
title = "?"
all_of = ['''{pattern}''']
remedies = ["?"]
sources = ["?"]                # a URL, or owner/repository:path of what prints the line
example = '''{example}'''
status = "reported"
checked = {date}
"""


def as_document(verdict: Verdict, log: str, today: str, meaning: str = "") -> dict[str, object]:
    """Return a verdict as plain data; the keys are a contract. `meaning` is the cause's."""
    return {
        "log": log,
        "failed": verdict.has_failed,
        "cause": verdict.cause,
        "confidence": verdict.confidence.value,
        "title": verdict.title,
        "meaning": meaning,
        "alternatives": [
            {"cause": o.cause, "decide": o.decide, "basis": "common" if o.is_common else "log"}
            for o in verdict.alternatives
        ],
        "evidence": [{"line": e.line, "text": e.text} for e in verdict.evidence],
        "misleading": [
            {"line": m.line, "text": m.text, "says": m.says} for m in verdict.misleading
        ],
        "remedies": list(verdict.remedies),
        "actions": [{"id": action, "says": ACTIONS[action]} for action in verdict.actions],
        "sources": list(verdict.sources),
        "signature": verdict.signature,
        "notes": list(verdict.notes),
        "page": page_of(verdict.cause),
        "stub": stub_for(verdict, today),
    }


def page_of(cause: str | None) -> str | None:
    """Return the failure catalogue's page of a cause."""
    return f"{PAGES}/{cause}.md" if cause else None


def as_text(verdict: Verdict, log: str, today: str, meaning: str = "") -> str:
    """Return a verdict for a reader."""
    lines = [f"{log}: {_headline(verdict)}"]
    if verdict.cause:
        lines.append(_row("what", verdict.title))
        label = "would mean" if verdict.confidence is Confidence.LOW else "means"
        lines += _rows(label, [meaning] if meaning else [])
    lines += _rows("evidence" if verdict.cause else "the log", _quotes(verdict))
    lines += _rows("not this", [f"line {m.line}: {m.text}\n{m.says}" for m in verdict.misleading])
    lines += _rows("or", [_alternative(other) for other in verdict.alternatives])
    lines += _rows("try", [f"{n}. {text}" for n, text in enumerate(verdict.remedies, start=1)])
    lines += _rows("note", verdict.notes)
    lines += _rows("source", verdict.sources)
    if verdict.cause:
        lines.append(_row("more", f"enginehouse explain --cause {verdict.cause}"))
        lines.append(_row("", f"{page_of(verdict.cause)}, signature {verdict.signature}"))
    if stub := stub_for(verdict, today):
        lines += ["", "A signature for it could begin so (docs/diagnose.md):", "", stub.rstrip()]
    return "\n".join(lines)


def _headline(verdict: Verdict) -> str:
    if verdict.cause:
        return f"{verdict.cause} ({verdict.confidence.value})"
    return verdict.title


def _alternative(other: Alternative) -> str:
    return f"{'could also be ' if other.is_common else ''}{other.cause}: {other.decide}"


def _quotes(verdict: Verdict) -> list[str]:
    return [_quoted(evidence) for evidence in verdict.evidence]


def _quoted(evidence: Evidence) -> str:
    return f"line {evidence.line}: {evidence.text}"


def _rows(label: str, texts: Sequence[str]) -> list[str]:
    return [_row(label if n == 0 else "", text) for n, text in enumerate(texts)]


def _row(label: str, text: str) -> str:
    return f"  {label:<{WIDTH}}" + text.replace("\n", "\n" + " " * (WIDTH + 4))


def stub_for(verdict: Verdict, today: str) -> str | None:
    """Return the start of a signature for an unknown failure, None where nothing is unknown."""
    is_unknown = verdict.may_have_failed and verdict.cause is None and verdict.evidence
    if not is_unknown or verdict.confidence is not Confidence.UNKNOWN:
        return None
    first = verdict.trouble or verdict.evidence[0]
    text = first.text.replace("'''", "'' '")
    return STUB.format(pattern=pattern_of(text), example=text, date=today)


def pattern_of(text: str) -> str:
    r"""Return an expression for a line in which figures and quoted names may differ.

    >>> pattern_of("tensor 'blk.0' needs 12 bytes (of 8)")
    "tensor '[^']+' needs \\d+ bytes \\(of \\d+\\)"
    """
    pieces = re.split(r"('[^']*'|\d+(?:\.\d+)?)", text)
    return "".join(_general(piece) for piece in pieces if piece)


def _general(piece: str) -> str:
    if piece.startswith("'") and piece.endswith("'") and len(piece) > 1:
        return "'[^']+'"
    if piece.isdigit():
        return r"\d+"
    if re.fullmatch(r"\d+\.\d+", piece):
        return r"[\d.]+"
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", piece)
