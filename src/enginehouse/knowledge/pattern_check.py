"""Patterns in RE2: linear in the text by construction, whatever the pattern and the text."""

from __future__ import annotations

import re

import re2

MOST_REPEATS = 64
"""Of a counted repeat: RE2 unrolls it, and a large program makes its automaton slow."""
COUNTED = re.compile(r"\{(\d*),?(\d*)\}")
MOST_MEMORY_BYTES = 64 << 20


def options() -> re2.Options:
    """Return how every pattern is compiled: bytes in, one byte one character, nothing logged."""
    chosen = re2.Options()
    chosen.encoding = re2.Options.Encoding.LATIN1
    chosen.log_errors = False
    chosen.max_mem = MOST_MEMORY_BYTES
    return chosen


def check_pattern(pattern: str) -> None:
    """Check one pattern of a signature.

    Raises:
        ValueError: RE2 cannot read it, it matches the empty line, an anchor stands in its middle,
            or a counted repeat is large.
    """
    try:
        compiled = re2.compile(pattern.encode(), options())
    except re2.error as problem:
        raise ValueError(f"RE2 cannot read {pattern!r}: {problem}") from problem
    if compiled.search(b""):
        raise ValueError(f"it matches the empty line: {pattern!r}")
    if has_inner_anchor(pattern):
        raise ValueError(f"^ may only stand first and $ only last: {pattern!r}")
    for least, most in COUNTED.findall(re.sub(r"\\.", "x", pattern)):
        if max(int(least or 0), int(most or 0)) > MOST_REPEATS:
            raise ValueError(f"a repeat is counted above {MOST_REPEATS}: {pattern!r}")


def has_inner_anchor(pattern: str) -> bool:
    r"""Whether `^` or `$` stands elsewhere than first or last, where a prefilter cannot drop it.

    >>> has_inner_anchor(r"^Killed$"), has_inner_anchor(r"a|^b"), has_inner_anchor(r"[^']+\$x")
    (False, True, False)
    """
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "x", re.sub(r"\\[\\\[\]^$]", "x", pattern))
    return "^" in bare[1:] or "$" in bare[:-1]
