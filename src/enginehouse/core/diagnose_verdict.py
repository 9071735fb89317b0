"""Matches → one verdict: root before consequence, first in time, humble where two causes fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from enginehouse.core.diagnose_facts import Facts, ending_in
from enginehouse.core.diagnose_lines import Line
from enginehouse.core.diagnose_match import (
    LOUD,
    Match,
    find_matches,
    has_succeeded,
    is_survived,
)
from enginehouse.core.diagnose_scan import STRUCTURE, Book, Digest
from enginehouse.core.diagnose_signature import Alternative, Confidence, Kind, Role
from enginehouse.core.trial import Evidence

MOST_CHARACTERS = 300
"""Of an evidence line that are kept."""
MOST_ALTERNATIVES = 8
FEW_ALTERNATIVES = 2
"""Fewer than these are filled up with common confusions, to `ENOUGH_ALTERNATIVES`."""
ENOUGH_ALTERNATIVES = 2
TAIL_LINES = 8
LAST_WORDS = 3
EXCERPT_LINES = 10
"""Of which a harmless line is what the reader asks about; a longer log tells of a whole run."""
UNKNOWN = Confidence.UNKNOWN
BASELESS = 2
"""The rank from which a role says so little that the verdict is a guess."""
TAGS = {
    "tegra": ("jetson",),
    "thor": ("thor", "jetson", "blackwell"),
    "spark": ("spark", "unified", "nvidia", "blackwell"),
    "mig": ("mig", "nvidia"),
    "wsl": ("wsl",),
    "windows": ("windows",),
    "container": ("container",),
}


@dataclass(frozen=True)
class Misled:
    """A line that looks like the cause and is not, with the reason."""

    line: int
    text: str
    says: str


@dataclass(frozen=True)
class Verdict:
    """What a log says: `cause` is None when nothing failed, or when the failure is unknown."""

    cause: str | None
    confidence: Confidence
    title: str
    alternatives: tuple[Alternative, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    misleading: tuple[Misled, ...] = ()
    remedies: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    signature: str = ""
    notes: tuple[str, ...] = ()
    has_failed: bool = True
    decided_by: int = 0
    """The decisive line; 0 where the ending alone decided."""
    trouble: Evidence | None = None
    """Of an unknown failure: the line that most likely says what failed."""

    @property
    def is_told_by_the_log(self) -> bool:
        """Whether a line of the log decided it, and not the ending alone."""
        return self.decided_by > 0

    @property
    def may_have_failed(self) -> bool:
        """Whether it failed, or a line speaks of trouble and nothing says that all went well."""
        return self.has_failed or self.trouble is not None


def judge(book: Book, digest: Digest, facts: Facts) -> Verdict:
    """Return the verdict on a log, given what is known beside it."""
    return with_confusions(_judge(book, digest, facts), book.confusions)


def with_confusions(verdict: Verdict, table: Mapping[str, Sequence[Alternative]]) -> Verdict:
    """Add what a cause is often confused with, where the log names few alternatives itself."""
    own = len(verdict.alternatives)
    is_sure = verdict.confidence is Confidence.CERTAIN
    if verdict.cause is None or is_sure or own >= FEW_ALTERNATIVES:
        return verdict
    named = {verdict.cause, *(other.cause for other in verdict.alternatives)}
    common = [other for other in table.get(verdict.cause, ()) if other.cause not in named]
    added = common[: ENOUGH_ALTERNATIVES - own]
    return replace(verdict, alternatives=(*verdict.alternatives, *added))


def _judge(book: Book, digest: Digest, facts: Facts) -> Verdict:
    facts = _told_by_the_log(book, digest, facts)
    matches = find_matches(book, digest, facts)
    standing = _standing(matches)
    if not standing and facts.has_failed:
        late = find_matches(book, digest, facts, with_survived=True)
        standing = [replace(match, confidence=Confidence.LOW) for match in _standing(late)]
    misleading = _misleading(book, digest, matches, standing)
    notes = tuple(m.title for m in matches if m.signature.kind is Kind.DEGRADED)
    if standing:
        verdict = _named(standing, misleading, notes)
        return verdict if verdict.evidence else replace(verdict, evidence=_last_words(digest))
    if has_succeeded(digest, facts) and not _last_word(book, digest, facts):
        title = "the log shows a start that went well, and no failure after it"
        return Verdict(None, UNKNOWN, title, misleading=misleading, notes=notes, has_failed=False)
    return _lesser(book, digest, facts, matches, misleading)


def _last_words(digest: Digest) -> tuple[Evidence, ...]:
    """Return the log's last lines: what stood there when the ending alone says what happened."""
    written = [line for line in digest.tail if line.text.strip()][-LAST_WORDS:]
    return tuple(Evidence(n.number, n.text.strip()[:MOST_CHARACTERS]) for n in written)


def standing_matches(book: Book, digest: Digest, facts: Facts) -> list[Match]:
    """Return the failures that fit and that nothing explains away, the likeliest root first."""
    return _standing(find_matches(book, digest, _told_by_the_log(book, digest, facts)))


def _told_by_the_log(book: Book, digest: Digest, facts: Facts) -> Facts:
    """Add what the log tells of its platform and of the process's end."""
    tags = {tag for name in TAGS if digest.of(book.id_of(STRUCTURE[name])) for tag in TAGS[name]}
    facts = facts.with_tags(tags)
    for line in reversed(_troubles(book, digest)):
        if line.role in (Role.EXIT, Role.KERNEL) and not is_survived(line, digest, facts):
            code, signal = ending_in(line.text)
            if signal:
                return facts.with_ending(code, signal)
    return facts


def _troubles(book: Book, digest: Digest) -> Sequence[Line]:
    return digest.of(book.id_of(STRUCTURE["trouble"]))


def _standing(matches: Sequence[Match]) -> list[Match]:
    """Return the failures that no other one explains away, the likeliest root first."""
    failures = [match for match in matches if match.signature.kind is Kind.FAILURE]
    generics = [match for match in matches if match.signature.kind is Kind.GENERIC]
    for group in (failures, generics):
        if kept := _without_special_cases(_roots(group)):
            return sorted(kept, key=_order)
    return []


def _order(match: Match) -> tuple[int, int, int, int]:
    """First the role, then the line; of one line the special signature."""
    size = len(match.signature.all_of) + bool(match.signature.any_of)
    return match.rank, match.line or 1 << 60, -match.signature.precedence, -size


def _roots(matches: Sequence[Match]) -> list[Match]:
    """Leave out what another match overrides or explains."""
    return [
        match
        for match in matches
        if not any(
            other is not match
            and (
                _names(other.signature.overrides, match)
                or (
                    _names(match.signature.consequence_of, other)
                    and not _names(other.signature.consequence_of, match)
                )
            )
            for other in matches
        )
    ]


def _names(patterns: Iterable[str], match: Match) -> bool:
    """Whether one of some names (`group/id`, a cause, `memory.*`) means a match."""
    return any(
        match.cause.startswith(name[:-1])
        if name.endswith("*")
        else name in (match.cause, match.signature.key)
        for name in patterns
    )


def _without_special_cases(matches: Sequence[Match]) -> list[Match]:
    """Of matches that rest on one line only those of the highest precedence stay."""
    return [
        match
        for match in matches
        if not any(
            other.signature.precedence > match.signature.precedence
            and {line.number for line in other.lines} & {line.number for line in match.lines}
            for other in matches
        )
    ]


def _named(
    standing: Sequence[Match], misleading: tuple[Misled, ...], notes: tuple[str, ...]
) -> Verdict:
    first = standing[0]
    rivals = [match for match in standing[1:] if match.cause != first.cause]
    alternatives = {other.cause: other for other in first.alternatives}
    for match in rivals:
        decide = f"its line {match.line} also stands in the log: {match.title}"
        alternatives.setdefault(match.cause, Alternative(match.cause, decide))
        for other in match.alternatives:
            alternatives.setdefault(other.cause, other)
    alternatives.pop(first.cause, None)
    agreeing = [match for match in standing if match.cause == first.cause]
    return Verdict(
        cause=first.cause,
        confidence=_confidence(first, rivals),
        title=first.title,
        alternatives=tuple(alternatives.values())[:MOST_ALTERNATIVES],
        evidence=_evidence([*first.lines, *(line for m in agreeing[1:3] for line in m.lines[:1])]),
        misleading=misleading,
        remedies=_unique(remedy for match in agreeing[:1] for remedy in match.remedies),
        actions=first.actions,
        sources=_unique(source for match in agreeing[:3] for source in match.signature.sources),
        signature=first.signature.key,
        notes=notes,
        decided_by=first.line,
    )


def _confidence(first: Match, rivals: Sequence[Match]) -> Confidence:
    if first.rank >= BASELESS and not first.signature.roles:
        return Confidence.LOW
    is_disputed = any(match.line == first.line or match.rank <= first.rank for match in rivals)
    if first.confidence is Confidence.CERTAIN and (is_disputed or first.alternatives):
        return Confidence.LIKELY
    return first.confidence


def _lesser(
    book: Book,
    digest: Digest,
    facts: Facts,
    matches: Sequence[Match],
    misleading: tuple[Misled, ...],
) -> Verdict:
    """No failure fits: what runs but badly, what only looks bad, an echo, or the unknown."""
    has_failed = facts.has_failed or _is_loud(book, digest)
    last_word = _last_word(book, digest, facts)
    for kind in (Kind.DEGRADED, Kind.BENIGN):
        group = [match for match in matches if match.signature.kind is kind]
        may_be_named = kind is Kind.DEGRADED or (not has_failed and digest.lines <= EXCERPT_LINES)
        if group and may_be_named and not last_word and not facts.has_failed:
            verdict = _named(sorted(group, key=_order), (), ())
            return replace(verdict, misleading=misleading, has_failed=kind is Kind.DEGRADED)
    echoes = sorted((m for m in matches if m.signature.kind is Kind.ECHO), key=_order)
    shown = _part_that_matters(book, digest)
    if not echoes:
        trouble = _trouble(book, digest)
        title = _unknown_title(facts, digest, has_failed, bool(misleading), trouble)
        return Verdict(
            None, UNKNOWN, title, evidence=shown, misleading=misleading, has_failed=has_failed,
            notes=_advice(facts, digest, has_failed, trouble), trouble=trouble,
        )  # fmt: skip
    echo = echoes[0]
    return Verdict(
        cause=echo.cause or None,
        confidence=echo.confidence if echo.cause else UNKNOWN,
        title=echo.title,
        alternatives=echo.alternatives,
        evidence=_evidence([*echo.lines]) if echo.cause else shown,
        misleading=tuple(m for m in misleading if m.line != echo.line),
        remedies=echo.remedies,
        actions=echo.actions,
        sources=echo.signature.sources,
        signature=echo.signature.key,
    )


def _last_word(book: Book, digest: Digest, facts: Facts) -> Line | None:
    """Return a line that says that something failed and that no benign signature explains."""
    harmless = _harmless_lines(book, digest)
    return next(
        (
            line
            for line in _troubles(book, digest)
            if line.role in (Role.EXCEPTION, Role.EXIT, Role.KERNEL)
            and line.number not in harmless
            and not is_survived(line, digest, facts)
        ),
        None,
    )


def _harmless_lines(book: Book, digest: Digest) -> set[int]:
    """Return the lines that a benign or a degraded signature explains."""
    return {
        line.number
        for signature in book.candidates(digest.hits)
        if signature.kind in (Kind.BENIGN, Kind.DEGRADED)
        for pattern in (*signature.all_of, *signature.any_of)
        for line in digest.of(book.id_of(pattern))
    }


def _is_loud(book: Book, digest: Digest) -> bool:
    """Whether a line that nothing explains as harmless says that something failed."""
    harmless = _harmless_lines(book, digest)
    troubles = _troubles(book, digest)
    return any(line.role in LOUD and line.number not in harmless for line in troubles)


def _trouble(book: Book, digest: Digest) -> Evidence | None:
    """Return the line that most likely says what failed: the first error, else any such word."""
    harmless = _harmless_lines(book, digest)
    lines = [line for line in _troubles(book, digest) if line.number not in harmless]
    loud = [line for line in lines if line.role in (Role.ERROR, Role.EXCEPTION, Role.KERNEL)]
    plain = [line for line in lines if line.role in (Role.PLAIN, Role.EXIT)]
    for line in (*loud, *plain):
        return Evidence(line.number, line.text.strip()[:MOST_CHARACTERS])
    return None


def _advice(
    facts: Facts, digest: Digest, has_failed: bool, trouble: Evidence | None
) -> tuple[str, ...]:
    """Say what would tell more, where the log tells little."""
    if not digest.lines:
        return ("see whether the engine's standard error was kept too, or look into the journal",)
    if not has_failed and trouble and facts.exit_code is None:
        return ("if it failed, say how it ended (--exit-status): that may decide",)
    return ()


def _unknown_title(
    facts: Facts, digest: Digest, has_failed: bool, is_misleading: bool, trouble: Evidence | None
) -> str:
    end = facts.signal or (f"exit code {facts.exit_code}" if facts.exit_code is not None else "")
    if not digest.lines:
        return f"the log is empty{f'; it ended with {end}' if has_failed and end else ''}"
    if not has_failed and trouble:
        return f"unknown: line {trouble.line} speaks of trouble, but not of how it ended"
    if not has_failed and is_misleading:
        return "the log shows no failure; what looks like one is harmless"
    if not has_failed:
        return "the log shows no failure"
    return f"unknown: no signature fits{f'; it ended with {end}' if end else ''}"


def _part_that_matters(book: Book, digest: Digest) -> tuple[Evidence, ...]:
    """Return the first error, the first and the last exception, the ending, and the log's end."""
    troubles = _troubles(book, digest)
    picked = [line for line in troubles if line.role is Role.PLAIN][:1]
    for roles in ((Role.ERROR, Role.EXCEPTION, Role.KERNEL), (Role.EXCEPTION,)):
        picked += [line for line in troubles if line.role in roles][:1]
    picked += [line for line in troubles if line.role is Role.EXCEPTION][-1:]
    picked += [line for line in troubles if line.role in (Role.EXIT, Role.KERNEL)][-1:]
    picked += [line for line in digest.tail if line.text.strip()][-TAIL_LINES:]
    kept = {
        line.number: Evidence(line.number, line.text.strip()[:MOST_CHARACTERS]) for line in picked
    }
    return tuple(kept[number] for number in sorted(kept))


def _misleading(
    book: Book, digest: Digest, matches: Sequence[Match], standing: Sequence[Match]
) -> tuple[Misled, ...]:
    """Name what only looks like the cause: declared lines, benign ones, and echoes."""
    found: dict[int, Misled] = {}
    if standing:
        for misleading in standing[0].signature.misleading:
            for line in digest.of(book.id_of(misleading.pattern))[:1]:
                found[line.number] = _misled(line, misleading.says)
    for match in matches:
        is_talk = match.signature.kind is Kind.BENIGN or (
            match.signature.kind is Kind.ECHO and standing
        )
        if is_talk and match.lines and match.line not in found:
            found[match.line] = _misled(match.lines[0], match.title)
    return tuple(found[number] for number in sorted(found))


def _misled(line: Line, says: str) -> Misled:
    return Misled(line.number, line.text.strip()[:MOST_CHARACTERS], says)


def _evidence(lines: Iterable[Line]) -> tuple[Evidence, ...]:
    """Return lines in the log's order, those that say the same (figures aside) once."""
    seen: set[str] = set()
    kept = {}
    for line in sorted(lines, key=lambda line: line.number):
        text = line.text.strip()[:MOST_CHARACTERS]
        shape = re.sub(r"\d+", "0", text)
        if shape not in seen:
            seen.add(shape)
            kept[line.number] = Evidence(line.number, text)
    return tuple(kept.values())


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
