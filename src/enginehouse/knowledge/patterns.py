"""The signatures' patterns, compiled: one RE2 set for the scan, and each for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType

import re2

from enginehouse.core.diagnose_scan import STRUCTURE
from enginehouse.core.diagnose_signature import Alternative, Signature
from enginehouse.knowledge.confusions import load_confusions
from enginehouse.knowledge.pattern_check import options
from enginehouse.knowledge.signatures_loader import load_signatures

WITHOUT_TEXT = -1
"""Stands for the pattern of a signature that only names an ending."""


@cache
def load_book() -> SignatureBook:
    """Return all signatures of the house, ready to match."""
    return SignatureBook(load_signatures(), load_confusions())


class _Set:
    """Some patterns as one RE2 set, without their anchors."""

    def __init__(self, patterns: Mapping[int, bytes]) -> None:
        self._ids = tuple(patterns)
        self._set = re2.Set.SearchSet(options())
        for pattern in patterns.values():
            self._set.Add(pattern)
        self._set.Compile()

    def matches(self, text: bytes) -> Sequence[int]:
        ids = self._ids
        return [ids[index] for index in self._set.Match(text) or ()] if ids else ()


class _Finder:
    """One expression in RE2."""

    def __init__(self, expression: str) -> None:
        self._compiled = re2.compile(expression.encode(), options())

    def first(self, text: bytes) -> int:
        match = self._compiled.search(text)
        return match.start() if match else -1

    def last(self, text: bytes) -> int:
        return max((match.start() for match in self._compiled.finditer(text)), default=-1)


class SignatureBook:
    """All signatures, and every pattern of theirs compiled once."""

    def __init__(
        self,
        signatures: Sequence[Signature],
        confusions: Mapping[str, Sequence[Alternative]] = MappingProxyType({}),
    ) -> None:
        self.signatures = tuple(signatures)
        self.confusions = confusions
        texts = dict.fromkeys(p for s in self.signatures for p in _patterns_of(s))
        texts |= dict.fromkeys(STRUCTURE.values())
        self._ids = {text: id for id, text in enumerate(texts)}
        self._bare = {id: _without_anchors(text).encode() for text, id in self._ids.items()}
        self._decided_by: dict[int, list[int]] = {}
        for place, signature in enumerate(self.signatures):
            decisive = signature.all_of[:1] or signature.any_of
            for id in [self._ids[text] for text in decisive] or [WITHOUT_TEXT]:
                self._decided_by.setdefault(id, []).append(place)
        self._compiled: dict[int, re2._Regexp] = {}
        self._texts = tuple(self._ids)
        self._sets: dict[frozenset[int], _Set] = {}
        self._finders: dict[str, _Finder] = {}

    def candidates(self, ids: Iterable[int]) -> Sequence[Signature]:
        """Return the signatures of which a decisive pattern is among some, or that have none."""
        places = {place for id in (*ids, WITHOUT_TEXT) for place in self._decided_by.get(id, ())}
        return [self.signatures[place] for place in sorted(places)]

    def id_of(self, pattern: str) -> int:
        """Return a pattern's id."""
        return self._ids[pattern]

    def set_without(self, ids: frozenset[int]) -> _Set:
        """Return all patterns but some as one set; the whole set is kept."""
        if ids in self._sets:
            return self._sets[ids]
        made = _Set({id: bare for id, bare in self._bare.items() if id not in ids})
        if not ids:
            self._sets[ids] = made
        return made

    def finder(self, expression: str) -> _Finder:
        """Return an expression of the scan's own, compiled once."""
        if expression not in self._finders:
            self._finders[expression] = _Finder(expression)
        return self._finders[expression]

    def captures(self, id: int, text: str) -> Mapping[str, str] | None:
        """Return what a pattern captures in a normalised line; None when it does not match."""
        compiled = self._compiled.get(id)
        if compiled is None:
            compiled = self._compiled[id] = re2.compile(self._texts[id].encode(), options())
        match = compiled.search(text.encode())
        if match is None:
            return None
        named = match.groupdict()
        return {name: value.decode("utf-8", "replace") for name, value in named.items() if value}


def _patterns_of(signature: Signature) -> tuple[str, ...]:
    return (
        *signature.all_of,
        *signature.any_of,
        *signature.none_of,
        *signature.recovered_by,
        *(line.pattern for line in signature.misleading),
    )


def _without_anchors(pattern: str) -> str:
    r"""Drop a first `^` and a last `$`: in a block of raw lines they mean something else.

    >>> _without_anchors(r"^Killed$"), _without_anchors(r"\$x\$")
    ('Killed', '\\$x\\$')
    """
    pattern = pattern.removeprefix("^")
    escapes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    return pattern[:-1] if pattern.endswith("$") and escapes % 2 == 0 else pattern
