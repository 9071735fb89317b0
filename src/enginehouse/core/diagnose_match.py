"""Signatures against a log's digest: which of them hold, and on which lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from enginehouse.core.diagnose_facts import Facts, holds
from enginehouse.core.diagnose_lines import Line
from enginehouse.core.diagnose_scan import Book, Digest
from enginehouse.core.diagnose_signature import Alternative, Confidence, Kind, Role, Signature

LOUD = (Role.EXCEPTION, Role.ERROR, Role.EXIT, Role.KERNEL)
"""Roles that say by themselves that something failed."""
RANKS = {Role.EXIT: 1, Role.WARNING: 2, Role.INFO: 3}
"""Of roles whose line yields to one that says what failed; the others are 0."""


@dataclass(frozen=True)
class Match:
    """A signature that holds: its lines, the decisive one first, and what it means here."""

    signature: Signature
    lines: tuple[Line, ...]
    cause: str
    title: str
    confidence: Confidence
    alternatives: tuple[Alternative, ...]
    remedies: tuple[str, ...]
    actions: tuple[str, ...]
    captures: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """The decisive line's number; 0 where only the ending decides."""
        return self.lines[0].number if self.lines else 0

    @property
    def rank(self) -> int:
        """How far the decisive line's role is from saying what failed."""
        return RANKS.get(self.lines[0].role, 0) if self.lines else 1


def find_matches(
    book: Book, digest: Digest, facts: Facts, *, with_survived: bool = False
) -> list[Match]:
    """Return every signature that holds, in the book's order.

    Lines that were survived (a start that went well came after them, or requests that were served)
    only count `with_survived`.
    """
    matches = []
    for signature in book.candidates(digest.hits):
        found = _match(book, digest, facts, signature, with_survived)
        if found is not None:
            matches.append(found)
    return matches


def has_succeeded(digest: Digest, facts: Facts) -> bool:
    """Whether the log shows a start that went well, and nothing else says that it failed."""
    return bool(digest.first_ready or digest.last_served) and not facts.has_failed


def is_survived(line: Line, digest: Digest, facts: Facts) -> bool:
    """Whether a line was no failure: the engine got ready, or went on serving, after it."""
    if line.number < digest.last_ready:
        return True
    if facts.has_failed:
        return False
    if line.number < digest.last_served:
        return True
    if not (digest.last_ready or digest.last_served):
        return False
    is_quiet = line.role in (Role.WARNING, Role.INFO)
    return is_quiet or 0 < digest.last_shutdown <= line.number


def _match(
    book: Book, digest: Digest, facts: Facts, signature: Signature, with_survived: bool
) -> Match | None:
    if not holds(signature.when, facts):
        return None
    if any(digest.of(book.id_of(pattern)) for pattern in signature.none_of):
        return None
    if not (signature.all_of or signature.any_of):
        return None if has_succeeded(digest, facts) else _applied(signature, facts, (), {})
    for line in _decisive_lines(book, digest, signature):
        if signature.roles and line.role not in signature.roles:
            continue
        may_count = with_survived or signature.kind in (Kind.BENIGN, Kind.DEGRADED)
        if not may_count and is_survived(line, digest, facts):
            continue
        if not _may_explain_a_kill(signature, line, facts) or _is_recovered(
            book, digest, signature, line
        ):
            continue
        lines = _companions(book, digest, signature, line)
        if lines is not None:
            return _applied(signature, facts, lines, _captures(book, signature, lines))
    return None


def _decisive_lines(book: Book, digest: Digest, signature: Signature) -> Sequence[Line]:
    if signature.all_of:
        return digest.of(book.id_of(signature.all_of[0]))
    lines = {line.number: line for p in signature.any_of for line in digest.of(book.id_of(p))}
    return [lines[number] for number in sorted(lines)]


def _may_explain_a_kill(signature: Signature, line: Line, facts: Facts) -> bool:
    """A killed process (SIGKILL) logs nothing of it: quiet lines before it explain nothing."""
    if facts.signal != "SIGKILL" or line.role in LOUD or "SIGKILL" in signature.when.signals:
        return True
    return signature.kind in (Kind.BENIGN, Kind.ECHO, Kind.DEGRADED)


def _is_recovered(book: Book, digest: Digest, signature: Signature, line: Line) -> bool:
    return any(
        later.number > line.number
        for pattern in signature.recovered_by
        for later in digest.of(book.id_of(pattern))
    )


def _companions(
    book: Book, digest: Digest, signature: Signature, decisive: Line
) -> tuple[Line, ...] | None:
    """Return the decisive line and the others that the signature wants; None if one lacks."""
    lines = [decisive]
    for pattern in signature.all_of[1:]:
        near = _nearest(digest.of(book.id_of(pattern)), signature, decisive)
        if near is None:
            return None
        lines.append(near)
    if signature.any_of and signature.all_of:
        found = [_nearest(digest.of(book.id_of(p)), signature, decisive) for p in signature.any_of]
        some = [line for line in found if line is not None]
        if not some:
            return None
        lines.append(min(some, key=lambda line: abs(line.number - decisive.number)))
    return tuple(lines)


def _nearest(lines: Sequence[Line], signature: Signature, decisive: Line) -> Line | None:
    fitting = [
        line
        for line in lines
        if (not signature.within or abs(line.number - decisive.number) <= signature.within)
        and (not signature.same_process or line.who == decisive.who)
    ]
    return min(fitting, key=lambda line: abs(line.number - decisive.number), default=None)


def _captures(book: Book, signature: Signature, lines: Sequence[Line]) -> dict[str, str]:
    named: dict[str, str] = {}
    for pattern in (*signature.all_of, *signature.any_of):
        for line in lines:
            found = book.captures(book.id_of(pattern), line.text)
            if found:
                named = {**found, **named}
    return named


def _applied(
    signature: Signature, facts: Facts, lines: tuple[Line, ...], captures: Mapping[str, str]
) -> Match:
    """Put what the first fitting context says in place of the signature's own."""
    context = next((c for c in signature.contexts if holds(c.when, facts)), None)
    title, confidence = signature.title, signature.confidence
    alternatives, remedies = signature.alternatives, signature.remedies
    actions, cause = signature.actions, signature.cause
    if context is not None:
        cause = context.cause
        title = context.title or title
        confidence = context.confidence or confidence
        alternatives = alternatives if context.alternatives is None else context.alternatives
        remedies = remedies if context.remedies is None else context.remedies
        actions = actions if context.actions is None else context.actions
    return Match(
        signature=signature,
        lines=lines,
        cause=cause,
        title=_filled(title, captures),
        confidence=confidence,
        alternatives=tuple(a for a in alternatives if a.cause != cause),
        remedies=tuple(_filled(remedy, captures) for remedy in remedies),
        actions=actions,
        captures=captures,
    )


def _filled(text: str, captures: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: captures.get(m[1], "?"), text)
